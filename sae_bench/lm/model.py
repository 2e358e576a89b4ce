"""A language model as the harness needs it: read its activations at a site, and run what comes after a site again.

Training needs activations only, so `capture` leaves the forward pass as soon as the last requested site has been read.

Evaluation asks what the model predicts when one site carries an SAE's reconstruction, and asks it for many SAEs on the
same tokens. Everything before the site is then the same each time. So `clean_pass` runs the model once and notes how
every decoder layer after the site was called (position embeddings, masks), and `CleanPass.replay` calls those layers
again, with those very arguments, on the changed activations: N SAEs cost one prefix and N suffixes. Replaying what was
captured gives the clean result bit for bit. That is not assumed but checked at the first clean pass for each site;
a site that fails is replayed by whole forward passes instead.

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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
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
from sae_bench.lm.hooks import Side, intercept, run_until_seen
from sae_bench.lm.layers import find_backbone
from sae_bench.lm.sites import Site, find_sites
from sae_bench.lm.skeleton import logit_factor
from sae_bench.lm.tokens import TokenStream, opening_id, special_ids

log = logging.getLogger(__name__)


def _remedy(dtype: torch.dtype) -> str:
    return "get the model again: its weights hold NaN or infinity" if dtype == torch.float32 else "try float32"


# What the two kinds of pass look at: a site, the input of a decoder layer (its number), or the input of the LM head.
Key = Site | int | str
_HIDDEN = "hidden"

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments that a decoder layer was called with, apart from its hidden states: references, nothing is copied."""


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
        self._backbone = find_backbone(model)
        n_found = len(self._backbone.layers) if self._backbone else 0
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
        points = {site: self._point(site) for site in sites}
        assert points, "nothing to capture"
        with self.multiplying():
            activations = run_until_seen(self.model, tokens.to(self.device), points)
        _check_activations(activations, check)
        return {site: site.seen(x) for site, x in activations.items()}

    @torch.no_grad()
    def clean_pass(
        self, tokens: Int[Tensor, "batch seq"], sites: Iterable[Site] = (), *, check: bool = True
    ) -> "CleanPass":
        """Run the model without logits and return the activations at `sites`, with all that a replay from them needs.

        The first clean pass for a site also checks that its replay is exact, and warns where it is not. Raises
        UserError where activations are not finite; `check` as in `capture`.
        """
        tokens, sites = tokens.to(self.device), list(dict.fromkeys(sites))
        starts = {site: start for site in sites if (start := self._first_replayed_layer(site)) is not None}
        entered = {start for site, start in starts.items() if start == site.layer}
        layers = self._backbone.layers if self._backbone else []
        points: dict[Key, tuple[nn.Module, Side]] = {
            **{site: self._point(site) for site in sites},
            **{i: (layers[i], "input") for i in entered},
            _HIDDEN: (self.model.get_output_embeddings(), "input"),
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
        _check_activations(activations, check)
        clean = CleanPass(self, tokens, activations, seen[_HIDDEN], {i: seen[i] for i in entered}, calls)
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
        inner = self._backbone.layers if self._backbone else [self.model]
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
            raise UserError(f'model "{self.name}": logits in {self.dtype} are not all finite: {_remedy(self.dtype)}')
        # They agree to rounding, which soft-capping in bfloat16 makes coarse; a forgotten factor is far larger.
        if not (ours - theirs).norm() <= 0.03 * theirs.norm():
            kind = type(self.model).__name__
            raise UserError(f'model "{self.name}": {kind} changes its logits in an unknown way: choose another model')

    def check_words(self) -> None:
        """Raise UserError if the tokenizer makes words that the model has no row for; special ones never come up."""
        n_rows = len(self.model.get_input_embeddings().weight)
        used = {*self.tokenizer.get_vocab().values()} - self.special_ids | {opening_id(self.tokenizer)}
        if max(used) >= n_rows:
            raise UserError(
                f'model "{self.name}": its tokenizer has words up to number {max(used)}, the model embeds {n_rows}: '
                "choose the tokenizer that belongs to it"
            )

    def _point(self, site: Site) -> tuple[nn.Module, Side]:
        return self.model.get_submodule(site.path), site.side

    def _first_replayed_layer(self, site: Site) -> int | None:
        """Return the first decoder layer that a replay from `site` runs; None if it has to run the whole model."""
        if self._backbone is None or not self._replayable.get(site, True):
            return None
        layer = f"{self._backbone.layers_path}.{site.layer}"
        if site.path == layer and site.side == "output":
            return site.layer + 1
        return site.layer if f"{site.path}.".startswith(f"{layer}.") else None

    def _is_replayable(self, clean: "CleanPass", site: Site) -> bool:
        same = self._first_replayed_layer(site) is not None and torch.equal(
            clean.replay(site, clean.activations[site]), clean.hidden
        )
        if not same:
            log.warning("%s: replaying the layers after it is not exact; every replay runs the whole model", site.name)
        return same


@dataclass(frozen=True, eq=False)
class CleanPass:
    """One pass of the language model over `tokens`, left as it is, and the means to continue it from a site.

    `activations` are those of the sites it was asked for; `hidden` is what the LM head sees, after the final norm.
    All tensors are the model's own, so do not change them in place.
    """

    lm: LanguageModel
    tokens: Int[Tensor, "batch seq"]
    activations: dict[Site, Tensor]
    hidden: Float[Tensor, "batch seq d_model"]
    layer_inputs: dict[int, Tensor]
    calls: dict[int, LayerCall]

    def replay(self, site: Site, x_new: Float[Tensor, "batch seq d_in"]) -> Float[Tensor, "batch seq d_model"]:
        """Return `hidden` as it is with `x_new`, cast to their dtype, in the place of the activations at `site`.

        `site` is one of this pass. Positions that shall stay clean carry their clean activation in `x_new`. Gradients
        flow back to an `x_new` that requires them.
        """
        assert site in self.activations, f"{site.name} is no site of this pass"
        lm, x_new = self.lm, x_new.to(self.activations[site].dtype)
        start = lm._first_replayed_layer(site)
        with ExitStack() as hooks:
            # A copy: a model may write over it. Of all contexts' tokens in a row, where the module has them so.
            hooks.enter_context(intercept(*lm._point(site), lambda x: x_new.reshape(x.shape).clone()))
            if site.kind == "resid_mid":  # the stream goes on beside the module that is given it, to the layer's end
                layer, change = lm.model.get_submodule(site.path.rpartition(".")[0]), x_new - self.activations[site]
                hooks.enter_context(intercept(layer, "output", lambda x: x + change))
            hooks.enter_context(lm.multiplying())
            if start is None:
                head = lm.model.get_output_embeddings()
                return run_until_seen(lm.model, self.tokens, {_HIDDEN: (head, "input")})[_HIDDEN]
            assert lm._backbone is not None
            # A replay starts behind the site's layer, or, for a site within the layer, at the layer's own input.
            hidden: Tensor = x_new if start > site.layer else self.layer_inputs[start]
            for i, layer in enumerate(lm._backbone.layers[start:], start):
                args, kwargs = self.calls[i]
                output = layer(hidden, *args, **kwargs)
                hidden = output[0] if isinstance(output, tuple | list) else output
            result: Tensor = lm._backbone.final_norm(hidden)
            return result

    def splice(self, site: Site, at: Int[Tensor, " n"], x_new: Float[Tensor, "n d_in"]) -> Float[Tensor, "m d_model"]:
        """`replay` with `x_new` at some positions, clean activations elsewhere; all contexts' m positions in a row."""
        x = self.activations[site]
        return self.replay(site, x.flatten(0, 1).index_copy(0, at, x_new.to(x.dtype)).view_as(x)).flatten(0, 1)


def _check_activations(activations: Mapping[Site, Tensor], values: bool) -> None:
    for site, x in activations.items():
        if (d := x.shape[-1]) != site.d_in:
            raise UserError(f"{site.name}: {site.path} is {d} wide, not {site.d_in}: is it another model's site?")
        if values:
            check_finite(site, torch.isfinite(x).all(), x.dtype)


def check_finite(site: Site, finite: Bool[Tensor, ""], dtype: torch.dtype) -> None:
    """Raise UserError unless `finite`, which says whether all activations at `site` are; this waits for the device."""
    if not finite:
        raise UserError(f"{site.name}: activations in {dtype} are not all finite: {_remedy(dtype)}")
