"""Claims, section by section, as people read them: how many are answered, and each verdict with its numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sae_bench.errors import UserError, one_line
from sae_bench.leaderboard.claims import METRICS, check_claims
from sae_bench.leaderboard.compare import Comparison, comparisons
from sae_bench.leaderboard.later_claims import LATER_CLAIMS
from sae_bench.leaderboard.later_claims import METRICS as LATER_METRICS
from sae_bench.leaderboard.latex_tables import table_float
from sae_bench.leaderboard.matched import default_l0s
from sae_bench.leaderboard.notes import across
from sae_bench.leaderboard.power import power_of
from sae_bench.leaderboard.render import escape_csv, escape_latex, escape_markdown
from sae_bench.leaderboard.setting import Setting
from sae_bench.leaderboard.verdicts import JudgedClaim
from sae_bench.records.schema import Record

COLUMNS = r"p{.75\linewidth}l"
"""Of a table for papers: claims are sentences, on as many lines as they take."""

Found = Sequence[tuple[Comparison, JudgedClaim]]


@dataclass(frozen=True)
class Section:
    """Claims that belong together, judged in every setting."""

    title: str
    found: Found
    l0s: Sequence[float] | None = None
    """Where they were read, if not at the default of each setting."""

    @property
    def summary(self) -> str:
        return summary(self.found)


def sections(records: Sequence[Record], l0s: Sequence[float] | None = None) -> list[Section]:
    """Every claim, judged on a board's records, with what its metrics can tell there.

    At `l0s`, or in every setting at those that it is compared at by default: a verdict is the same whatever other
    settings stand beside it.
    """
    found = {
        "Findings of the JumpReLU paper": [
            one
            for comparison in comparisons(records, METRICS)
            for one in check_claims([comparison], l0s or default_l0s(comparison.records))
        ],
        "Later claims": [
            (comparison, check(comparison, l0s or default_l0s(comparison.records)))
            for comparison in comparisons(records, LATER_METRICS, controls=True)
            for check in LATER_CLAIMS
        ],
    }
    return [Section(title, with_noise_floors(of, l0s), l0s) for title, of in found.items()]


def with_noise_floors(found: Found, l0s: Sequence[float] | None = None) -> Found:
    """With each claim what its metrics can tell: their noise floors and smallest differences, as `power` has them."""
    floors: dict[tuple[Setting, str], list[str]] = {}
    for comparison, judged in found:
        for metric in judged.metrics:
            if (key := (comparison.setting, metric)) not in floors:
                floors[key] = _noise_floor(comparison, metric, l0s or default_l0s(comparison.records))
    return [
        (comparison, replace(judged, numbers=(*judged.numbers, *of)))
        for comparison, judged in found
        for of in [[line for metric in judged.metrics for line in floors[comparison.setting, metric]]]
    ]


def _noise_floor(comparison: Comparison, metric: str, l0s: Sequence[float]) -> list[str]:
    """A line; none with one seed, which says nothing of another."""
    power = power_of(comparison, metric, l0s)
    if power is None or power.noise is None or (least := power.smallest_difference()) is None:
        return []
    return [f"{metric} tells a difference of {least:.2g} (80%, as one of all); noise floor {power.noise:.2g}"]


def summary(found: Found) -> str:
    """How many claims are answered: one in several settings counts in each."""
    of = Counter(judged.verdict for _, judged in found)
    hold, not_held, untold = of["holds"], of["does not hold"], of["cannot tell"]
    return (
        f"{hold + not_held} of {len(found)} claims are answered: {hold} {'holds' if hold == 1 else 'hold'}, {not_held} "
        f"{'does' if not_held == 1 else 'do'} not hold; {untold} cannot be told."
    )


def total(of: Sequence[Section]) -> str:
    """The summary of all sections; of several settings also how many claims have an answer in any of them.

    And which L0s were read off curves, between SAEs that lie far apart.
    """
    found = [one for section in of for one in section.found]
    settings = {comparison.setting: comparison for comparison, _ in found}
    once = _answered_once(found, "setting") if len(settings) > 1 else ""
    asked = next((section.l0s for section in of if section.l0s), None)
    l0s = {l0 for comparison in settings.values() for l0 in asked or default_l0s(comparison.records)}
    return " ".join(filter(None, [summary(found), once, across([*settings.values()], sorted(l0s))]))


def _answered_once(found: Found, where: str) -> str:
    asked, answered = (
        {judged.claim for _, judged in found if judged.verdict not in left_out} for left_out in ((), ("cannot tell",))
    )
    return f"In one {where} at least, {len(answered)} of {len(asked)} different ones are answered."


def written_of_each(form: str, runs: Mapping[str, Sequence[Section]]) -> str:
    """The sections of several runs, by name, as text or md: each run by itself, and what any of them answers.

    Raises:
        UserError: the form is another one, which has one run's claims.
    """
    if form not in ("text", "md"):
        raise UserError(f"--each --format {form}: of several runs there is text or md; ask for each run by itself")
    found = [one for of in runs.values() for section in of for one in section.found]
    parts = [
        (f"# {escape_markdown(name)}\n\n" if form == "md" else f"{one_line(name)}: ") + written(form, of)
        for name, of in runs.items()
    ]
    return "\n".join([f"{summary(found)} {_answered_once(found, 'run')}\n", *parts])


def written(form: str, of: Sequence[Section], facts: str = "") -> str:
    """All sections as text, md, tex or csv; `facts`: what they were made from, a comment of the LaTeX."""
    return {"text": _text, "md": _markdown, "csv": _csv}[form](of) if form != "tex" else _latex(of, facts)


def _text(of: Sequence[Section]) -> str:
    lines = [total(of)]
    for section in of:
        lines += ["", f"{section.title}: {section.summary}"]
        for comparison, judged in section.found:
            lines.append(f"{judged.verdict}: {judged.claim} ({one_line(str(comparison.setting))})")
            lines += [f"    {number}" for number in judged.numbers]
    return "\n".join(lines) + "\n"


def _markdown(of: Sequence[Section]) -> str:
    lines = ["# Claims, checked on these records", "", total(of), ""]
    for section in of:
        lines += [f"## {section.title}", "", section.summary, ""]
        for comparison, judged in section.found:
            lines.append(
                f"- **{judged.verdict}**: {escape_markdown(judged.claim)} ({escape_markdown(str(comparison.setting))})"
            )
            lines += [f"    - {escape_markdown(number)}" for number in judged.numbers]
        lines.append("")
    return "\n".join(lines)


def _csv(of: Sequence[Section]) -> str:
    import pandas as pd

    rows = [
        (section.title, judged.claim, judged.verdict, str(comparison.setting), "; ".join(judged.numbers))
        for section in of
        for comparison, judged in section.found
    ]
    header = ["section", "claim", "verdict", "setting", "numbers"]
    return pd.DataFrame([[escape_csv(cell) for cell in row] for row in rows], columns=header).to_csv(index=False)


def _latex(of: Sequence[Section], facts: str) -> str:
    """Claims and verdicts, a float for each section and setting; the numbers are in the Markdown."""
    drawn: list[str] = []
    for section in of:
        lines: dict[str, list[str]] = {}
        for comparison, judged in section.found:
            line = rf"{escape_latex(judged.claim)} & {judged.verdict} \\"
            lines.setdefault(one_line(str(comparison.setting)), []).append(line)
        for setting, rows in lines.items():
            about = f"{section.title}, on {setting}. {section.summary} Of all: {total(of)}"
            label = "tab:claims" + (f"-{len(drawn) + 1}" if drawn else "")
            drawn.append(table_float(COLUMNS, [r"claim & verdict \\"], rows, escape_latex(about), label))
    return "\n".join([f"% {one_line(facts)}\n", *drawn]) if drawn else ""
