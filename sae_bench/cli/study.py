"""`study`: people, blind to the SAE, say what latents mean: the study is made, rated, and its answers are taken in."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from sae_bench.cli.serve import Port
from sae_bench.cli.study_results import power, results

study = App(name="study", help="Ask people what latents mean, blind to the SAE (docs/study.md).")
study.command(results)
study.command(power)

Folder = Annotated[Path, Parameter(help="The study's folder.")]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Rater = Annotated[int, Parameter(help="The rater's number, from 1.")]


@study.command
def make(
    runs: Annotated[list[Path], Parameter(required=True, help="Folders of runs whose latents were collected.")],
    /,
    *,
    out: Path,
    latents: Positive = 20,
    raters: Positive = 5,
    overlap: Positive = 2,
    repeats: Annotated[int, Parameter(validator=Number(gte=0))] = 4,
    excerpts: Positive = 10,
    detection: bool = False,
    sae: list[str] | None = None,
    seed: int | None = None,
) -> int:
    """Make a study of latents that runs collected: the key, and a sealed file for each rater.

    Args:
        out: Folder for it, which must not be there.
        latents: Latents of each SAE: a uniform sample of those alive.
        raters: How many people answer.
        overlap: How many of them see each latent, for agreement.
        repeats: How many latents each of them sees twice.
        excerpts: Excerpts shown of each latent.
        detection: Ask also in which of ten more excerpts the latent is active.
        sae: SAEs to ask about, by id, with * and ?. Default: all, with the runs' controls.
        seed: To make the same study again. Default: drawn, and written into the key alone.
    """
    import secrets

    from sae_bench.study.make import make_study
    from sae_bench.study.schema import Settings

    settings = Settings(
        seed=secrets.randbits(62) if seed is None else seed, n_latents=latents, n_raters=raters, overlap=overlap,
        repeats=repeats, n_excerpts=excerpts, detection=detection,
    )  # fmt: skip
    made, remarks = make_study(runs, sae or [], settings, out)
    for remark in remarks:
        print(f"note: {remark}")
    controls = sum(of.sae.control for of in made.saes)
    print(f"{len(made.items)} latents of {len(made.saes)} SAEs, {controls} of them controls; {raters} raters")
    print(f"{out / 'study.json'} is the key: raters must not see it")
    print(f"rate here: python bench.py study rate {out} --rater 1; elsewhere: python bench.py study export-pages {out}")
    return 0


@study.command
def rate(folder: Folder, /, *, rater: Rater, port: Port | None = None, browser: bool = False) -> int:
    """Open a rater's page on this machine; answers are kept as they come, and the same command goes on.

    It listens on 127.0.0.1 alone, at an address that it prints; Ctrl-C stops it.

    Args:
        port: The port. Default: always the same for a rater, so that the browser knows what was not sent yet.
        browser: Open the page in the browser.
    """
    from sae_bench.api.local_server import LocalServer
    from sae_bench.errors import UserError
    from sae_bench.study.answers import add_events, keep
    from sae_bench.study.page import rater_page
    from sae_bench.study.schema import StudyFolder

    of = StudyFolder(folder)
    assignment = of.assignment(rater)
    add_events(of, assignment, [])  # whatever is wrong with the file, or the folder, is said before anybody answers

    def serve(on: int) -> LocalServer:
        return LocalServer(rater_page(assignment, served=True), partial(keep, of, assignment), on, path="events")

    try:
        server = serve(usual_port(assignment.study, rater) if port is None else port)
    except UserError:
        if port is not None:
            raise
        server = serve(0)
    with server:
        server.until_stopped(f"rater {rater} on this machine", browser=browser)
    print(f"\nstopped; {len(of.answers(rater))} of {len(assignment.showings)} are answered")
    return 0


def usual_port(study_id: str, rater: int) -> int:
    """Always the same for a rater of a study: what a browser keeps belongs to host and port."""
    import hashlib

    digest = hashlib.sha256(f"{study_id} {rater}".encode()).digest()
    return 20_000 + int.from_bytes(digest[:4], "little") % 10_000


@study.command
def export_pages(folder: Folder, /, *, rater: Rater | None = None) -> int:
    """Write one HTML file for each rater, which works from disk and without network, and saves a file to send back.

    Args:
        rater: Write that of one rater alone.
    """
    from sae_bench.records.files import write_text
    from sae_bench.study.page import rater_page
    from sae_bench.study.schema import StudyFolder

    of = StudyFolder(folder)
    for number in of.raters() if rater is None else [rater]:
        path = of.page_path(number)
        write_text(path, rater_page(of.assignment(number), served=False))
        print(path)
    return 0


@study.command(name="import")
def import_(folder: Folder, files: Annotated[list[Path], Parameter(required=True, help="Result files.")], /) -> int:
    """Take in the result files that raters send back; the same file twice, or a longer one later, does no harm."""
    from sae_bench.study.answers import import_results
    from sae_bench.study.schema import StudyFolder

    of = StudyFolder(folder)
    for file in files:
        assignment, n_new = import_results(of, file)
        answered = len(of.answers(assignment.rater))
        print(
            f"rater {assignment.rater}: {answered} of {len(assignment.showings)} are answered; {n_new} events are new"
        )
    return 0
