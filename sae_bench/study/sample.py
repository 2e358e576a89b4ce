"""Which latents a study can ask about, and which excerpts of each are shown.

Latents were collected by the runs (docs/autointerp.md): of each SAE a uniform sample of those alive. A study takes a
uniform sample of these that have excerpts enough, so that every item shows equally many: how many there are would
tell how often a latent fires.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

from sae_bench.errors import UserError, did_you_mean
from sae_bench.leaderboard.html.made import command
from sae_bench.leaderboard.load import gather
from sae_bench.records.files import Damaged, read_sealed
from sae_bench.records.lineage import collected_hash
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Record
from sae_bench.study.schema import N_MIXED, N_TENTHS, Excerpt, Settings

FIRING_MIXED = (4, 5, 6)
"""In how many of the mixed excerpts a latent fires, at random: if it were known, it would answer for the last one."""

Latent = dict[str, Any]
"""The content of a latent's file."""


@dataclass(frozen=True)
class Source:
    """An SAE that latents were collected of."""

    run: Path
    record: Record
    """Any of its records: what the SAE is, and where its numbers come from."""
    collection: Mapping[str, Any]
    """Which of its latents were collected, and from what."""

    @property
    def n_alive(self) -> int:
        """Latents that fired often enough to be collected."""
        return int(self.collection["n_eligible"])

    @property
    def text(self) -> tuple[str, str]:
        """What must be the same for all of a study: the language model, and the fingerprint of the text."""
        return self.record.provenance.model, str(self.collection["fingerprint"])

    def latent(self, number: int) -> Latent:
        """What was collected of a latent.

        Raises:
            UserError: its file is missing, damaged, or not what was collected.
        """
        path = RunFolder(self.run).latents_path(self.record.sae.id) / f"{number}.json"
        content = read_sealed(path)
        if collected_hash(content) != self.collection["sha256"][str(number)]:
            raise Damaged(f"{path} is not what was collected: delete it and run the run's command again")
        return content


def sources(runs: Sequence[Path], wanted: Sequence[str], n_latents: int) -> tuple[list[Source], list[str]]:
    """The SAEs of some runs, controls too, each once; and a sentence for each that is left out, and why.

    `wanted`: ids to keep, with * and ?; all, if there are none.

    Raises:
        UserError: no latents were collected of one, or a file of theirs is damaged; a name in `wanted` is nobody's.
    """
    found, left_out = [], []
    of: dict[tuple[Path, str], Record] = {}
    named: dict[Path, Path] = {}
    for run in runs:
        named.setdefault(run.resolve(), run)
    for run in named.values():
        for record in gather([run]):
            of.setdefault((run, record.sae.id), record)
    ids = {sae_id for _, sae_id in of}
    for pattern in wanted:
        if not any(fnmatchcase(sae_id, pattern) for sae_id in ids):
            raise UserError(f'--sae "{pattern}" is no SAE of these runs{did_you_mean(pattern, ids)}')
    for (run, sae_id), record in of.items():
        if wanted and not any(fnmatchcase(sae_id, pattern) for pattern in wanted):
            continue
        if record.sae.training.failure:
            left_out.append(f"{sae_id} of {run} failed in training: it is left out")
        else:
            found.append(_source(run, record, n_latents))
    _check_text(found)
    first: dict[tuple[str, str], Source] = {}
    for source in found:  # a control of one seed, or a run and its copy
        sae = source.record.sae
        if (same := first.setdefault((sae.id, sae.weights_sha256), source)) is not source:
            left_out.append(f"{sae.id} of {source.run} is that of {same.run}: it is asked about once")
    return list(first.values()), left_out


def _source(run: Path, record: Record, n_latents: int) -> Source:
    folder, sae_id = RunFolder(run), record.sae.id
    collection = folder.collection(sae_id)
    if collection is None:
        again = command(record.provenance.config, latents=max(100, 3 * n_latents)).removesuffix("RUN")
        raise UserError(
            f"{run}: no latents of {sae_id} were collected; collect them with: {again}{shlex.quote(str(run))}"
        )
    return Source(run, record, collection)


def _check_text(found: Sequence[Source]) -> None:
    for source in found[1:]:
        if source.text != found[0].text:
            raise UserError(
                f"{found[0].run} and {source.run} were collected from different text or language models: raters would "
                "see which latents belong together; make a study of each"
            )


