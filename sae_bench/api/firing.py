"""Which latents fire on a text: a run's language model and its SAEs, asked for one text and one SAE at a time.

    firing = Firing(Path("runs/first"))
    firing.on("The river came down from the hills.", firing.saes[0])

The text is one context, as in training: the opening token first, and no more tokens than a context of the run had.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.autointerp.examples import Pieces
from sae_bench.errors import UserError, did_you_mean
from sae_bench.lm.fingerprint import fingerprint
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, site_of
from sae_bench.lm.tokens import opening_id
from sae_bench.progress import Progress
from sae_bench.records.files import read_sealed
from sae_bench.records.run_folder import SAE_DESCRIPTION, RunFolder
from sae_bench.records.schema import Provenance
from sae_bench.runs.config import RunConfig
from sae_bench.runs.home import at_home
from sae_bench.runs.sources import load_model
from sae_bench.saes.active import as_active
from sae_bench.saes.base import SparseAutoencoder
from sae_bench.saes.save import description_of, load_sae

MOST_CHARACTERS = 20_000
SAES_KEPT = 8
"""SAEs that stay in memory; another takes the place of the one that was not asked for the longest."""


@dataclass(frozen=True)
class Fired:
    """What fired on a text: for each token the latents, strongest first, and their activations."""

    tokens: list[str]
    latents: list[list[int]]
    activations: list[list[float]]
    n_cut: int
    """Tokens behind the end of the context, which were left out."""

    def as_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "latents": self.latents, "activations": self.activations, "n_cut": self.n_cut}


class Firing:
    """A run's language model, and its SAEs by name, loaded when they are asked for.

    Raises:
        UserError: there is no run, it has no SAE whose weights are there, or no language model stands behind it.
    """

    def __init__(self, run: Path, progress: Progress | None = None) -> None:
        progress = progress or Progress(quiet=True)
        self.folder = RunFolder(run)
        if not (run / "run.json").is_file():
            raise UserError(f"{run} is no run's folder (it has no run.json): give the folder that --out named")
        manifest = read_sealed(run / "run.json")
        # What a cache has, it has of the run's own text.
        own = at_home(RunConfig.of_run(manifest), self.folder, manifest)
        self.config = own.model_copy(update={"activations_cache": None})
        if self.config.world is not None:
            raise UserError(f"{run} is of a synthetic world, which reads no text: give the run of a language model")
        self.saes = [name for name in manifest["saes"] if self._is_whole(name)]
        if not self.saes:
            raise UserError(f"{run} has no weights of an SAE, as a published board has none: give the run's own folder")
        lm = load_model(self.config, progress)
        assert isinstance(lm, LanguageModel), "it is no world"
        self.lm = lm
        self._pieces = Pieces(lm.tokenizer)
        self._loaded: OrderedDict[str, tuple[Site, SparseAutoencoder]] = OrderedDict()
        self._last: tuple[str, Site, Tensor] | None = None

    def _is_whole(self, name: str) -> bool:
        path = self.folder.sae_path(name)
        return (path / SAE_DESCRIPTION).is_file() and not description_of(path).training.failure

    def is_the_models(self, made: Provenance) -> bool:
        """Whether the language model is the one that a record of the run names."""
        same = made.model_fingerprint in (None, fingerprint(self.lm.identity()))
        return same and made.model_sha256 in (None, self.lm.weight_hash())

    @torch.no_grad()
    def on(self, text: str, sae: str) -> Fired:
        """What fires on a text.

        Raises:
            UserError: the text is empty or too long, or the run has no such SAE.
        """
        if sae not in self.saes:
            raise UserError(f'no SAE "{sae}" with weights{did_you_mean(sae, self.saes)}')
        if not text.strip():
            raise UserError("the text is empty: type some")
        if len(text) > MOST_CHARACTERS:
            raise UserError(f"the text has {len(text):,} characters: give at most {MOST_CHARACTERS:,}")
        text = text.encode("utf-8", "replace").decode()  # half a character is no text
        words: list[int] = self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = words[: min(self.config.context_size, self.lm.max_context) - 1]
        site, loaded = self._sae(sae)
        f = as_active(loaded.encode(self._activations(text, kept, site)))
        latents: list[list[int]] = [[] for _ in kept]
        activations: list[list[float]] = [[] for _ in kept]
        pairs = zip(*(column.tolist() for column in f.pairs()), strict=True)
        for token, latent, value in sorted(pairs, key=lambda pair: -abs(pair[2])):
            if value != 0:
                latents[token].append(latent)
                activations[token].append(float(f"{value:.4g}"))
        return Fired(self._pieces.split(kept), latents, activations, len(words) - len(kept))

    def _activations(self, text: str, words: list[int], site: Site) -> Tensor:
        """x of every token but the opening one, [S, d_in]; those of the last text are kept."""
        if self._last is None or self._last[:2] != (text, site):
            tokens = torch.tensor([[opening_id(self.lm.tokenizer), *words]])
            x = self.lm.capture(tokens, [site])[site]
            self._last = text, site, x[0, 1:].float()
        return self._last[2]

    def _sae(self, name: str) -> tuple[Site, SparseAutoencoder]:
        if name not in self._loaded:
            path = self.folder.sae_path(name)
            self._loaded[name] = site_of(description_of(path)), load_sae(path, self.lm.device)
            if len(self._loaded) > SAES_KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]
