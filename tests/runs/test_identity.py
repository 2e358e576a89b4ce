"""Whatever can change a number is part of what a run is known by: edited between two commands, it is noticed."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import bench, flags, write_corpus
from test_end_to_end import mtimes, records_of
from test_plugin_identity import PLUGIN
from tiny import save_tiny

from sae_bench.lm import corpus as corpora
from sae_bench.records import content
from sae_bench.records import kept as of_kept
from sae_bench.records.files import read_sealed, write_sealed
from sae_bench.runs.config import RunConfig
from sae_bench.runs.provenance import environment
from sae_bench.training import trainer as trainer_module


@pytest.fixture(scope="module")
def settings(at_work):
    model, text = save_tiny(at_work / "model"), write_corpus(at_work / "text.jsonl")
    return {
        "--arch": "topk", "--l0": 6, "--model": model, "--layer": 1, "--dataset": text, "--width": 48,
        "--tokens": 1200, "--reuse": 2, "--batch-size": 130, "--buffer-tokens": 600, "--eval-tokens": 300,
        "--context-size": 32, "--tasks": "delta_lm_loss",
    }  # fmt: skip


@pytest.fixture
def mine(settings, tmp_path):
    """A model and a corpus to edit."""
    shutil.copytree(settings["--model"], tmp_path / "model")
    shutil.copy(settings["--dataset"], tmp_path / "text.jsonl")
    return settings | {
        "--model": tmp_path / "model", "--dataset": tmp_path / "text.jsonl", "--out": tmp_path / "run"
    }  # fmt: skip


def killed_at(n_steps, monkeypatch, command):
    step, done = trainer_module.SAETrainer.step, []

    def killed(self, *arguments, **how):
        done.append(self.id)
        if len(done) > n_steps:
            raise KeyboardInterrupt
        step(self, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.SAETrainer, "step", killed)
        assert bench(*command, "--quiet") == 130


@pytest.mark.parametrize("when", ["stopped", "finished"])
def test_an_edited_configuration_is_refused_when_a_run_goes_on(mine, tmp_path, monkeypatch, capsys, when):
    command = flags(mine)
    if when == "stopped":
        killed_at(5, monkeypatch, command)
    else:
        assert bench(*command, "--quiet") == 0
        next((tmp_path / "run" / "records").iterdir()).unlink()
    file = tmp_path / "model" / "config.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps(old | {"rms_norm_eps": 0.5, "transformers_version": "0.0.1"}))
    before = mtimes(tmp_path / "run")
    assert bench(*command) == 2
    error = capsys.readouterr().err
    assert f"(rms_norm_eps {old['rms_norm_eps']} -> 0.5)" in error
    assert mtimes(tmp_path / "run") == before
    file.write_text(json.dumps(old | {"transformers_version": "0.0.1"}))
    assert bench(*command, "--quiet") == 0
    file.write_text(json.dumps(old | {"rms_norm_eps": 0.5}))
    capsys.readouterr()
    assert bench("verify", tmp_path / "run", "--quiet") == 1
    assert "language model: is another one than in the run: rms_norm_eps" in capsys.readouterr().out


def test_an_edited_tokenizer_is_refused_when_a_run_goes_on(mine, tmp_path, capsys):
    assert bench(*flags(mine), "--quiet") == 0
    file = tmp_path / "model" / "tokenizer_config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"bos_token": about["eos_token"]}))
    assert bench(*flags(mine | {"--l0": 3})) == 2
    assert "(special tokens" in capsys.readouterr().err


def replaced(path: Path, other: bytes) -> None:
    """Other content of the same size, copied with times kept."""
    before = path.stat()
    assert len(other) == before.st_size
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("form", ["jsonl", "txt", "csv", "folder"])
def test_another_corpus_of_the_same_size_and_time_is_read_itself(at_work, tmp_path, form):
    texts = [f"the text number {n} of some words" for n in range(40)]
    lines = {"csv": ["text", *texts], "txt": [f"{text}\n" for text in texts]}.get(
        form, [json.dumps({"text": text}) for text in texts]
    )
    source = tmp_path / ("some" if form == "folder" else f"corpus.{form}")
    file = source / "corpus.jsonl" if form == "folder" else source
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))
    found, known = sorted(corpora.documents(str(source), order_seed=0)), corpora.corpus_hash(str(source))
    assert len(found) == 40
    replaced(file, file.read_bytes().replace(b"words", b"beans"))
    again = sorted(corpora.documents(str(source), order_seed=0))
    assert again == [text.replace("words", "beans") for text in found]
    assert corpora.corpus_hash(str(source)) != known


def test_a_hash_is_kept_only_for_bytes_that_cannot_have_changed(at_work, tmp_path, monkeypatch):
    """The system's own time of the last change decides: no copy with times kept passes for what was hashed."""
    file, read = tmp_path / "file", []
    sha256 = content.sha256
    monkeypatch.setattr(content, "sha256", lambda path: (read.append(path), sha256(path))[1])
    file.write_bytes(b"one")
    first = content.content_hash(file)
    assert content.content_hash(file) == first
    assert len(read) == 2, "just written: another write could have the same time"
    monkeypatch.setattr(content.time, "time", lambda: file.stat().st_ctime + content.SETTLED_S + 1)
    for _ in range(3):
        assert content.content_hash(file) == first
    assert len(read) == 3, "read once more, then not again"
    replaced(file, b"two")
    assert content.content_hash(file) != first
    other = tmp_path / "other"
    other.write_bytes(b"six")
    shutil.copystat(file, other)
    os.replace(other, file)
    assert content.content_hash(file) == sha256(file)


