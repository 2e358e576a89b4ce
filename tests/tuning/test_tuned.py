"""The file that a run names with --recipe, and the part of the text that such a run leaves out."""

import shutil
from pathlib import Path

import pytest
from recipes import write_recipe

from sae_bench.demo.corpora import natural
from sae_bench.errors import UserError
from sae_bench.lm.near_duplicates import RULE, is_of, split_of
from sae_bench.probing.sets import SMALL
from sae_bench.records.files import write_sealed
from sae_bench.runs.arch_spec import ArchSpec
from sae_bench.runs.checks import check
from sae_bench.runs.config import RunConfig
from sae_bench.runs.plan import settle
from sae_bench.runs.suite import configure
from sae_bench.runs.tuned import TunedArch, read_recipe
from sae_bench.synthetic.samples import SampleStream

FOUND = {
    "topk": TunedArch(version="1", settings={"lr": 0.0123, "aux_coeff": 0.25, "dead_after": 0.02}),
    "gated:penalty=ri_l1": TunedArch(version="1", settings={"lr": 0.002}),
}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path / "night.toml", FOUND, split=RULE)


def test_a_run_trains_by_the_recipe_under_its_own_settings(recipe: str) -> None:
    read = read_recipe(recipe)
    assert read.archs == FOUND
    options, trained_by = settle(ArchSpec(name="topk"), "short", read)
    assert (options["aux_coeff"], trained_by.lr, trained_by.dead_after) == (0.25, 0.0123, 0.02)
    assert trained_by.grad_clip == settle(ArchSpec(name="topk"), "short")[1].grad_clip
    assert settle(ArchSpec(name="permuted"), "short", read) == (options, trained_by), "a control of topk has topk's"
    assert settle(ArchSpec(name="random"), "short", read) == settle(ArchSpec(name="random"), "short")


def test_a_run_with_a_recipe_is_another_run_and_a_board_without_the_text_that_was_tuned_on(recipe: str) -> None:
    flags = {"archs": ["topk"], "model": "demo"}
    plain, tuned = configure(None, flags), configure(None, flags | {"recipe": recipe})
    assert (plain.part, tuned.part) == (None, "board")
    assert not {"recipe", "part"} & plain.identity.keys(), "boards from before have their hash"
    assert tuned.hash != plain.hash
    assert RunConfig(**tuned.identity).hash == tuned.hash
    assert tuned.identity["recipe"]["name"] == "night", "no path of this machine"


def test_probes_are_not_asked_about_text_that_the_recipe_was_tuned_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the board itself is trained on: settings were chosen by what they do to the tuning's text."""
    monkeypatch.setattr(natural, "_version", lambda: "0.4.2")
    known = {"natural": natural.NaturalText().describe(), "other": "embedded docstrings"}
    flags = {"archs": ["topk"], "model": "demo", "probe_sets": ["8_news"]}
    for name, dataset in known.items():
        write_recipe(tmp_path / f"{name}.toml", FOUND, split=RULE, dataset=dataset)
    configure(None, flags | {"recipe": str(tmp_path / "other.toml")})
    configure(None, flags | {"recipe": str(tmp_path / "natural.toml"), "probe_sets": ["small", SMALL[0]]})
    with pytest.raises(UserError, match="--probe-sets 8_news: --recipe natural was tuned on these texts"):
        configure(None, flags | {"recipe": str(tmp_path / "natural.toml")})


def test_every_text_for_tuning_is_in_no_board_on_either_side() -> None:
    texts = [" ".join(f"word{(i * k) % 997}" for i in range(1, 30)) for k in range(1, 1501)]
    for side in ("train", "eval"):
        own = {text for text in texts if split_of(text) == side}
        board, tuning = ({text for text in texts if is_of(text, side, part)} for part in ("board", "tuning"))
        assert board | tuning == own == {text for text in texts if is_of(text, side, None)}
        assert not board & tuning
        assert len(tuning) == pytest.approx(len(own) / 5, abs=4 * (len(own) * 0.16) ** 0.5)


def test_samples_of_a_world_for_tuning_are_in_no_board() -> None:
    def seen(split: str, part: str | None) -> set[int]:
        stream = SampleStream("toy", split=split, context_size=2049, n_tokens=5000, part=part)
        return {int(number) for batch in stream.batches(2) for number in batch.tokens[:, 1:].flatten()}

    sides = [seen(split, part) for split in ("train", "eval") for part in (None, "tuning")]
    assert seen("train", "board") == sides[0]
    assert sum(map(len, sides)) == len(set().union(*sides))


