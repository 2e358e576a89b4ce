"""A study's answers as arrays: what every rater was asked, and what each said. Nothing is put where nothing was said.

Shapes: I items, in the order of the key; R raters, from the first.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sae_bench.errors import UserError
from sae_bench.records.files import digest_of
from sae_bench.study.schema import Answer, Study, StudyFolder

CATEGORIES = ("no", "maybe", "yes")
"""In their order."""
MAYBE, YES = 1, 2

Given = Float[ndarray, "I R"]
"""A number for every answer; NaN where there is none."""


@dataclass(frozen=True)
class Ratings:
    """What a study's raters said."""

    study: Study
    asked: Bool[ndarray, "I R"]
    asked_again: Bool[ndarray, "I R"]
    category: Given
    """Place in CATEGORIES, at the first showing."""
    again: Given
    """Likewise, at the repeat."""
    detection: Given
    """Balanced accuracy over the mixed excerpts, at the first showing."""
    seconds: Given
    """Spent on the first showing."""
    last: datetime | None
    """When the last answer came."""
    digest: str
    """Of all answers that count, and by whom."""

    @property
    def n_asked(self) -> int:
        return int(self.asked.sum() + self.asked_again.sum())

    @property
    def n_answered(self) -> int:
        return int((self.asked & np.isfinite(self.category)).sum() + (self.asked_again & np.isfinite(self.again)).sum())

    @property
    def answered(self) -> Bool[ndarray, "I R"]:
        """At the first showing."""
        return np.asarray(np.isfinite(self.category))

    @property
    def yes(self) -> Given:
        """1 for yes, 0 for another answer."""
        return np.where(self.answered, self.category == YES, np.nan)

    @property
    def yes_or_maybe(self) -> Given:
        """1 for yes and maybe, 0 for no."""
        return np.where(self.answered, self.category >= MAYBE, np.nan)

    @property
    def rating(self) -> Given:
        """1 for yes, 1/2 for maybe, 0 for no."""
        return np.asarray(self.category / YES)

    def of_sae(self, sae: int) -> list[int]:
        """The items of an SAE."""
        return [i for i, item in enumerate(self.study.items) if item.sae == sae]


def read_ratings(folder: StudyFolder) -> Ratings:
    """Read all that a study's raters said.

    Raises:
        UserError: there is no study, a file is damaged, or a rater answered what nobody asked him.
    """
    study = folder.study()
    place = {item.id: i for i, item in enumerate(study.items)}
    shape = len(place), study.settings.n_raters
    asked, asked_again = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    category, again, detection, seconds = (np.full(shape, np.nan) for _ in range(4))
    times, counted = [], []
    for r in range(study.settings.n_raters):
        assignment = folder.assignment(r + 1)
        if assignment.study != study.id:
            raise UserError(f"{folder.assignment_path(r + 1)} is of another study: put the right file there")
        for showing in assignment.showings:
            (asked_again if showing.showing else asked)[place[showing.item], r] = True
        for (item, repeat), answer in sorted(folder.answers(r + 1).items()):
            i = place.get(item)
            if i is None or not (asked_again if repeat else asked)[i, r]:
                raise UserError(
                    f"{folder.answers_path(r + 1)}: item {item} was never put before rater {r + 1}: the answers are of "
                    "another study or rater; put the right file there"
                )
            (again if repeat else category)[i, r] = CATEGORIES.index(answer.interpretable)
            times.append(answer.time)
            counted.append([r + 1, item, repeat, answer.model_dump(mode="json", exclude={"id", "time", "event"})])
            if not repeat:
                seconds[i, r] = answer.seconds
                detection[i, r] = balanced_accuracy(answer, study.items[i].truth)
    last = max(times, default=None)
    return Ratings(study, asked, asked_again, category, again, detection, seconds, last, digest_of(counted))


def balanced_accuracy(answer: Answer, truth: list[bool]) -> float:
    """The mean of the shares of right answers among the firing and among the silent; NaN where there are none."""
    if answer.detection is None or len(set(truth)) < 2:
        return float("nan")
    said = np.array(answer.detection)
    fires = np.array(truth)
    return float((said[fires].mean() + 1 - said[~fires].mean()) / 2)
