"""The board from records made by hand: what a cell says, what is refused, what is escaped."""

import copy
import csv
import html
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import filled, typed

from sae_bench.errors import UserError, one_line
from sae_bench.leaderboard import board_table, captions
from sae_bench.leaderboard import tables as leaderboard
from sae_bench.leaderboard.load import gather
from sae_bench.leaderboard.render import escape_csv, escape_latex, escape_markdown, with_error
from sae_bench.records.files import write_sealed

ROOT = Path(__file__).parents[2]

METRICS = {
    "fve": {"name": "fve", "better": "up", "unit": "", "description": "", "headline": True},
    "l0": {"name": "l0", "better": None, "unit": "latents", "description": "", "headline": True},
    "cosine": {"name": "cosine", "better": "up", "unit": "", "description": "", "headline": False},
}


def record(label="topk", l0=32.0, *, target=32.0, seed=0, task="reconstruction", failure=None, run="a", **fve):
    score = {"value": 0.91234, "stderr": 0.00567, "n": 4096, "formula": None, "note": None}
    scores = {"fve": score | fve, "l0": score | {"value": l0, "stderr": 0.25}, "cosine": score}
    return {
        "task": task,
        "task_version": "1",
        "failure": failure,
        "metrics": METRICS,
        "scores": {} if failure else scores,
        "sae": {
            "id": f"{label}.{target}.seed{seed}", "label": label, "site": {"name": "layer_9.resid_post"}, "d_sae": 2048,
            "target_l0": target, "coefficient": None, "seed": seed, "training": {"tokens_seen": 524_288},
        },
        "provenance": {
            "model": "tiny", "dataset": "corpus", "preset": "short", "eval_fingerprint": "f" * 64,
            "eval_documents": 40, "config_hash": run * 64,
            "versions": {"sae-arch-bench": "0.1.0"},
        },
    }  # fmt: skip


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


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


def test_hostile_text_is_printed_and_not_run_by_latex():
    label = r"a_b:x=50%&$\input{passwd}#~^"
    tex = leaderboard.latex(typed([record(label)]))
    assert r"a\_b:x=50\%\&\$\textbackslash{}input\{passwd\}\#\textasciitilde{}\textasciicircum{}" in tex
    assert r"\input" not in tex
    assert r"32.00 $\pm$ 0.25" in tex


def test_every_special_character_of_latex_is_escaped():
    assert escape_latex(r"# $ % & _ { } ~ ^ \ ± < > | [ ] *").split() == [
        r"\#", r"\$", r"\%", r"\&", r"\_", r"\{", r"\}", r"\textasciitilde{}", r"\textasciicircum{}",
        r"\textbackslash{}", r"$\pm$", r"\textless{}", r"\textgreater{}", r"\textbar{}", "{[}", "{]}", "{*}",
    ]  # fmt: skip


HOSTILE = "\n\n| a | <img src=x onerror=alert(1)> [x](javascript:y) `b` *c* _d_ ~~e~~ $f$ &lt; \\| {{g}}\r\x1b[2J\u202e"


def hostile_records():
    """Text from strangers wherever a record holds any, and a second SAE so that every key has its column."""
    records = [record(HOSTILE), record(HOSTILE, failure=f"no {HOSTILE}", task=HOSTILE, target=8.0, run="b")]
    for i, one in enumerate(records):
        one["sae"] |= {"id": f"{i}{HOSTILE}", "site": {"name": f"{i}{HOSTILE}"}}
        one["provenance"] |= {"model": f"{i}{HOSTILE}", "dataset": HOSTILE, "preset": HOSTILE}
        name = f"{HOSTILE}metric"
        one["metrics"] = METRICS | {name: METRICS["fve"] | {"name": name}}
    return records


def test_hostile_text_breaks_no_table_and_no_page_of_markdown():
    text = leaderboard.markdown(typed(hostile_records()))
    header, _, *body = cells(text)
    assert [len(row) for row in body] == [len(header)] * 2
    assert header[:4] == ["model", "site", "architecture", "target"]
    assert [html.unescape(row[2]) for row in body] == [one_line(HOSTILE)] * 2, "it is shown as it was given"
    assert not re.search(r"[<>`\[\]{}\\~$]|&(?!#\d+;)|\*|(?<!\w)_", re.sub(r"^\|[:|-]+\|$", "", text, flags=re.M))
    assert text.count("\n- ") == 1
    assert text.isprintable() or {char for char in text if not char.isprintable()} == {"\n"}


