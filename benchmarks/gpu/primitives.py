"""What the device can do at most, and single operations at the shapes of a step: products, selections, screens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.floors import Ceilings
from gpu.report import median_ms
from gpu.scale import Scale

GIB = 2**30
LARGEST_E4M3 = 448.0


def measure_ceilings(scale: Scale, into: Ceilings) -> list[dict[str, Any]]:
    """Copy bandwidth, and the rate of square matrix products on random numbers."""
    device, rounds = scale.device, scale.rounds
    n = GIB if device.type == "cuda" else 2**20
    source, target = torch.rand(n, device=device), torch.empty(n, device=device)
    ms = median_ms(partial(target.copy_, source), device, rounds=rounds)
    into.bandwidth = 8 * n / ms * 1000
    rows = [{"ceiling": "copy, GB/s read and written", "value": into.bandwidth / 1e9}]
    del source, target
    size = 8192 if device.type == "cuda" else 256
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False), ("float32", torch.float32, False), ("tf32", torch.float32, True),
    ):  # fmt: skip
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
        try:
            ms = median_ms(partial(torch.mm, a, b), device, rounds=rounds)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        if name != "tf32":
            setattr(into, name, 2 * size**3 / ms * 1000)
        rows.append({"ceiling": f"matrix product, {name}, TFLOP/s", "value": 2 * size**3 / ms / 1e9})
    return rows


@torch.no_grad()
def selection_checks(scale: Scale, width: int, x: Tensor) -> list[dict[str, Any]]:
    """The encoder product and what may follow it, each alone, at the shapes of a step."""
    device, rounds, k = scale.device, scale.rounds, scale.l0
    x = x[: scale.batch]
    W = torch.randn(width, scale.d_in, device=device).div_(scale.d_in**0.5).T
    W_low = W.bfloat16()
    z = torch.empty(len(x), width, device=device)
    torch.mm(x, W, out=z)
    z_low = z.bfloat16()
    cut = z.flatten()[:: max(1, z.numel() // 2**22)].quantile(1 - k / width)
    mask = z > cut
    n_pairs = round(1.5 * k * len(x))
    group = 64 if width >= 64 * k else max(1, width // (2 * k))

    def rounded_product() -> Tensor:
        return x.bfloat16() @ W.bfloat16()

    cases: dict[str, Callable[[], object]] = {
        "product, float32": lambda: torch.mm(x, W, out=z),
        "product, bfloat16, weights rounded before": lambda: x.bfloat16() @ W_low,
        "product, bfloat16, weights rounded in it": rounded_product,
        "topk, float32": lambda: z.topk(k, dim=1, sorted=False),
        "topk, bfloat16": lambda: z_low.topk(k, dim=1, sorted=False),
        f"topk, float32, by maxima of {group}": lambda: grouped_topk(z, k, group),
        f"topk, bfloat16, by maxima of {group}": lambda: grouped_topk(z_low, k, group),
        "compare with a threshold": lambda: z > cut,
        "count": mask.count_nonzero,
        "nonzero": mask.nonzero,
        "nonzero_static": lambda: mask.nonzero_static(size=n_pairs),
        "sum of rows (one pass over z)": lambda: z.sum(1),
    }
    rows = []
    for name, do in cases.items():
        try:
            rows.append({"operation": name, "ms": median_ms(do, device, rounds=rounds, discard=2)})
        except Exception as error:  # noqa: BLE001 (the others are still worth knowing)
            rows.append({"operation": name, "note": f"{type(error).__name__}: {error}"[:200]})
    same = torch.equal(grouped_topk(z, k, group).sort(1).values, z.topk(k, dim=1).values.sort(1).values)
    rows.append({"operation": "topk by maxima gives the same values", "ok": same})
    return rows


def grouped_topk(z: Tensor, k: int, group: int) -> Tensor:
    """The k largest of each row, exactly: they lie in the k groups with the largest maxima."""
    grouped = z.view(len(z), -1, group)
    best = grouped.amax(2).topk(k, dim=1, sorted=False).indices
    return grouped.gather(1, best[:, :, None].expand(-1, -1, group)).flatten(1).topk(k, dim=1, sorted=False).values


@torch.no_grad()
def screen_checks(scale: Scale, width: int, x: Tensor) -> list[dict[str, Any]]:
    """What lower precision would give as a screen: time of its product, and candidates for each pair kept.

    |x.w - x'.w'| <= ||x - x'|| ||w|| + ||x'|| ||w - w'||, and the result is rounded; the rounding of sums is left out.
    """
    from gpu.steps import drawn_decoder

    device, k = scale.device, scale.l0
    mean = x.mean(0)
    some = x[: scale.batch] - mean
    W = drawn_decoder(device, scale.d_in, width, 0).T
    shift = mean @ W
    exact = some @ W + shift
    threshold = exact.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    kept = int((exact >= threshold).sum())
    rows = []
    for name, low_of, product in (
        ("bfloat16", lambda t: (t.bfloat16(), None), lambda a, b: a[0] @ b[0].T),
        ("float8 e4m3, rowwise scales", in_float8, scaled_product),
    ):
        try:
            a, b = low_of(some), low_of(W.T.contiguous())
            ms = median_ms(partial(product, a, b), device, rounds=scale.rounds, discard=2)
            low = product(a, b).float()
            a_back, b_back = back(a), back(b)
            of_result = low.abs() * 2**-8  # it is rounded to bfloat16
            low += shift
            bound = (
                (some - a_back).norm(dim=1)[:, None] * W.norm(dim=0)
                + a_back.norm(dim=1)[:, None] * (W.T - b_back).norm(dim=1)
                + of_result
            )
            candidates = int((low + bound >= threshold).sum())
            missed = int(((low + bound < threshold) & (exact >= threshold)).sum())
            worst = float(((low - exact).abs() / bound).max())
            rows.append({"product in": name, "ms": ms, "candidates / kept": candidates / kept, "missed": missed,
                         "largest error / bound": worst})  # fmt: skip
        except Exception as error:  # noqa: BLE001 (the other type is still worth knowing)
            rows.append({"product in": name, "note": f"{type(error).__name__}: {error}"[:200]})
    return rows


Low = tuple[Tensor, Tensor | None]
"""A matrix in low precision and the scale of each row."""


def in_float8(t: Tensor) -> Low:
    """Rows scaled so that their largest number is the largest there is."""
    scale = t.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST_E4M3
    return (t / scale).to(torch.float8_e4m3fn), scale


def back(low: Low) -> Tensor:
    """The numbers that a matrix in low precision stands for."""
    values, scale = low
    return values.float() if scale is None else values.float() * scale


def scaled_product(a: Low, b: Low) -> Tensor:
    """a b^T; on a CPU of the numbers that they stand for."""
    assert a[1] is not None, "float8 has scales"
    assert b[1] is not None, "float8 has scales"
    if a[0].device.type != "cuda":
        return back(a) @ back(b).T
    product: Tensor = torch._scaled_mm(
        a[0],
        b[0].T,
        scale_a=a[1].float(),
        scale_b=b[1].float().T.contiguous(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product
