"""Tables that fit a terminal and a page; what is left out is named, and what missed its L0 is marked."""

import re
import shutil
import subprocess

import pytest
from synthetic import EFFECT, HOSTILE, records, typed, write_run

from sae_bench.leaderboard import board_table, captions, order, tables
from sae_bench.leaderboard.fitting import broken
from sae_bench.leaderboard.latex_tables import N_LINES

LONG = "jumprelu:penalty=quadratic,frequency_scale=0.1,bandwidth=0.001"
SITES = ("layer_9.resid_post", "layer_1.mlp_out")


def of_task(task, **changes):
    """A record of the board's first SAE by a task of its own, with no value."""
    (one,) = [r for r in records(("gated",), (16.0,), (0,)) if r["task"] == "feature_density"]
    metrics = {"detection": one["metrics"]["dead_share"] | {"name": "detection", "better": "up"}}
    return one | {"task": task, "metrics": metrics, "scores": {}} | changes


@pytest.fixture(scope="module")
def board():
    """Five architectures, one of a long name, at two sites; relu and topk missed L0 16 at seed 0."""
    of = records((*EFFECT, LONG), (16.0, 64.0), sites=SITES)
    for one in of:
        if one["sae"]["label"] in ("relu", "topk") and one["sae"]["target_l0"] == 16.0 and "l0" in one["scores"]:
            l0 = {"relu": 17.7, "topk": 14.3}[one["sae"]["label"]]
            one["scores"]["l0"]["value"] = l0
            one["by_document"]["active"] = [l0 * n for n in one["by_document"]["tokens"]]
    return typed(of)


@pytest.mark.parametrize("wide", [80, 100, 130, 200])
def test_no_line_is_wider_than_the_terminal_and_what_finds_no_room_is_named(board, wide):
    text = board_table.terminal(board, wide)
    assert max(map(len, text.splitlines())) <= wide
    header = text[: text.index("gated")]
    told = text.partition("No room for ")[2].partition(":")[0]
    for name in tables.headline(board):
        shown = name in header.replace("\n", " ") or all(part in header for part in name.split("_"))
        assert shown != (name in told.split("\n", 1)[0].replace(" ↓", "").replace(" ↑", "").split(", ")), name


def test_a_narrow_table_keeps_l0_and_the_primary_metric_and_then_one_of_each_task(board):
    assert tables.foremost(board, tables.headline(board))[:3] == ["delta_lm_loss", "fve", "dead_share"]
    text = board_table.terminal(board, 40)
    assert len(re.findall("^l0|  l0$|  l0 ", text, re.M)) == len(SITES)
    assert "delta_lm_" in text


def test_columns_that_are_asked_for_are_all_there_in_tables_below_each_other(board):
    text = board_table.table(board, columns=["l0", "fve", "fvu", "gamma", "delta_lm_loss", "dead_share"], wide=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "No room" not in text
    assert text.count("fvu") == len(SITES)
    assert text.count("  l0") > len(SITES), "what rows are of, and L0, stand in every table"
    assert board_table.table(board, columns=["all"], wide=80).count("gamma_") >= len(SITES)


def test_settings_have_tables_of_their_own_and_every_row_is_in_one(board):
    text = board_table.terminal(board, 80)
    assert [line for line in text.splitlines() if line.startswith("site ")] == [f"site {s}" for s in sorted(SITES)]
    assert len(re.findall(r"^topk ", text, re.M)) == 2 * 2 * len(SITES)


def test_a_long_name_is_broken_and_not_cut(board):
    text = broken(LONG, 27)
    assert text.replace("\n", "") == LONG
    assert max(map(len, text.split("\n"))) <= 27
    assert text.split("\n")[0] == "jumprelu:penalty=quadratic,"
    assert broken("x" * 7, 3) == "xxx\nxxx\nx"


def test_an_l0_more_than_a_tenth_off_its_target_is_marked_and_the_mark_explained(board):
    missed = {sae for _, sae in order.missed(board)}
    assert missed == {r.sae.id for r in board if r.sae.label in ("relu", "topk") and r.sae.target_l0 == 16.0}
    for form in ("text", "md", "tex"):
        text = board_table.table(board, form)
        assert "! has an L0 more than 10" in text.replace("\n", " "), form
    rows = [line.split() for line in board_table.terminal(board).splitlines() if line.startswith(("relu", "topk"))]
    assert {("!" in row, row[1]) for row in rows} == {(True, "16"), (False, "64")}
    rows = [line.split() for line in board_table.table(board, over_seeds=True).splitlines()]
    assert {("!" in row, row[1]) for row in rows if row[:1] in (["relu"], ["topk"])} == {(True, "16"), (False, "64")}
    fine = [r for r in board if r.sae.target_l0 == 64.0]
    assert "!" not in board_table.terminal(fine)


def test_a_tenth_either_way_is_no_miss():
    assert not order.is_missed(17.59, 16.0)
    assert order.is_missed(17.61, 16.0)
    assert order.is_missed(14.39, 16.0)
    assert not order.is_missed(1000.0, None), "no L0 was wanted"


def test_a_column_without_a_value_is_hidden_and_the_caption_says_why(board):
    nothing = typed([of_task("autointerp", not_measured="no judge")])
    of = [*board, *nothing]
    assert "detection" not in tables.headline(of)
    assert "No column for detection: no judge." in captions.caption(of)
    remedy = typed([of_task("autointerp", not_measured="no judge", caption="no judge: give --judge-model")])
    told = captions.caption([*board, *remedy])
    assert "No column for detection: no judge: give --judge-model." in told
    assert told.count("no judge") == 1, "said once"
    assert "detection" in board_table.table(of, "csv", ["detection"]), "asked for, it is there"
    failed = typed([of_task("autointerp", failure="no answer")])
    assert "detection" in tables.headline([*board, *failed]), "a failure is a row's, and shown"


def test_a_table_for_a_paper_has_captions_labels_and_no_advice(board):
    text = tables.latex(board)
    labels = re.findall(r"\\label\{(.+?)\}", text)
    assert len(labels) == len(set(labels)) == text.count(r"\caption{") == text.count(r"\begin{table}") > 1
    assert labels[0] == "tab:leaderboard"
    (caption, *_) = re.findall(r"\\caption\{(.+)\}", text)
    assert "held-out tokens of 30 documents" in caption
    assert "Versions" not in caption
    assert "fingerprint" not in caption
    assert re.search("^% .*fingerprint f{12}.*Versions", text, re.M), "all that is to be known is a comment"
    for table in text.split(r"\begin{table}")[1:]:
        assert table.count("\n") < N_LINES + 20


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_no_table_is_wider_or_longer_than_a_page(board, tmp_path):
    text = tables.latex(board).encode("ascii", "replace").decode()
    head = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    (tmp_path / "t.tex").write_text(head + text + "\n\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout


def test_commands_take_the_width_of_the_terminal(tmp_path, capsys, monkeypatch):
    from command import bench

    run = write_run(tmp_path / "run", records((*EFFECT, HOSTILE), (16.0,)))
    for wide in ("80", "130"):
        monkeypatch.setenv("COLUMNS", wide)
        for verb in (["table"], ["table", "--over-seeds"], ["table", "--columns", "all"], ["compare"]):
            assert bench(verb[0], run, *verb[1:]) == 0
            assert max(map(len, capsys.readouterr().out.splitlines())) <= int(wide), verb
    monkeypatch.delenv("COLUMNS")
    assert bench("table", run) == 0
    assert "No room" not in capsys.readouterr().out, "in a file there is room"