def test_hostile_text_breaks_no_table_of_latex():
    text = leaderboard.latex(typed(hostile_records()))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows if "multicolumn" not in row}) == 1
    names = "".join(row.partition(" & ")[0] for row in rows[-4:])
    assert names.replace(" ", "") == escape_latex(HOSTILE).replace(" ", ""), "broken, and whole"
    commands = set(re.findall(r"\\[A-Za-z]+", text))
    assert commands == {
        r"\begin", r"\end", r"\centering", r"\small", r"\label", r"\resizebox", r"\ifdim", r"\else", r"\fi",
        r"\width", r"\linewidth", r"\multicolumn", r"\emph", r"\toprule", r"\midrule", r"\bottomrule", r"\caption",
        r"\pm", r"\uparrow", r"\textbackslash", r"\textasciitilde", r"\textless", r"\textgreater", r"\textbar",
    }  # fmt: skip
    assert not [table for table in re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.S) if "\n\n" in table]
    bare = re.sub(r"\\(.)", "", text)
    assert bare.count("{") == bare.count("}")


def test_a_row_of_latex_that_begins_with_a_bracket_is_no_argument_of_the_row_before():
    assert leaderboard.latex(typed([record("[1pt] x"), record("*x")])).count("{[}1pt{]} x") == 1
    assert not re.search(r"\\\\\s*[\[*]", leaderboard.latex(typed([record("[1pt] x"), record("*x")])))


def test_hostile_text_reaches_the_terminal_as_text():
    text = board_table.terminal(typed(hostile_records()))
    assert {char for char in text if not char.isprintable()} == {"\n"}
    assert one_line(HOSTILE) in text
    assert sum(line.startswith("FAILED") for line in text.splitlines()) == 1


def test_names_as_they_are_stay_legible_in_markdown():
    names = "gated:penalty=ri_l1,lr=0.0005 layer_9.resid_post monology/pile-uncopyrighted 0.91 ± 0.01 ↑ (100%)"
    assert escape_markdown(names) == names


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-A1", "@sum(A1)", "\t=1+1", "\r\n=x", "\uff1dx", "-", "=", "-1+1"])
def test_a_formula_is_no_formula_in_the_csv(text):
    assert escape_csv(text).startswith("'")


@pytest.mark.parametrize("text", ["-1.5e-3", "+2", "-inf", "topk", "a=b", "a-b", ""])
def test_numbers_and_plain_text_stay_as_they_are_in_the_csv(text):
    assert escape_csv(text) == text


def test_the_csv_of_hostile_records_has_its_rows_and_no_formulas():
    records = [record("=cmd|' /C calc'!A0", failure="-2+3"), *hostile_records()]
    records[1]["scores"]["fve"]["note"] = "@SUM(1)"
    records[1]["scores"]["cosine"] |= {"value": -0.5}
    header, *rows = csv.reader(io.StringIO(leaderboard.csv(typed(records))))
    assert len(rows) == 3 + 4 + 4
    assert {len(row) for row in rows} == {len(header)}
    texts = [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@")]
    assert texts == ["-0.5"]
    assert "'-2+3" in rows[0]
    of = typed([record()])
    assert leaderboard.csv(of) == leaderboard.long_table(of).drop(columns=["layer", "not_measured"]).to_csv(index=False)


def test_the_same_sae_of_two_runs_is_two_rows(tmp_path):
    """Runs may differ in what an SAE's name does not say: tokens, preset, data."""
    folders = [save(tmp_path / run, record(run=run, value=value)) for run, value in (("a", 0.5), ("b", 0.9))]
    header, *_, one, other = cells(leaderboard.markdown(gather(folders)))
    assert header.index("run") < header.index("l0")
    fve = header.index("fve ↑")
    assert {one[fve][:3], other[fve][:3]} == {"0.5", "0.9"}
