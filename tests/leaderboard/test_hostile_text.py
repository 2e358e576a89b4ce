"""Text from strangers in records: shown as it was given, and no command, formula or markup of what shows it."""

import csv
import html
import io
import re

import pytest
from one_row import METRICS, cells, record
from synthetic import typed

from sae_bench.errors import one_line
from sae_bench.leaderboard import board_table
from sae_bench.leaderboard import tables as leaderboard
from sae_bench.leaderboard.render import escape_csv, escape_latex, escape_markdown


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
