"""The board from records made by hand: what a cell says, and what is refused."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from one_row import METRICS, cells, record
from synthetic import filled, typed

from sae_bench.errors import UserError
from sae_bench.leaderboard import board_table, captions
from sae_bench.leaderboard import tables as leaderboard
from sae_bench.leaderboard.load import gather
from sae_bench.leaderboard.render import with_error
from sae_bench.records.files import write_sealed

ROOT = Path(__file__).parents[2]


def save(folder, *records):
    (folder / "records").mkdir(parents=True)
    for i, one in enumerate(records):
        write_sealed(folder / "records" / f"{i}.json", filled(one))
    return folder


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.91234, 0.00567, "0.9123 ± 0.0057"),
        (31.72, 0.25, "31.72 ± 0.25"),
        (1234.5, 21.0, "1234 ± 21"),
        (0.5, None, "0.5"),
        (0.123456, 0.0, "0.1235"),
        (63.999939, 0.000061, "64"),
        (31.99982, 0.00018, "32"),
        (0.999902, 0.000095, "0.9999 ± 0.0001"),
        (1.00711, 0.00072, "1.0071 ± 0.0007"),
        (0.98663, 0.00100, "0.9866 ± 0.0010"),
        (0.0, 0.00093, "0.0000 ± 0.0009"),
        (123456.0, 0.3, "123456"),
        (-2e-7, 3e-9, "-2e-07 ± 3e-09"),
    ],
)
def test_a_value_has_the_places_that_its_error_leaves_it(value, stderr, text):
    assert with_error(value, stderr) == text


def test_the_front_comes_first_and_then_rows_by_architecture_and_measured_l0():
    records = [record("topk", 64, target=64, value=0.95), record("relu", 70, target=64), record("jumprelu", 33)]
    records += [record("jumprelu", 40, target=40), record("topk", 8.5, target=8)]
    header, _, *body = cells(leaderboard.markdown(typed(records)))
    assert header == ["architecture", "target", "mark", "l0", "fve ↑"]
    assert body == [
        ["topk", "8", "&#42;", "8.50 ± 0.25", "0.9123 ± 0.0057"],
        ["topk", "64", "&#42;", "64.00 ± 0.25", "0.9500 ± 0.0057"],
        ["jumprelu", "32", "", "33.00 ± 0.25", "0.9123 ± 0.0057"],
        ["jumprelu", "40", "", "40.00 ± 0.25", "0.9123 ± 0.0057"],
        ["relu", "64", "", "70.00 ± 0.25", "0.9123 ± 0.0057"],
    ]


@pytest.mark.parametrize("over_seeds", [False, True])
def test_layers_stand_in_the_order_of_their_numbers(over_seeds):
    """In the table, in the tables of groups, and in the caption."""
    of = [record() for _ in range(3)]
    for one, layer in zip(of, (10, 9, 2), strict=True):
        one["sae"] |= {"id": str(layer), "site": {"name": f"layer_{layer}.resid_post", "layer": layer}}
    order = [f"layer_{layer}.resid_post" for layer in (2, 9, 10)]
    assert re.findall(r"layer_\d+\.resid_post", board_table.table(typed(of), "csv", over_seeds=over_seeds)) == order
    text = board_table.table(typed(of), "text", over_seeds=over_seeds, group_by=["site"])
    assert re.findall(r"layer_\d+\.resid_post", text) == order * 2


def test_a_table_waits_for_nothing_that_it_does_not_need(tmp_path):
    """Of a second that a short command takes, these would be half."""
    code = f"""if True:
        import sys
        from sae_bench.cli.main import app
        app(["table", {str(save(tmp_path, record()))!r}], result_action="return_value")
        print(*sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "sae_bench.leaderboard.tables" in done.stdout.split()
    assert not {"torch", "pandas", "scipy.special", "matplotlib"} & {*done.stdout.split()}


def test_what_varies_gets_a_column():
    other = record(seed=1)
    other["sae"]["d_sae"] = 4096
    header, _, *body = cells(leaderboard.markdown(typed([record(), other])))
    assert header[:4] == ["width", "architecture", "target", "seed"]
    assert [row[:4] for row in body] == [["2048", "topk", "32", "0"], ["4096", "topk", "32", "1"]]


def test_undefined_failed_and_unmeasured_cells_say_so():
    undefined = record("a", value=None, stderr=None)
    failed = record("b", failure="diverged: loss nan at step 3")
    unmeasured = record("c")
    unmeasured["metrics"] = {name: METRICS[name] for name in ("l0", "cosine")}
    text = leaderboard.markdown(typed([undefined, failed, unmeasured]))
    _, _, *body = cells(text)
    assert [row[-1] for row in body] == ["undefined", "failed", "not measured"]
    assert body[1][2] == "failed"
    assert "- b.32.0.seed0: reconstruction: diverged: loss nan at step 3" in text
    assert "FAILED b.32.0.seed0: reconstruction" in board_table.terminal(typed([undefined, failed, unmeasured]))
    assert "nan" not in leaderboard.latex(typed([undefined, failed, unmeasured]))


def test_the_caption_says_what_was_counted():
    text = captions.caption(typed([record(), record("relu")]))
    for fact in (
        "Model tiny",
        "width 2048",
        "524,288 activations of corpus",
        "4,096 held-out tokens of 40 documents",
        "f" * 12,
    ):
        assert fact in text
    assert "variance between seeds is unknown" in text
    assert "variance between seeds" not in captions.caption(typed([record(), record(seed=1)]))


def test_the_caption_says_what_was_trained_on_and_warns_of_few_documents():
    one, other = record(), record("relu")
    assert "run of 13" not in captions.caption(typed([one]))
    assert "too small" not in captions.caption(typed([one]))
    one["sae"]["training"]["eval_overlap"], other["sae"]["training"]["eval_overlap"] = 0.0526, 0.061
    other["provenance"]["eval_documents"] = 19
    text = captions.caption(typed([one, other]))
    assert "5.3% to 6.1% of them lie in a run of 13 tokens that the training text has too." in text
    assert "of 19 to 40 documents" in text
    assert "Errors from 19 documents are too small: at least 30" in text


def test_the_board_is_a_pure_function_of_the_records(tmp_path):
    records = [record("relu", 30), record("topk", 32)]
    before = copy.deepcopy(records)
    written = []
    for run in (tmp_path / "a", tmp_path / "b"):
        leaderboard.write_board(run, typed(records))
        written.append({path.name: path.read_bytes() for path in run.iterdir()})
    assert set(written[0]) == {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "drawn.json"}
    assert written[0] == written[1]
    assert records == before


def test_the_csv_has_every_metric_with_its_error_and_count():
    table = leaderboard.long_table(typed([record()]))
    assert list(table["metric"]) == ["fve", "l0", "cosine"]
    assert set(table["n"]) == {4096}
    assert list(table["stderr"]) == [0.00567, 0.25, 0.00567]


def test_runs_on_one_set_of_tokens_share_a_table(tmp_path):
    runs = [save(tmp_path / "a", record()), save(tmp_path / "b", record("relu"))]
    assert [one.sae.label for one in gather(runs)] == ["topk", "relu"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one["provenance"].update(eval_fingerprint="0" * 64), "different evaluation tokens"),
        (lambda one: one.update(task_version="2"), "different versions of a task"),
        (lambda one: one["provenance"].update(model_fingerprint="b" * 64), "different language models of one name"),
    ],
)
def test_what_was_measured_differently_is_refused_a_common_table(tmp_path, change, words):
    one, other = record(), record("relu")
    for known in (one, other):
        known["provenance"]["model_fingerprint"] = "a" * 64
    change(other)
    runs = [save(tmp_path / "a", one), save(tmp_path / "b", other)]
    with pytest.raises(UserError, match=words):
        gather(runs)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no records"):
        gather([tmp_path])


def test_the_same_sae_of_two_runs_is_two_rows(tmp_path):
    """Runs may differ in what an SAE's name does not say: tokens, preset, data."""
    folders = [save(tmp_path / run, record(run=run, value=value)) for run, value in (("a", 0.5), ("b", 0.9))]
    header, *_, one, other = cells(leaderboard.markdown(gather(folders)))
    assert header.index("run") < header.index("l0")
    fve = header.index("fve ↑")
    assert {one[fve][:3], other[fve][:3]} == {"0.5", "0.9"}
