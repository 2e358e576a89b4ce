"""`study results`: what raters said, printed and as records of the runs; `study power`: what a study takes."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number


def results(
    study: Annotated[Path, Parameter(help="The study's folder.")],
    runs: Annotated[list[Path] | None, Parameter(help="Where the study's runs are now, if they were moved.")] = None,
    /,
    *,
    no_records: bool = False,
) -> int:
    """Say what the raters of a study said, with intervals, and write it into results.json there.

    Each run of the study gets a record of task "human" for every SAE, so that table, compare, claims and report show
    it. May be repeated at any time: answers that are missing are counted, and the output says that it is partial.

    Args:
        no_records: Leave the runs as they are.
    """
    from sae_bench.records.files import write_sealed
    from sae_bench.study import human_records, results_text
    from sae_bench.study.ratings import read_ratings
    from sae_bench.study.results import RESULTS, results_of
    from sae_bench.study.schema import StudyFolder

    folder = StudyFolder(study)
    human_records.check_runs(runs or [])
    ratings = read_ratings(folder)
    found, problems = human_records.runs_of(ratings, runs or [])
    said = human_records.with_judges(results_of(ratings), ratings, found)
    write_sealed(study / RESULTS, said)
    print(results_text.written(said), end="")
    if no_records:
        return 0
    written = human_records.write_records(said, ratings, found)
    print(f"\n{len(written)} records in {', '.join(sorted({str(path.parent) for path in written})) or 'no run'}")
    for problem in problems:
        print(f"no record: {problem}", file=sys.stderr)
    return 1 if problems else 0


def power(
    study: Annotated[Path | None, Parameter(help="A study to learn from, such as a pilot.")] = None,
    /,
    *,
    difference: Annotated[list[float] | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    raters: Annotated[int, Parameter(validator=Number(gte=2, lte=1000))] = 5,
    architectures: Annotated[int, Parameter(validator=Number(gte=2, lte=100))] = 2,
    share: Annotated[float | None, Parameter(validator=Number(gt=0, lt=1))] = None,
    alpha: Annotated[float | None, Parameter(validator=Number(gte=0, lt=1))] = None,
    form: Annotated[Literal["text", "md"], Parameter(name="--format")] = "text",
) -> int:
    """Say how many latents and raters tell architectures apart by the share of latents that raters call interpretable.

    Args:
        difference: Differences of shares to tell, .1 for ten points. Default: .1 .2 .3.
        raters: How many there are.
        architectures: How many are compared, controls included; all pairs are judged together.
        share: Without a study: the share of yes to reckon with. Default: .5, which takes most latents.
        alpha: Without a study: Krippendorff's alpha to reckon with. Default: .4.
        form: text or md.
    """
    from sae_bench.errors import UserError
    from sae_bench.study.power import Variances, written
    from sae_bench.study.ratings import read_ratings
    from sae_bench.study.schema import StudyFolder

    if study is None:
        variances = Variances.assumed(0.5 if share is None else share, 0.4 if alpha is None else alpha)
    else:
        if share is not None or alpha is not None:
            raise UserError("--share and --alpha are for planning without a study: leave them out, or the study")
        learned = Variances.of(read_ratings(StudyFolder(study)))
        if learned is None:
            raise UserError(f"{study} has too few answers to learn from: no latent of an architecture was seen twice")
        variances = learned
    style = {"text": "simple", "md": "github"}[form]
    print(written(variances, difference or [0.1, 0.2, 0.3], raters, architectures, style), end="")
    return 0
