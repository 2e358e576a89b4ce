"""What is counted during training on the device, and read by the host without stopping it.

Asking a GPU for a number waits for everything it was given to do. So what is counted in training stays on the device -
how long each latent has been idle, the first step with a loss that is not finite - and every few steps it is sent off;
it is read when the next is sent, and has long arrived. The delay is the same on every device, so that a run does not
depend on how fast its device is.

Shapes: F = d_sae.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

READ_EVERY = 5
"""Steps between readings; what is read is as old."""


class DeviceStats:
    """The statistics of one SAE in training.

    `dead` lists the latents that had not fired for `dead_after` tokens. `diverged_at` is the first step with a loss
    that was not finite.
    """

    def __init__(self, d_sae: int, dead_after: float, device: torch.device) -> None:
        self.dead: Int[Tensor, " n_dead"] = torch.empty(0, dtype=torch.long, device=device)
        self.n_skipped = 0
        self.diverged_at: int | None = None
        self._dead_after = dead_after
        self._idle_tokens = torch.zeros(d_sae, device=device)
        self._first_bad = torch.full((), -1.0, device=device)
        self._skipped = torch.zeros((), device=device)
        self._sent: HostCopy | None = None

    def usable(self, check: Float[Tensor, ""], step: int) -> Bool[Tensor, ""]:
        """Whether a step's gradients may be used: `check` is finite, and was at all earlier steps.

        Steps that may not be are counted; the first that was not finite is remembered.
        """
        finite = check.isfinite()
        self._first_bad = torch.where(finite | (self._first_bad >= 0), self._first_bad, float(step))
        usable = self._first_bad < 0  # once it has diverged, the weights stay
        self._skipped = self._skipped + ~usable
        return usable

    def note(self, fired: Bool[Tensor, " F"], n_tokens: int, step: int) -> None:
        """Take in which latents fired on a batch; every few steps, read."""
        self._idle_tokens = torch.where(fired, 0.0, self._idle_tokens + n_tokens)
        if (step + 1) % READ_EVERY == 0:
            self.read()

    def read(self) -> None:
        """Read what was sent last, and send what is counted now."""
        if self._sent is not None:
            skipped, first_bad = (numbers := self._sent.numbers())[:2].tolist()
            self.n_skipped, self.diverged_at = int(skipped), int(first_bad) if first_bad >= 0 else None
            dead = (numbers[2:] >= self._dead_after).nonzero().squeeze(1)
            self.dead = dead.to(self._idle_tokens.device, non_blocking=True)
        self._sent = HostCopy(torch.cat([torch.stack([self._skipped, self._first_bad]), self._idle_tokens]))

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {
            "dead": self.dead,
            "n_skipped": self.n_skipped,
            "diverged_at": self.diverged_at,
            "idle_tokens": self._idle_tokens,
            "first_bad": self._first_bad,
            "skipped": self._skipped,
            "sent": None if self._sent is None else self._sent.numbers(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        device = self._idle_tokens.device
        self.dead, self.n_skipped, self.diverged_at = state["dead"].to(device), state["n_skipped"], state["diverged_at"]
        self._idle_tokens = state["idle_tokens"].to(device)
        self._first_bad, self._skipped = state["first_bad"].to(device), state["skipped"].to(device)
        self._sent = None if state["sent"] is None else HostCopy(state["sent"])

    def close(self) -> None:
        """Read everything, waiting for it: after the last step."""
        self.read()
        self.read()


class HostCopy:
    """A copy of a tensor on its way to the host; only asking for it waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda" and torch.cuda.is_available():
            self._copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))
        else:
            self._copy = tensor.cpu().clone()

    def numbers(self) -> Tensor:
        """The copy, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