@dataclass(frozen=True)
class Chosen:
    """A latent with the excerpts that stand for it."""

    latent: Latent
    shown: list[int]
    """Examples, by number; the strongest tenth of the activation range first."""
    mixed: list[int]
    truth: list[bool]

    def excerpts(self) -> list[Excerpt]:
        """What is shown with its shading, by the strongest of the latent's excerpts."""
        most = _strongest(self.latent)
        return [
            Excerpt(
                tenth=_tenth(self.latent, i),
                tokens=self.latent["examples"][i]["tokens"],
                shading=[round(min(1.0, abs(a) / most), 3) for a in self.latent["examples"][i]["activations"]],
            )
            for i in self.shown
        ]

    def mixed_excerpts(self) -> list[Excerpt]:
        return [Excerpt(tenth=None, tokens=self.latent["examples"][i]["tokens"], shading=[]) for i in self.mixed]


def choose(source: Source, settings: Settings) -> tuple[list[Chosen], int]:
    """A study's latents of an SAE, and how many were passed over.

    Of the collected ones, in random order, the first that have excerpts enough: a uniform sample of all that have.

    Raises:
        UserError: they are too few.
    """
    draw = Random(f"{settings.seed} latents {source.record.sae.weights_sha256} {source.record.sae.id}")
    numbers = source.collection["latents"]
    found: list[Chosen] = []
    for looked_at, number in enumerate(draw.sample(numbers, len(numbers)), start=1):
        if (one := _excerpts(source.latent(number), settings, draw)) is not None:
            found.append(one)
        if len(found) == settings.n_latents:
            return found, looked_at - len(found)
    raise UserError(
        f"{source.record.sae.id} of {source.run}: {len(found)} latents can be shown, not {settings.n_latents} "
        f"({source.n_alive} alive, {len(numbers)} collected, {len(numbers) - len(found)} of these have too few "
        f"excerpts): give --latents {len(found)}, fewer --excerpts, or collect more from more text by the run's "
        "command with a larger --interp-tokens"
    )


def _excerpts(latent: Latent, settings: Settings, draw: Random) -> Chosen | None:
    """The excerpts of a latent; None if it has too few."""
    examples = latent["examples"]
    firing = [i for i, one in enumerate(examples) if any(one["activations"])]
    if len(firing) - (max(FIRING_MIXED) if settings.detection else 0) < settings.n_excerpts:
        return None
    mixed: list[int] = []
    if settings.detection:
        n = draw.choice(FIRING_MIXED)
        fires = [i for i in firing if _for_scoring(examples[i])]
        silent = [i for i, one in enumerate(examples) if not any(one["activations"])]
        if len(fires) < max(FIRING_MIXED) or len(silent) < N_MIXED - min(FIRING_MIXED):
            return None
        mixed = [*draw.sample(fires, n), *draw.sample(silent, N_MIXED - n)]
        draw.shuffle(mixed)
    rest = [i for i in firing if i not in mixed]
    draw.shuffle(rest)
    return Chosen(latent, _over_the_range(latent, rest, settings.n_excerpts), mixed, [i in firing for i in mixed])


def _for_scoring(example: Latent) -> bool:
    """Whether it is of those that scorers ask a judge about in detection: a sample over all deciles."""
    return (example["kind"], example["use"]) == ("decile", "score")


def _over_the_range(latent: Latent, numbers: Sequence[int], n: int) -> list[int]:
    """`n` of some examples, as evenly over the tenths of the activation range as there are any; the strongest first."""
    tenths: list[list[int]] = [[] for _ in range(N_TENTHS)]
    for i in numbers:
        tenths[N_TENTHS - _tenth(latent, i)].append(i)
    turns = sorted((turn, tenth, i) for tenth, members in enumerate(tenths) for turn, i in enumerate(members))
    return [i for _, i in sorted((tenth, i) for _, tenth, i in turns[:n])]


def _tenth(latent: Latent, i: int) -> int:
    """1 to 10: where in the range from 0 to the strongest of the latent's excerpts the peak of an example is."""
    return max(1, min(N_TENTHS, ceil(N_TENTHS * _peak(latent["examples"][i]) / _strongest(latent))))


def _strongest(latent: Latent) -> float:
    """The largest peak of its excerpts.

    A latent may be a hundred times as active at one place of the text, of which there need be no excerpt: beside that
    all that can be shown would look alike, and faint.
    """
    return max(map(_peak, latent["examples"]))


def _peak(example: Latent) -> float:
    return float(max(map(abs, example["activations"])))
