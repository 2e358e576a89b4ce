"""Which SAEs a cluster compares with those of other seeds in one task."""

import math
from collections.abc import Sequence
from itertools import chain

from sae_bench.lm.sites import Site
from sae_bench.records.run_folder import RunFolder
from sae_bench.runs.collect import as_saved
from sae_bench.runs.left import left_to_compare
from sae_bench.runs.records import siblings_among
from sae_bench.runs.train import Order
from sae_bench.runs.workbench import PlannedSAE


def compared_together(
    folder: RunFolder, order: Order, saes: Sequence[PlannedSAE], model_fingerprint: str, n_devices: int
) -> list[list[str]]:
    """Sort those that lack something, by name, into as many parts as keep all devices busy, each with one capture.

    A part is of one site, and SAEs that differ in the seed alone are in the same one.
    """
    about = {sae.id: as_saved(folder, sae).description for sae in saes}
    siblings = siblings_among(about.values())
    left = left_to_compare(folder, order.config, order.tasks, about, model_fingerprint)
    families: dict[tuple[Site, frozenset[str]], list[str]] = {}
    due: dict[Site, dict[frozenset[str], None]] = {}
    for sae in saes:
        # One whose training failed is nobody's sibling, and has a record to be written with theirs.
        family = frozenset(one.id for one in [*siblings[sae.id], about[sae.id]] if not one.training.failure)
        families.setdefault((sae.site, family), []).append(sae.id)
        if sae.id in left:
            due.setdefault(sae.site, {})[family] = None
    n_parts = math.ceil(n_devices / max(1, len(due)))
    parts = [
        [families[site, family] for family in [*of][i::n_parts]] for site, of in due.items() for i in range(n_parts)
    ]
    return [list(chain(*part)) for part in parts if part]
