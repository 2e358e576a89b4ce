"""Parts that break inside of a run, for `faults`: the corpus, the language model, the clock."""

from contextlib import ExitStack
from unittest import mock

from lab import Lab, Outcome, in_process


def broken_corpus(lab: Lab, n: int) -> Outcome:
    """Reading the corpus fails after a random number of documents, as a lost connection does."""
    from sae_bench.lm import tokens as data

    names, survived = [], 0
    whole = data.documents
    for _ in range(n):
        names.append(name := lab.new())
        left = [lab.draw.randrange(1, 300)]

        def breaking(*arguments: object, left: list[int] = left, **how: object):
            for text in whole(*arguments, **how):
                left[0] -= 1
                if left[0] == 0:
                    raise ConnectionError("the dataset's server is gone")
                yield text

        with in_process(lab, name) as go:
            with mock.patch.object(data, "documents", breaking):
                stopped = go() == 2 and left[0] == 0
            survived += stopped and lab.finish(name)
    return lab.judge("the corpus breaks off while it is read", n, names, survived)


def nan_in_the_model(lab: Lab, n: int) -> Outcome:
    """One forward pass gives NaN: in capture it stops the run, and the next one goes on."""
    from sae_bench.lm.model import LanguageModel

    names, survived = [], 0
    capture = LanguageModel.capture
    for _ in range(n):
        names.append(name := lab.new())
        left = [lab.draw.randrange(1, 3)]  # in training, or in the evaluation

        def bad(self: LanguageModel, *arguments: object, left: list[int] = left, **how: object):
            activations = capture(self, *arguments, **how)
            left[0] -= 1
            if left[0] == 0:
                next(iter(activations.values()))[0, 3, 1] = float("nan")
            return activations

        with in_process(lab, name) as go, mock.patch.object(LanguageModel, "capture", bad):
            stopped = go() == 2
        survived += stopped and lab.finish(name)
    return lab.judge("the model gives NaN on one batch", n, names, survived)


def clock(lab: Lab, n: int) -> Outcome:
    """Every clock jumps by days, both ways, at every look: also those that are said never to."""
    names, survived = [], 0
    for _ in range(n):
        names.append(name := lab.new())
        with in_process(lab, name) as go, ExitStack() as clocks:
            for which in ("time", "monotonic", "perf_counter"):
                clocks.enter_context(mock.patch(f"time.{which}", side_effect=lambda: lab.draw.uniform(0, 4e9)))
            survived += go() == 0
    return lab.judge("clock jumps", n, names, survived)