def test_another_corpus_is_refused_where_a_finished_run_is_added_to(mine, tmp_path, capsys):
    assert bench(*flags(mine), "--quiet") == 0
    file = tmp_path / "text.jsonl"
    replaced(file, file.read_bytes().replace(b"the ", b"one "))
    assert bench(*flags(mine | {"--l0": 3})) == 2
    assert "has changed since the run" in capsys.readouterr().err
    assert bench("verify", tmp_path / "run", "--quiet") == 1
    assert "corpus: is not what the run was made from" in capsys.readouterr().out


def test_a_changed_file_beside_a_plugin_is_refused(mine, tmp_path, capsys):
    helper = tmp_path / "helper_of_mine.py"
    helper.write_text("SCALE = 1.0\n")
    plugin = tmp_path / "mine2.py"
    plugin.write_text(PLUGIN.replace("from beside import NAME", "from helper_of_mine import SCALE\nNAME = 'mine2'")
                      .replace('("declared.txt",)', "()"))  # fmt: skip
    (tmp_path / "opened.txt").write_text("words")
    command = flags(mine | {"--plugin": plugin, "--arch": "mine2"})
    assert bench(*flags(mine), "--quiet") == 0
    assert bench(*command, "--quiet") == 0, "a plugin may be added"
    for file in (helper, tmp_path / "opened.txt"):
        old = file.read_text()
        file.write_text(old + "\n")
        assert bench(*command) == 2
        assert f"--plugin {plugin} reads {file.name}, which has changed since" in capsys.readouterr().err
        if file == helper:
            assert bench("verify", tmp_path / "run", "--plugin", plugin, "--quiet") == 1
            assert f"{file.name}: missing or changed since the run" in capsys.readouterr().out
        file.write_text(old)


def test_other_versions_and_threads_are_said_where_a_run_goes_on(mine, tmp_path, monkeypatch, caplog):
    out = tmp_path / "run"
    mine |= {"--checkpoint-every": 3}
    killed_at(5, monkeypatch, flags(mine))
    monkeypatch.setattr("sae_bench.runs.train.environment", lambda device: environment(device) | {"threads": 7})
    assert bench(*flags(mine), "--quiet") == 0
    (record,) = records_of(out).values()
    said = "training went on elsewhere after step 3: threads 1 -> 7; bits may differ"
    assert record["remarks"] == record["sae"]["training"]["remarks"] == [said]
    manifest = read_sealed(out / "run.json")
    versions = manifest["environment"]["versions"] | {"torch": "1.0.0"}
    write_sealed(out / "run.json", manifest | {"environment": manifest["environment"] | {"versions": versions}})
    caplog.clear()
    assert bench(*flags(mine | {"--l0": 3}), "--quiet") == 0
    assert any("torch 1.0.0 -> " in record.getMessage() for record in caplog.records)
    added = [record for name, record in records_of(out).items() if "l0_3" in name]
    assert all("torch 1.0.0 -> " in record["remarks"][0] for record in added)


