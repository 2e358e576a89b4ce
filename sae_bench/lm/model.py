"""A language model as the harness needs it: read its activations at a site, and run what comes after a site again.

Training needs activations only, so `capture` leaves the forward pass as soon as the last requested site has been read.

Evaluation asks what the model predicts when one site carries an SAE's reconstruction, for many SAEs on the same tokens:
`clean_pass` runs the model once, and what it returns runs the rest again from a site (`replay`).

On a CPU with bfloat16 arithmetic the passes of a float32 model may multiply in bfloat16 (`bfloat16_products`): what
comes out of a product is then bfloat16, weights and the residual stream stay float32.

Neither ever computes logits: over 262,144 words they would be larger than everything else together. `logits` turns any
chunk of final hidden states into them, `logit_of` into those of one word each.

    lm = load_language_model("gemma-2-2b", device="cuda", dtype=torch.bfloat16)
    site = find_site(lm.model, "resid_post", 12)
    clean = lm.clean_pass(tokens, [site])
    hidden = clean.replay(site, sae(clean.activations[site]))
    logits = lm.logits(hidden[0, :64])

Shape letters: batch contexts, seq tokens in each, d_in width of a site, d_model width of the model, n tokens, vocab.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sae_bench.errors import UserError
from sae_bench.lm.activations import StreamOptions
from sae_bench.lm.fingerprint import (
    Identity,
    configuration_of,
    hash_of_buffers,
    hash_of_code,
    hash_of_tensors,
    hash_of_tokenizer,
    opening_of,
)
from sae_bench.lm.finite import check_activations, remedy
from sae_bench.lm.hooks import Side, run_until_seen
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.replay import HIDDEN, CleanPass, LayerCall
from sae_bench.lm.sites import Site, find_sites
from sae_bench.lm.skeleton import logit_factor
from sae_bench.lm.tokens import TokenStream, opening_id, special_ids

log = logging.getLogger(__name__)


# What the two kinds of pass look at: a site, the input of a decoder layer (its number), or the input of the LM head.
Key = Site | int | str


class LanguageModel:
    """A causal language model of transformers with its tokenizer, frozen and in eval mode.

    `name` is what records call it and `revision` the hub's commit hash, None for a folder. `device` and `dtype` are
    those of the model and of its residual stream; `max_context` is the most tokens it takes at once. `special_ids` are
    those of `tokens.special_ids`, which are neither trained on nor counted in any metric. It is an `ActivationModel`.
    """

    no_language_model: str | None = None
    """It is one; see `ActivationModel`."""

    bfloat16_products = False
    """Whether the passes of a float32 model multiply in bfloat16; set before the first pass, if at all."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None = None
    ) -> None:
        self.model = model.train(False).requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.config: PreTrainedConfig = model.config.get_text_config()
        self._whole_config: PreTrainedConfig = model.config
        self._class = type(model)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.backbone = find_backbone(model)
        n_found = len(self.backbone.layers) if self.backbone else 0
        self.n_layers: int = getattr(self.config, "num_hidden_layers", n_found)
        embedded: Any = model.get_input_embeddings()
        self.d_model: int = getattr(self.config, "hidden_size", embedded.weight.shape[-1])
        self.max_context: int = getattr(self.config, "max_position_embeddings", tokenizer.model_max_length)
        self.special_ids = special_ids(tokenizer)
        self._logit_factor = logit_factor(self.config)
        self._replayable: dict[Site, bool] = {}
        self._weight_hash: str | None = None

    def weight_hash(self) -> str:
        """Return the sha256 (hex) over the parameters' names, dtypes, shapes and bytes, in the order of their names.

        Tied parameters count once. Computed at the first call, at about 1 GB a second.
        """
        if self._weight_hash is None:
            self._weight_hash = hash_of_tensors(dict(self.model.named_parameters()))
        return self._weight_hash

    def buffer_hash(self) -> str:
        """Return the sha256 (hex) over the buffers that come with the weights, as `weight_hash`."""
        return hash_of_buffers(self.model)

    def identity(self) -> Identity:
        """Return all that decides the model's numbers besides device and precision; see `lm.fingerprint`."""
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        return {
            "weights": self.weight_hash(),
            "buffers": self.buffer_hash(),
            "code": hash_of_code(self._class),
            "tokenizer": self.tokenizer_hash(),
            "special tokens": opening_of(self.tokenizer),
            "configuration": configuration_of(self._whole_config),
        }

    def tokenizer_hash(self) -> str:
        """Return the sha256 (hex) of a fast tokenizer's whole definition, of another one's vocabulary."""
        return hash_of_tokenizer(self.tokenizer)

    def find_sites(self, kinds: Sequence[str], layers: Sequence[int]) -> list[Site]:
        """Return every kind of site in every layer, each once; in the middle layer where none is named.

        Raises UserError for what the model does not have; see `sites.find_sites`.
        """
        return find_sites(self.model, kinds, layers or (self.n_layers // 2,))

    def stream(self, source: str, **options: Unpack[StreamOptions]) -> TokenStream:
        """Return one side of a corpus in the model's tokens; arguments and errors are those of `TokenStream`."""
        return TokenStream(source, self.tokenizer, max_context=self.max_context, **options)

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch seq"], sites: Iterable[Site], *, check: bool = True
    ) -> dict[Site, Tensor]:
        """Return the activations, (batch, seq, d_in) each, at one or more `sites` from one pass that ends at the last.

        Raises UserError where activations are not finite. That waits for the device; a caller of many passes may look
        once, in the end: `check=False`, then `check_finite`.
        """
        points = {site: self.point(site) for site in sites}
        assert points, "nothing to capture"
        with self.multiplying():
            activations = run_until_seen(self.model, tokens.to(self.device), points)
        check_activations(activations, check)
        return {site: site.seen(x) for site, x in activations.items()}

    @torch.no_grad()
    def clean_pass(
        self, tokens: Int[Tensor, "batch seq"], sites: Iterable[Site] = (), *, check: bool = True
    ) -> CleanPass:
        """Run the model without logits and return the activations at `sites`, with all that a replay from them needs.

        The first clean pass for a site also checks that its replay is exact, and warns where it is not. Raises
        UserError where activations are not finite; `check` as in `capture`.
        """
        tokens, sites = tokens.to(self.device), list(dict.fromkeys(sites))
        starts = {site: start for site in sites if (start := self.first_replayed_layer(site)) is not None}
        entered = {start for site, start in starts.items() if start == site.layer}
        layers = self.backbone.layers if self.backbone else []
        points: dict[Key, tuple[nn.Module, Side]] = {
            **{site: self.point(site) for site in sites},
            **{i: (layers[i], "input") for i in entered},
            HIDDEN: (self.model.get_output_embeddings(), "input"),
        }
        calls: dict[int, LayerCall] = {}

        def record(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[i] = args[1:], kwargs

        with ExitStack() as hooks:
            for i in range(min(starts.values(), default=len(layers)), len(layers)):
                hooks.enter_context(layers[i].register_forward_pre_hook(partial(record, i), with_kwargs=True))
            hooks.enter_context(self.multiplying())
            seen = run_until_seen(self.model, tokens, points)

        activations = {site: seen[site] for site in sites}
        check_activations(activations, check)
        clean = CleanPass(self, tokens, activations, seen[HIDDEN], {i: seen[i] for i in entered}, calls)
        for site in sites:
            if site not in self._replayable:
                self._replayable[site] = self._is_replayable(clean, site)
        return replace(clean, activations={site: site.seen(x) for site, x in activations.items()})

    def multiplying(self) -> AbstractContextManager[object]:
        """Return the context that every pass runs in: it says in what precision matrices are multiplied."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16_products else nullcontext()

    @property
    def precision(self) -> str:
        """What records say of dtype and products."""
        return str(self.dtype).removeprefix("torch.") + (", bfloat16 products" if self.bfloat16_products else "")

    @property
    def n_bytes(self) -> int:
        """Size of the weights; tied ones count once."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def token_flops(self, context_size: int) -> float:
        """Return the floating-point operations of a decoder layer, a mean one, on one token of such a context."""
        inner = self.backbone.layers if self.backbone else [self.model]
        n_weights = sum(weight.numel() for module in inner for weight in module.parameters())
        # Each weight is multiplied and added once; every query meets every key, and every weight a value.
        return 2 * n_weights / self.n_layers + 4 * context_size * self.d_model

    @property
    def n_vocab(self) -> int:
        """Number of words that the LM head scores."""
        return len(self.model.get_output_embeddings().weight)

    def logits(self, hidden: Float[Tensor, "*n d_model"], words: slice = slice(None)) -> Float[Tensor, "*n vocab"]:
        """Return the logits, in float32, of final hidden states: the LM head in the model's dtype, scaled, soft-capped.

        `words` asks for a part of the vocabulary alone.
        """
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return self._finish(
            functional.linear(hidden, head.weight[words], None if bias is None else bias[words]).float()
        )

    def logit_of(self, hidden: Float[Tensor, "n d_model"], word: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the logit of one word for each final hidden state: what `logits` has in its column."""
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        logit = torch.linalg.vecdot(hidden.float(), head.weight[word].float())
        logit = logit if bias is None else logit + bias[word]
        return self._finish(logit.to(self.dtype).float())  # rounded as the head rounds it

    def _finish(self, logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        cap: float | None = getattr(self.config, "final_logit_softcapping", None)
        if logits.requires_grad:
            logits = logits * self._logit_factor
            return logits if cap is None else cap * torch.tanh(logits / cap)
        if self._logit_factor != 1:  # in place: the largest tensor of an evaluation
            logits.mul_(self._logit_factor)
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    @torch.no_grad()
    def check_logits(self) -> None:
        """Raise UserError if the model does more to its logits than `logits` does."""
        tokens = torch.arange(4, device=self.device)[None]
        ours = self.logits(self.clean_pass(tokens).hidden[0])
        theirs = self.model(input_ids=tokens, use_cache=False).logits[0].float()
        if not torch.isfinite(theirs).all():
            raise UserError(f'model "{self.name}": logits in {self.dtype} are not all finite: {remedy(self.dtype)}')
        # They agree to rounding, which soft-capping in bfloat16 makes coarse; a forgotten factor is far larger.
        if not (ours - theirs).norm() <= 0.03 * theirs.norm():
            kind = type(self.model).__name__
            raise UserError(f'model "{self.name}": {kind} changes its logits in an unknown way: choose another model')

    def check_words(self) -> None:
        """Raise UserError if the tokenizer makes words that the model has no row for, or fails at the first text.

        Special words never come up.
        """
        if not isinstance(longest := self.tokenizer.model_max_length, int | float):
            raise UserError(
                f'model "{self.name}": model_max_length of its tokenizer is {longest!r:.40}, no number: mend '
                "tokenizer_config.json"
            )
        n_rows = len(self.model.get_input_embeddings().weight)
        used = {*self.tokenizer.get_vocab().values()} - self.special_ids | {opening_id(self.tokenizer)}
        if max(used) >= n_rows:
            raise UserError(
                f'model "{self.name}": its tokenizer has words up to number {max(used)}, the model embeds {n_rows}: '
                "choose the tokenizer that belongs to it"
            )

    def point(self, site: Site) -> tuple[nn.Module, Side]:
        """Return the module that a site is read at, and on which side."""
        return self.model.get_submodule(site.path), site.side

    def first_replayed_layer(self, site: Site) -> int | None:
        """Return the first decoder layer that a replay from `site` runs; None if it has to run the whole model."""
        if self.backbone is None or not self._replayable.get(site, True):
            return None
        layer = f"{self.backbone.layers_path}.{site.layer}"
        if site.path == layer and site.side == "output":
            return site.layer + 1
        return site.layer if f"{site.path}.".startswith(f"{layer}.") else None

    def _is_replayable(self, clean: CleanPass, site: Site) -> bool:
        same = self.first_replayed_layer(site) is not None and torch.equal(
            clean.replay(site, clean.activations[site]), clean.hidden
        )
        if not same:
            log.warning("%s: replaying the layers after it is not exact; every replay runs the whole model", site.name)
        return same
