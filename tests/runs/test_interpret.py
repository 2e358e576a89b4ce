"""Interpretability in a run: with a judge, without one, with another, interrupted, and with nothing to say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from command import bench, files, flags
from fake_judge import fake_judge, nay_sayer
from hostile_judge import hostile_judge

from sae_bench.cli.latents import highlighted
from sae_bench.cli.main import main
from sae_bench.records.files import read_sealed

KEYS = {
    "sae", "latent", "n_fired", "n_tokens", "max", "histogram", "logits", "examples", "explanation", "explainer",
    "answers", "scores", "judge", "seal",
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No key, no pauses, and a cache of answers that no other test has filled."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sae_bench.autointerp.client.pause", lambda n_lost: 0.01)


@pytest.fixture(scope="module")
def settings(gemma2_folder, corpus, at_work):
    return {
        "--arch": ("topk", "jumprelu"), "--model": gemma2_folder, "--layer": 1, "--dataset": corpus, "--width": 64,
        "--l0": 6, "--tokens": 1000, "--reuse": 2, "--batch-size": 250, "--eval-tokens": 200, "--context-size": 33,
        "--tasks": ("reconstruction", "autointerp"), "--interp-tokens": 480,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, at_work) -> Path:
    """A run with latents collected, and no judge."""
    out = at_work / "finished"
    assert bench(*flags(settings | {"--latents": 3, "--out": out}), "--quiet") == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def server():
    with fake_judge(nay_sayer) as fake:
        yield fake


def judged(settings, run, server, *more, **changed):
    command = settings | {"--latents": 3, "--out": run, "--judge-model": "toy", "--judge-base-url": server.base_url}
    return bench(*flags(command | changed), *more, "--quiet")


def record_of(run, arch="topk"):
    (path,) = run.glob(f"records/{arch}*.autointerp.json")
    return read_sealed(path)


def latents_of(run):
    return [read_sealed(path) for path in sorted(run.glob("latents/*/*.json"))]


def test_without_a_judge_latents_are_collected_and_the_column_says_how_to_give_one(finished, capsys):
    latents = latents_of(finished)
    assert len(latents) == 2 * 3
    for latent in latents:
        assert set(latent) | {"seal"} == KEYS
        assert (latent["explanation"], latent["judge"], latent["answers"], latent["scores"]) == (None, None, [], {})
        assert {example["kind"] for example in latent["examples"]} <= {"top", "decile", "silent"}
        assert len(latent["logits"]["top"]) == len(latent["logits"]["bottom"]) == 10
        assert len(latent["histogram"]["edges"]) == len(latent["histogram"]["counts"]) + 1
    assert bench("table", finished) == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "No column for detection, fuzzing: no judge: give --judge-model and --judge-base-url" in words
    assert words.count("give --judge-model") == 1
    assert record_of(finished)["failure"] is None


def test_a_run_that_asks_for_no_latents_collects_none(settings, tmp_path):
    assert bench(*flags(settings | {"--arch": "topk", "--out": tmp_path / "run"}), "--quiet") == 0
    assert not (tmp_path / "run" / "latents").exists()
    assert record_of(tmp_path / "run")["scores"]["detection"]["note"] == "no judge"


def test_a_judge_added_later_adds_what_is_missing_and_nothing_else(settings, run, server, capsys):
    before = files(run)
    assert judged(settings, run, server, **{"--autointerp-scorers": ("detection", "saebench_detection")}) == 0
    after = files(run)
    changed = {name.split("/")[0] for name in after if after[name] != before.get(name)}
    assert changed == {"records", "latents", "drawn.json", *(f"leaderboard.{kind}" for kind in ("md", "csv", "tex"))}
    assert not [name for name in after if "reconstruction" in name and after[name] != before[name]]
    out = capsys.readouterr().out
    assert "judged by toy" in out
    assert "Naming no excerpt scores 0.714" in out
    record = record_of(run)
    assert set(record["scores"]) == set(record["metrics"]) == {"detection", "saebench_detection"}
    details = record["details"]
    assert details["judge"]["judge"] == {"model": "toy", "base_url": server.base_url}
    assert details["judge"]["prompts"]["detection"]["version"] == "3"
    assert details["judge"]["excerpts_per_question"] == 10
    assert len(details["judge"]["prompts"]["explain"]["sha256"]) == 64
    assert details["cost"]["prompt_tokens"] == 100 * details["cost"]["calls"]
    assert details["interpretation"]["tokens"] >= 480
    values = [value for value in details["values"]["detection"] if value is not None]
    assert values
    assert record["scores"]["detection"]["value"] == 0.5
    assert record["scores"]["detection"]["n"] == len(values)
    for latent in latents_of(run):
        assert latent["explanation"] == "something"
        assert latent["judge"] == details["judge"]
    roles = {answer["role"] for latent in latents_of(run) for answer in latent["answers"]}
    assert roles == {"explain", "score"}

    n = len(server.requests)
    assert judged(settings, run, server, **{"--autointerp-scorers": ("detection", "saebench_detection")}) == 0
    assert len(server.requests) == n
    assert files(run) == after
    assert bench(*flags(settings | {"--latents": 3, "--out": run}), "--quiet") == 0
    assert files(run)["run.json"] == before["run.json"]
    assert record_of(run) == record, "asked for without a judge, what a judge said stands"


def test_other_scorers_make_the_record_again_out_of_the_cache(settings, run, server):
    assert judged(settings, run, server, **{"--autointerp-scorers": "detection"}) == 0
    n = len(server.requests)
    assert judged(settings, run, server, **{"--autointerp-scorers": ("detection", "fuzzing")}) == 0
    assert set(server.kinds[n:]) == {"fuzzing"}
    assert set(record_of(run)["scores"]) == {"detection", "fuzzing"}


def test_answers_that_never_came_are_shown_and_asked_for_again(settings, run, server, capsys):
    server.fault = lambda n: "html" if n == 0 else "refusal" if n == 1 else None
    assert judged(settings, run, server, **{"--judge-concurrency": 1}) == 0
    out = capsys.readouterr().out
    assert "answers failed or were cut short: 1 malformed, 1 refusal" in out
    lost = [answer["failure"] for latent in latents_of(run) for answer in latent["answers"] if answer["failure"]]
    assert sorted(lost) == ["malformed", "refusal"]
    server.fault = lambda n: None
    assert judged(settings, run, server) == 0
    assert record_of(run, "topk")["details"]["failures"] == {}


def test_a_judge_that_cannot_be_used_is_a_failure_on_record_and_the_rest_stands(settings, run, server, capsys):
    server.fault = lambda n: "404"
    assert judged(settings, run, server) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 2
    assert "404" in record_of(run)["failure"]
    assert json.loads(next(run.glob("records/topk*.reconstruction.json")).read_text())["failure"] is None
    server.fault = lambda n: None
    assert judged(settings, run, server) == 0


def test_no_key_is_no_judge_where_that_is_asked_for(settings, run, capsys):
    command = settings | {"--latents": 3, "--out": run, "--judge-model": "gpt-4o-mini"}
    assert bench(*flags(command), "--quiet") == 2
    assert "no key in OPENAI_API_KEY" in capsys.readouterr().err
    assert bench(*flags(command), "--quiet", "--judge-optional") == 0
    assert "no judge" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_judge_that_is_not_there_ends_a_run_before_a_model_loads(settings, tmp_path, capsys, monkeypatch, more):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sae_bench.runs.workbench.Workbench.outline", load)
    monkeypatch.setattr("sae_bench.runs.dry_run.model_shape", load)
    with fake_judge() as gone:
        pass
    with hostile_judge(lambda request, body: request.send({"error": "who?"}, status=401)) as locked:
        for server, words in ((gone, "no judge can be reached there"), (locked, "set JUDGE_API_KEY")):
            command = settings | {"--judge-model": "toy", "--judge-base-url": server.base_url, "--out": tmp_path / "x"}
            assert bench(*flags(command), "--quiet", *more) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"--judge-base-url {server.base_url}: " in line
            assert words in line
            assert "--judge-optional" in line
            with pytest.raises(AssertionError, match="a model was loaded"):
                main([str(part) for part in (*flags(command), "--quiet", "--judge-optional", *more)])


def test_a_judge_that_goes_away_is_a_counted_failure_and_the_rest_stands(settings, run, capsys):
    with fake_judge() as gone:
        pass
    assert judged(settings, run, gone, "--judge-optional") == 1
    assert record_of(run)["details"]["failures"] == {"connection": 3}
    assert "3 connection" in capsys.readouterr().out


def test_a_dry_run_states_what_the_judge_costs_as_the_run_does(settings, run, tmp_path, server, capsys):
    prices = tmp_path / "prices.toml"
    prices.write_text('["toy"]\ninput = 1000\noutput = 1000\n')
    asked = {"--latents": 3, "--judge-model": "toy", "--judge-base-url": server.base_url, "--judge-prices": prices}
    command = settings | asked | {"--judge-budget": "1usd"}
    assert bench(*flags(command | {"--out": tmp_path / "new"}), "--dry-run", "--chance") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("judge "))
    found = re.fullmatch(
        r"judge +toy: ([\d,]+) calls, about ([\d,]+) \+ ([\d,]+) tokens \(prompts \+ answers\), \$([\d.]+); at the "
        r"very most ([\d,]+) \+ ([\d,]+) tokens .*; --judge-budget counts .* ends it before that \(computed\)",
        line,
    )
    assert found, line
    calls, read, written, dollars, most_read, most_written = (float(text.replace(",", "")) for text in found.groups())
    assert calls == 3 * 3 * (1 + 4 + 2), "2 SAEs and a random one; explain, 4 of detection, 2 of fuzzing"
    assert dollars == pytest.approx((read + written) / 1000, abs=0.01)
    assert 2 * read < most_read
    assert written < most_written
    assert not server.requests

    assert bench(*flags(command | {"--out": run, "--judge-budget": "200usd"})) == 0
    body = sum(len(json.dumps(request, ensure_ascii=False)) for request in server.requests)
    assert len(server.requests) <= calls * 2 / 3
    assert body / len(server.requests) <= 1.2 * most_read / calls, "excerpts of this corpus are no longer than prose"


def test_chance_has_a_row_of_its_own(settings, run, server, capsys):
    assert judged(settings, run, server, "--chance") == 0
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if line.startswith("random (chance)"))
    assert "not measured" in row
    (path,) = run.glob("records/random*.json")
    record = read_sealed(path)
    assert record["sae"]["training"] == {"failure": None}
    assert len(record["details"]["latents"]) == 3
    assert bench("compare", run, "--metric", "fve") == 0, "it takes no part in comparisons of trained ones"
    assert "random" not in capsys.readouterr().out


def test_runs_of_different_judges_are_refused_a_common_table(settings, run, server, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    assert judged(settings, run, server) == 0
    assert bench("table", run, other) == 0, "one that was not judged is no contradiction"
    assert judged(settings, other, server, **{"--judge-model": "toy-2"}) == 0
    capsys.readouterr()
    assert bench("table", run, other) == 2
    assert "different judges" in capsys.readouterr().err


def test_latents_go_when_the_weights_do(settings, run):
    shutil.rmtree(next(run.glob("saes/topk*")))
    shutil.rmtree(run / "checkpoints")
    command = settings | {"--tasks": "reconstruction", "--out": run}
    before = {path.name for path in (run / "latents").iterdir()}
    path = next(run.glob("collections/topk*"))
    path.write_text(path.read_text().replace("weights_sha256", "weights_sha257"))
    assert bench(*flags(command), "--quiet") == 0
    assert {path.name for path in (run / "latents").iterdir()} == before, "the run's other tasks are its tasks still"
    assert "weights_sha257" not in path.read_text(), "they were collected again"
    assert bench(*flags(command), "--quiet", "--overwrite") == 0
    assert not (run / "latents").exists()


def test_a_damaged_latent_is_collected_again(settings, run):
    path = next(run.glob("latents/topk*/*.json"))
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert bench(*flags(settings | {"--latents": 3, "--out": run}), "--quiet") == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("which", ["latents/topk*/*.json", "collections/topk*.json"])
def test_what_a_judge_said_outlives_a_flipped_byte(settings, run, server, which, capsys):
    """`verify` finds it. What was lost is asked of the cache of answers again; without a judge the record says so."""
    assert judged(settings, run, server) == 0
    whole, n = files(run), len(server.requests)
    path = next(run.glob(which))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert bench("verify", run, "--quiet") == 1
    assert f"{path} is not" in capsys.readouterr().out
    torn = Path(shutil.copytree(run, run.parent / "torn"))
    assert judged(settings, run, server) == 0
    assert len(server.requests) == n
    now = files(run)
    assert {name: now[name] for name in now if name.startswith(("latents", "collections"))} == {
        name: whole[name] for name in whole if name.startswith(("latents", "collections"))
    }
    assert bench("verify", run, "--quiet") == 0
    assert bench(*flags(settings | {"--latents": 3, "--out": torn}), "--quiet") == 0
    assert sum(latent["judge"] is None for latent in latents_of(torn)) == which.startswith("latents")
    said = [remark for remark in record_of(torn)["remarks"] if "give --judge-model to judge anew" in remark]
    assert len(said) == which.startswith("latents")
    remarks = record_of(torn)["remarks"]
    assert bench(*flags(settings | {"--latents": 3, "--out": torn}), "--quiet") == 0
    assert record_of(torn)["remarks"] == remarks, "it is said once"


def test_one_latent_is_shown_in_the_terminal(settings, run, server, capsys):
    assert judged(settings, run, server) == 0
    path = next(run.glob("latents/topk*/*.json"))
    capsys.readouterr()
    assert bench("explain", run, "topk", "--latent", path.stem) == 0
    out = capsys.readouterr().out
    assert f"latent {path.stem}" in out
    assert '"something" (toy)' in out
    assert re.search(r"\[[^|\]]+\|\d+\]", out), "active tokens stand in brackets with their strength"
    assert "detection" in out
    for arguments, words in (
        ((run, "topk", "--latent", "99999"), "was not collected"),
        ((run, "tupk", "--latent", "1"), 'unknown SAE "tupk" (known: jumprelu.'),
        ((run / "saes", "topk", "--latent", "1"), "holds no latents"),
    ):
        assert bench("explain", *arguments) == 2
        assert words in capsys.readouterr().err


def test_tokens_command_no_terminal():
    text = highlighted(["\x1b[31m", " a\n", "\u202e", "b"], [0, 1, 0, 2], 2, colour=False)
    assert text == "\ufffd[31m[ a |5]\ufffd[b|10]"
    assert highlighted(["b"], [2], 2, colour=True) == "\x1b[30;48;5;51mb\x1b[0m"


def test_a_dry_run_states_the_memory_of_collecting(settings, tmp_path, capsys):
    command = settings | {"--out": tmp_path / "run", "--latents": 1000, "--interp-tokens": "2M"}
    assert bench(*flags(command), "--dry-run") == 0
    assert "1,000 of each SAE from 2,000,000 more held-out tokens, collected in about" in capsys.readouterr().out


MISTAKES = {
    "budget": ({"--judge-budget": "plenty"}, ["plenty", "write 5usd"]),
    "price": (
        {"--judge-model": "toy", "--judge-base-url": "http://x/v1", "--judge-budget": "$5"},
        ['"toy"', "--judge-prices"],
    ),
    "scorer": ({"--autointerp-scorers": "detectoin"}, ['unknown scorer "detectoin"', 'did you mean "detection"']),
    "model": ({"--judge-base-url": "http://x/v1"}, ["--judge-base-url", "--judge-model"]),
    "prices": ({"--judge-model": "t", "--judge-base-url": "http://x/v1", "--judge-prices": "none.toml"}, ["none.toml"]),
    "tokens": ({"--latents": 3, "--interp-tokens": 90_000}, ["90000", "--interp-tokens"]),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(settings, run, capsys, changed, parts):
    assert bench(*flags(settings | {"--latents": 4, "--out": run} | changed), "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [part for part in parts if part not in line] == []
