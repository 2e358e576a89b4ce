"""One pass of a language model, and what comes after a site of it run again with something else there.

Everything before the site is the same each time. So `LanguageModel.clean_pass` notes how every decoder layer after the
site was called (position embeddings, masks), and `CleanPass.replay` calls those layers again, with those arguments, on
the changed activations: N SAEs cost one prefix and N suffixes. Replaying what was captured gives the clean result bit
for bit. That is not assumed but checked at the first clean pass for each site; a site that fails is replayed by whole
forward passes instead.

Shape letters: batch contexts, seq tokens in each, d_in width of a site, d_model width of the model, n tokens.
"""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_bench.lm.hooks import Side, intercept, run_until_seen
from sae_bench.lm.layers import Backbone
from sae_bench.lm.sites import Site

HIDDEN = "hidden"
"""What a pass calls the input of the LM head."""

LayerCall = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments that a decoder layer was called with, apart from its hidden states: references, nothing is copied."""


@runtime_checkable
class Replayed(Protocol):
    """What a replay asks of the language model; `LanguageModel` says what each is."""

    model: PreTrainedModel
    backbone: Backbone | None

    def point(self, site: Site) -> tuple[nn.Module, Side]: ...

    def first_replayed_layer(self, site: Site) -> int | None: ...

    def multiplying(self) -> AbstractContextManager[object]: ...


@dataclass(frozen=True, eq=False)
class CleanPass:
    """One pass of the language model over `tokens`, left as it is, and the means to continue it from a site.

    `activations` are those of the sites it was asked for; `hidden` is what the LM head sees, after the final norm.
    All tensors are the model's own, so do not change them in place.
    """

    lm: Replayed
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
        start = lm.first_replayed_layer(site)
        with ExitStack() as hooks:
            # A copy: a model may write over it. Of all contexts' tokens in a row, where the module has them so.
            hooks.enter_context(intercept(*lm.point(site), lambda x: x_new.reshape(x.shape).clone()))
            if site.kind == "resid_mid":  # the stream goes on beside the module that is given it, to the layer's end
                layer, change = lm.model.get_submodule(site.path.rpartition(".")[0]), x_new - self.activations[site]
                hooks.enter_context(intercept(layer, "output", lambda x: x + change))
            hooks.enter_context(lm.multiplying())
            if start is None:
                head = lm.model.get_output_embeddings()
                return run_until_seen(lm.model, self.tokens, {HIDDEN: (head, "input")})[HIDDEN]
            assert lm.backbone is not None
            # A replay starts behind the site's layer, or, for a site within the layer, at the layer's own input.
            hidden: Tensor = x_new if start > site.layer else self.layer_inputs[start]
            for i, layer in enumerate(lm.backbone.layers[start:], start):
                args, kwargs = self.calls[i]
                output = layer(hidden, *args, **kwargs)
                hidden = output[0] if isinstance(output, tuple | list) else output
            result: Tensor = lm.backbone.final_norm(hidden)
            return result

    def splice(self, site: Site, at: Int[Tensor, " n"], x_new: Float[Tensor, "n d_in"]) -> Float[Tensor, "m d_model"]:
        """`replay` with `x_new` at some positions, clean activations elsewhere; all contexts' m positions in a row."""
        x = self.activations[site]
        return self.replay(site, x.flatten(0, 1).index_copy(0, at, x_new.to(x.dtype)).view_as(x)).flatten(0, 1)
