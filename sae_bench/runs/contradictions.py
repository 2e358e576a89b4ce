"""What a run's settings say against each other, each of them being in its range."""

from typing import TYPE_CHECKING, Any

from sae_bench.errors import UserError
from sae_bench.synthetic.settings import NAME


class Consistent:
    """A run's settings, which have to go together."""

    if TYPE_CHECKING:  # what a `RunConfig` has
        archs: Any
        saes: Any
        layers: Any
        sites: Any
        tokens: Any
        reuse: Any
        batch_size: Any
        model: str
        dataset: str
        revision: Any
        random_lm: Any
        world: Any
        recipe: Any
        added_recipes: Any
        preset: Any
        split: Any
        kernels: Any
        screening: Any
        probe_sets: Any
        activations_cache: Any
        cache_limit: Any

    def check_together(self) -> None:
        """See that they do.

        Raises:
            UserError: some do not.
        """
        if not self.archs and not self.saes:
            raise UserError("--arch: name an architecture, or give an SAE with --sae")
        if self.tokens * self.reuse < self.batch_size:
            served = f"--tokens {self.tokens} used {self.reuse} times"
            raise UserError(f"{served} is less than one batch of {self.batch_size}: raise --tokens")
        if self.world is not None:
            self._check_world()
        if self.recipe is not None:
            self.recipe.check(self.preset, self.split)
        self._check_added()
        if self.kernels == "dense" and self.screening == "on":
            raise UserError(
                "--screening on finds few pairs, and --kernels dense works on all: leave out one of the two"
            )
        if self.probe_sets:
            self._check_unprobed()
        if self.activations_cache == "":
            raise UserError("--activations-cache: name a folder")
        if self.cache_limit is not None and self.activations_cache is None:
            raise UserError("--cache-limit bounds --activations-cache: name its folder, or leave it out")

    def _check_added(self) -> None:
        """Raise UserError where recipes are added to none, or to one that came of another search."""
        if self.added_recipes and self.recipe is None:
            raise UserError(f"--added-recipe {self.added_recipes[0].name} adds to --recipe: name that, too")
        for i, added in enumerate(self.added_recipes):
            self.recipe.joined(self.added_recipes[:i]).check_added(added)

    def _check_world(self) -> None:
        """Raise UserError for what a language model has, and a synthetic world does not."""
        for flag, given in (
            ("--layer", self.layers), ("--random-lm", self.random_lm),
            ("--site", self.sites != (NAME,)), ("--dataset", self.dataset != NAME), ("--revision", self.revision),
            ("--activations-cache", self.activations_cache),
        ):  # fmt: skip
            if given:
                raise UserError(f"{flag} is for language models: leave it out with --model {self.model}")

    def _check_unprobed(self) -> None:
        """Raise UserError if probes would be asked about text that SAEs learn from, or their recipe was tuned on."""
        from sae_bench.probing.sets import NATURAL, SMALL  # loads numpy

        beyond = [name for name in self.probe_sets if name not in ("small", *SMALL)]
        if beyond and self.dataset == "natural":
            raise UserError(
                f"--probe-sets {beyond[0]}: --dataset natural has these texts, and a probe is not asked about what was "
                "trained on: give sets of small, or another --dataset"
            )
        if beyond and self.recipe is not None and self.recipe.dataset.startswith(NATURAL):
            raise UserError(
                f"--probe-sets {beyond[0]}: --recipe {self.recipe.name} was tuned on these texts (--dataset natural), "
                "and a probe is not asked about what settings were chosen by: give sets of small, or another recipe"
            )
