"""`--layer all` and `--site all`: every decoder layer of the model, and the three sites that SAEs are released for."""

from collections.abc import Mapping
from typing import Any

from sae_bench.errors import UserError
from sae_bench.lm.load import count_layers
from sae_bench.lm.sites import SITE_KINDS
from sae_bench.synthetic.settings import is_synthetic


def resolve_all(given: Mapping[str, Any]) -> dict[str, Any]:
    """The layers and the sites that "all" stands for in a run's settings, beside others that they name.

    Layers are counted in the model's configuration; no weight is loaded. What the run is follows from these numbers, so
    that a run of all layers is the run that names each.

    Raises:
        UserError: the model's configuration cannot be had.
    """
    layers, sites = given.get("layers", ()), given.get("sites", ())
    if is_synthetic(given.get("model")) and ("all" in layers or "all" in sites):
        raise UserError(f'"all" stands for layers and sites of language models: leave it out with {given["model"]}')
    found: dict[str, Any] = {}
    if "all" in layers:
        options = {key: given[key] for key in ("revision", "trust_remote_code") if key in given}
        found["layers"] = tuple(range(count_layers(given.get("model", "demo"), **options)))
    if "all" in sites:
        others = [site for site in sites if site != "all"] if sites != "all" else []
        found["sites"] = tuple(dict.fromkeys([*SITE_KINDS, *others]))
    return found
