"""A CUDA device for machines without one: tensors on it have a shape, a dtype and a device, and no numbers.

    with FakeCuda() as cuda:
        lm = fake_language_model(folder)    # on "cuda"
        torch.ones(3).tolist()              # tensors on the CPU are as real as ever
        with cuda.border(closed=True):      # a copy from one device to the other is an error
            lm.capture(tokens, sites)

What would wait for a device fails here: its numbers cannot be read, not even how many rows a mask selects. So does an
operation on tensors of two devices.
"""

import ctypes
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import eager_mask

from sae_bench.lm.load import language_model_shape
from sae_bench.lm.model import LanguageModel

N_DEVICE_TYPES, CUDA, META = 21, 1, 14  # of c10::DeviceType

SENDS_A_ZERO = "torch.tensor(0.0" in inspect.getsource(eager_mask)
"""Whether transformers itself sends a number to the device for a mask of eager attention: 5.17 does, 5.23 does not."""


def _stand_in_for_cuda() -> None:
    """Give "cuda" the device guard that does nothing.

    torch does so itself where it was built with CUDA and finds no GPU; a build without CUDA has no guard, and refuses
    to slice even a fake tensor.
    """
    (c10,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    guards = (ctypes.c_void_p * N_DEVICE_TYPES).in_dll(
        ctypes.CDLL(str(c10)), "_ZN3c104impl26device_guard_impl_registryE"
    )
    guards[CUDA] = guards[CUDA] or guards[META]


class FakeCuda(TorchDispatchMode):
    """Within it, "cuda" is a device that computes shapes only."""

    def __init__(self) -> None:
        super().__init__()
        _stand_in_for_cuda()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._closed = False

    def __enter__(self) -> "FakeCuda":
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    @contextmanager
    def border(self, *, closed: bool) -> Iterator[None]:
        """Forbid copies between devices, or allow them within a block where they are forbidden."""
        before, self._closed = self._closed, closed
        try:
            yield
        finally:
            self._closed = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._closed and func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            theirs = SENDS_A_ZERO and source.ndim == 0
            assert theirs or source.device.type == result.device.type, f"a copy from {source.device} to {result.device}"
        return result


def fake_language_model(folder: Path, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """A language model on the fake device; call it within `FakeCuda`."""
    with torch.device("cuda"):
        return language_model_shape(str(folder), dtype=dtype)
