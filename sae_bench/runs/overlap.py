"""How much of the evaluation text was trained on, of SAEs that were trained before the evaluation grew."""

from collections.abc import Mapping, Sequence

from sae_bench.errors import UserError
from sae_bench.records.run_folder import RunFolder
from sae_bench.records.schema import Training
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.sources import token_stream
from sae_bench.runs.workbench import Workbench
from sae_bench.saes.save import description_of, write_training


def new_overlaps(bench: Workbench, plans: Sequence[Plan], folder: RunFolder) -> dict[str, float | None]:
    """What the text that finished SAEs were trained on shares with that of the evaluation, where this is another one.

    By the SAEs' names; None where it was not known before. The training text is read again, without the language model.

    Raises:
        UserError: it is not the text that they were trained on.
    """
    trained = [plan.id for plan in plans if isinstance(plan, SAEPlan)]
    old = outdated(folder, trained, bench.config.evaluation_hash)
    share = None
    if any(training.eval_overlap is not None for training in old.values()):
        fingerprint, share = read_training_text(bench)
        check_text(old, fingerprint, bench.config.dataset)
    return {name: share if training.eval_overlap is not None else None for name, training in old.items()}


def outdated(folder: RunFolder, trained: Sequence[str], evaluation_hash: str) -> dict[str, Training]:
    """How SAEs were trained whose overlap is that with another evaluation's text; their own was read to its end."""
    about = {name: description_of(folder.sae_path(name)).training for name in trained}
    return {name: of for name, of in about.items() if of.failure is None and of.overlap_of != evaluation_hash}


def read_training_text(bench: Workbench) -> tuple[str, float | None]:
    """The fingerprint of the training tokens, and what they share with those of the evaluation."""
    config, lm = bench.config, bench.lm
    bench.progress.say(f"reading the {config.tokens:,} training tokens again: the evaluation is another one")
    tokens = token_stream(lm, config, "train", config.tokens)
    tokens.watch = token_stream(lm, config, "eval", config.n_held_out).shared_runs()
    tokens.read()
    return tokens.fingerprint, tokens.watch.share if tokens.watch else None


def check_text(old: Mapping[str, Training], fingerprint: str, dataset: str) -> None:
    """Raise UserError if SAEs were trained on other tokens than those that were read again."""
    for name, training in old.items():
        if training.fingerprint != fingerprint:
            raise UserError(
                f"the corpus {dataset} does not give the tokens that {name} was trained on: bring back the old files "
                "and library versions, or start anew with --overwrite"
            )


def write_overlaps(found: Mapping[str, float | None], folder: RunFolder, evaluation_hash: str) -> None:
    """Have the SAEs' files say what was found."""
    for name, share in found.items():
        write_training(folder.sae_path(name), eval_overlap=share, overlap_of=evaluation_hash)