@pytest.mark.parametrize(
    ("archs", "changes", "complaint"),
    [
        (["gated"], {}, r"has nothing for gated \(only for topk, gated:penalty=ri_l1\): tune them as it was"),
        (["topk"], {"preset": "paper"}, "is for --preset short"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(recipe: str, archs: list[str], changes: dict, complaint: str) -> None:
    def begin() -> None:
        config = configure(None, {"archs": archs, "model": "demo", "recipe": recipe, **changes})
        settle(config.archs[0], config.preset, config.recipe)

    with pytest.raises(UserError, match=complaint):
        begin()


def test_files_that_are_no_recipe_are_refused_by_name(tmp_path: Path) -> None:
    for content, complaint in (("arch = ['topk']", "this is none"), ("x = [", "not valid TOML"), ("[tuning]", "none")):
        (tmp_path / "other.toml").write_text(content)
        with pytest.raises(UserError, match=complaint):
            read_recipe(str(tmp_path / "other.toml"))
    with pytest.raises(UserError, match="No such file"):
        read_recipe(str(tmp_path / "missing.toml"))
    with pytest.raises(UserError, match='unknown recipe "nigth"'):
        read_recipe("nigth")


def test_a_recipe_that_its_trials_do_not_bear_out_is_refused(tmp_path: Path) -> None:
    """A copy with other settings, or of a longer search, would still be called tuned by every board."""
    path = Path(write_recipe(tmp_path / "night.toml", FOUND, split=RULE, rungs=2))
    whole = path.read_text()
    changes = {
        'lr" = 0.0123': ('lr" = 0.0246', "no trial of the check had its settings of topk: what was changed by hand"),
        "tokens = 4096": ("tokens = 8192", "says tokens 8192, and its trials 4096: bring back"),
        "trials = 1": ("trials = 9", "says trials 9, and its trials 1"),
        "check_seeds = 2": ("check_seeds = 3", "says check_seeds 3, and its trials 2"),
        "2.13.0": ("2.11.0", "says versions {'torch': '2.11.0'}, and its trials"),
        f'split = "{RULE}"': ("", "says split None, and its trials"),
        'dataset = "embedded"': ("", "says dataset None, and its trials 'embedded'"),
        "trials_sha256 = ": ("was = ", "this is none of them"),
        "rungs = 2": ("rungs = 64", "this is none of them"),
        "rungs = 2\n": ("rungs = 2.0\n", "this is none of them"),
    }
    for old, (new, complaint) in changes.items():
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match=complaint):
            read_recipe(str(path))


def test_trials_lie_beside_a_recipe_or_in_a_folder_of_its_name(tmp_path: Path) -> None:
    path, other = tmp_path / "night.toml", tmp_path / "other.toml"
    trials = path.with_suffix("")

    def refused(complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            read_recipe(str(path))

    write_recipe(path, FOUND)
    (trials / "check.json").rename(tmp_path / "check.json")
    refused(
        rf"not beside it \((check|rung_1)\.json\): name it in the folder where .* copy the trials, too, to {trials}"
    )
    (trials / "rung_1.json").rename(tmp_path / "rung_1.json")
    assert read_recipe(str(path)).archs == FOUND, "a folder of its name may be anything else"
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "link.toml").symlink_to(path)
    assert read_recipe(str(tmp_path / "away" / "link.toml")).archs == FOUND

    write_recipe(other, {"topk": FOUND["topk"]})
    shutil.copytree(other.with_suffix(""), trials, dirs_exist_ok=True)
    refused(f"the trials in {trials} are of another search: bring its own to {trials}")
    (trials / "check.json").write_text("{}")
    refused(f"its trials in {trials / 'check.json'} are damaged, or of another form")
    write_sealed(trials / "check.json", {"trials": 3})
    refused(f"its trials in {trials / 'check.json'} are damaged, or of another form")


def test_what_was_tuned_as_another_version_is_tuned_again(tmp_path: Path) -> None:
    old = {"topk": TunedArch(version="0", settings={"lr": 0.01})}
    path = write_recipe(tmp_path / "old.toml", old)
    for arch in ("topk", "permuted"):  # which is trained as topk is
        with pytest.raises(UserError, match="topk in version 0, which is 1 now: tune anew"):
            settle(ArchSpec(name=arch), "short", read_recipe(path))


def test_all_that_a_recipe_has_not_is_said_at_once_before_a_model_is_loaded(tmp_path: Path) -> None:
    found = {name: TunedArch(version=version, settings={}) for name, version in (("topk", "0"), ("gated", "1"))}
    path = write_recipe(tmp_path / "night.toml", found, split=RULE)
    archs = ["topk", "gated", "relu", "random", "jumprelu:bandwidth=0.002"]
    config = configure(None, {"archs": archs, "model": "demo", "recipe": path})
    with pytest.raises(UserError) as error:
        check(config, ())
    assert str(error.value) == (
        "--recipe night has nothing for relu, jumprelu:bandwidth=0.002 (only for topk, gated) and topk in version 0, "
        "which is 1 now: tune anew with these (`python bench.py tune --arch relu jumprelu:bandwidth=0.002 topk ...`), "
        "or leave them out"
    )