def test_a_run_is_verified_from_any_folder(mine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = mine | {"--model": "model", "--dataset": "text.jsonl", "--out": "run"}
    assert bench(*flags(here), "--quiet") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bench("verify", "../run", "--quiet") == 0
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json"))


@pytest.fixture
def begun(mine, tmp_path, monkeypatch):
    """A run that was begun with relative paths, beside which its files stand, and an SAE from elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert bench(*flags(mine | {"--out": tmp_path / "theirs"}), "--quiet") == 0
    (tmp_path / "plugs").mkdir()
    (tmp_path / "plugs" / "mine3.py").write_text(
        PLUGIN.replace("from beside import NAME", "NAME = 'mine3'").replace('("declared.txt",)', "()")
    )
    (tmp_path / "plugs" / "opened.txt").write_text("words")
    here = {"--model": "model", "--dataset": "text.jsonl", "--plugin": "plugs/mine3.py", "--sae": "theirs"}
    assert bench(*flags(mine | here | {"--out": "run", "--latents": 7}), "--quiet") == 0
    (tmp_path / "elsewhere").mkdir()
    return mine | here | {"--out": tmp_path / "run"}


@pytest.mark.parametrize("where", ["relative", "absolute", "linked", "copied"])
def test_the_same_files_by_other_paths_are_the_same_run(begun, tmp_path, monkeypatch, capsys, where):
    """Content decides: nothing is refused, nothing made again, and what is added has the names of the run."""
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = {"--model": "model", "--dataset": "text.jsonl", "--plugin": "plugs/mine3.py", "--sae": "theirs"}
    base = {"relative": Path(".."), "absolute": tmp_path}.get(where, Path())
    for name in names.values() if where in ("linked", "copied") else ():
        source = tmp_path / name
        other = Path(name).name
        if where == "linked":
            Path(other).symlink_to(source)
        elif source.is_dir():
            shutil.copytree(source, other)
        else:
            shutil.copy(source, other)
            shutil.copy(tmp_path / "plugs" / "opened.txt", "opened.txt")
    flat = where in ("linked", "copied")
    if where == "linked":
        Path("opened.txt").symlink_to(tmp_path / "plugs" / "opened.txt")
    again = begun | {flag: base / (Path(name).name if flat else name) for flag, name in names.items()}
    before = mtimes(tmp_path / "run")
    capsys.readouterr()
    assert bench(*flags(again)) == 0
    assert f"the run in {tmp_path / 'run'} keeps what this command does not say: --latents 7" in capsys.readouterr().err
    assert mtimes(tmp_path / "run") == before
    assert bench(*flags(again | {"--l0": 3}), "--quiet") == 0
    assert {record["provenance"]["model"] for record in records_of(tmp_path / "run").values()} == {"model"}
    assert {record["provenance"]["dataset"] for record in records_of(tmp_path / "run").values()} == {"text.jsonl"}
    said = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json"))
    assert str(tmp_path) not in said
    assert "elsewhere" not in said


def test_where_a_run_was_begun_is_in_no_file_unless_its_paths_begin_there(begun, tmp_path):
    """run.json is published with the board."""
    there = [read_sealed(tmp_path / run / "run.json").get("begun_in") for run in ("theirs", "run")]
    assert there == [None, ".."], "absolute paths, and relative ones"


def test_what_is_not_said_again_is_found_where_the_run_was_begun(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = begun | {"--model": tmp_path / "model", "--dataset": tmp_path / "text.jsonl"}
    del again["--sae"]
    assert bench(*flags(again | {"--l0": 3, "--plugin": tmp_path / "plugs" / "mine3.py"}), "--quiet") == 0
    capsys.readouterr()
    del again["--plugin"]
    assert bench(*flags(again)) == 2
    named = re.search(r"(python bench.py .*)", capsys.readouterr().err)[1]
    assert bench(*shlex.split(named)[2:], "--quiet") == 0
    assert bench("verify", "../run", "--plugin", tmp_path / "plugs" / "mine3.py", "--quiet") == 0


def test_another_file_by_another_path_is_refused_as_ever(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path / "elsewhere")
    whole = {flag: tmp_path / begun[flag] for flag in ("--model", "--dataset", "--plugin", "--sae")}
    before = mtimes(tmp_path / "run")
    Path("other.jsonl").write_text((tmp_path / "text.jsonl").read_text().replace("the ", "one "))
    shutil.copytree(tmp_path / "model", "model")
    config = json.loads(Path("model", "config.json").read_text())
    Path("model", "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    shutil.copy(tmp_path / "plugs" / "opened.txt", "opened.txt")
    Path("mine3.py").write_text((tmp_path / "plugs" / "mine3.py").read_text().replace('"1"', '"2"'))
    for flag, other, words in (
        ("--dataset", "other.jsonl", "--dataset text.jsonl, not other.jsonl"),
        ("--model", "model", "--model model, is not the one that the run in"),
        ("--plugin", "mine3.py", "has --plugin"),
    ):
        assert bench(*flags(begun | whole | {flag: other})) == 2
        assert words in capsys.readouterr().err
        assert mtimes(tmp_path / "run") == before


def test_a_run_that_no_folder_was_named_for_is_known_by_what_its_files_hold(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "model", tmp_path / "copy" / "model")
    Path("link.jsonl").symlink_to(tmp_path / "text.jsonl")

    def name(**other):
        return RunConfig.build({"archs": ["topk"], "model": "model", "dataset": "text.jsonl", **other}).name

    assert name() == name(model="./model/") == name(model=str(tmp_path / "model")) == name(model="copy/model")
    assert name() == name(dataset="link.jsonl") == name(dataset="../" + tmp_path.name + "/text.jsonl")
    (tmp_path / "copy" / "model" / "config.json").write_text("{}")
    assert name() != name(model="copy/model")


def test_a_run_goes_on_without_a_cache_folder_that_cannot_be_written(mine, tmp_path, monkeypatch, caplog):
    """As in a home that is read-only: here a file stands where the folder would be, which stops root, too."""
    of_kept._tell.cache_clear()
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "home" / "cache"))
    for l0 in (6, 3):
        assert bench(*flags(mine | {"--l0": l0}), "--quiet") == 0
    assert {record["failure"] for record in records_of(tmp_path / "run").values()} == {None}
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
