"""How much of the evaluation text was trained on, of SAEs that were trained before the evaluation grew."""

from collections.abc import Sequence

from sae_bench.errors import UserError
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.import_saes import Plan
from sae_bench.runs.plan import SAEPlan
from sae_bench.runs.sources import token_stream
from sae_bench.runs.workbench import Workbench
from sae_bench.saes.save import description_of, write_training


def renew_overlaps(bench: Workbench, plans: Sequence[Plan], folder: RunFolder) -> None:
    """Count anew what the text that SAEs were trained on shares with that of the evaluation, as it is now.

    The training text is read again, without the language model.

    Raises:
        UserError: it is not the text that they were trained on.
    """
    config, lm = bench.config, bench.lm
    trained = [plan.id for plan in plans if isinstance(plan, SAEPlan)]
    about = {name: description_of(folder.sae_path(name)).training for name in trained}
    whole = {
        name: training for name, training in about.items() if training.failure is None
    }  # its text was read to the end
    old = {name: training for name, training in whole.items() if training.overlap_of != config.evaluation_hash}
    share = None
    if any(training.eval_overlap is not None for training in old.values()):
        bench.progress.say(f"reading the {config.tokens:,} training tokens again: the evaluation is another one")
        tokens = token_stream(lm, config, "train", config.tokens)
        tokens.watch = token_stream(lm, config, "eval", config.n_held_out).shared_runs()
        tokens.read()
        share = tokens.watch.share if tokens.watch else None
        for name, training in old.items():
            if training.fingerprint != tokens.fingerprint:
                raise UserError(
                    f"the corpus {config.dataset} does not give the tokens that {name} was trained on: bring back the "
                    "old files and library versions, or start anew with --overwrite"
                )
    for name, training in old.items():
        found = share if training.eval_overlap is not None else None
        write_training(folder.sae_path(name), eval_overlap=found, overlap_of=config.evaluation_hash)
