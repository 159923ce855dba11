"""The faster of PyTorch's two float32 matrix products on this processor, when it is as exact.

Measured on an AMD processor with AVX-512: MKL, the default, runs its AVX2 kernels (110 GFLOP/s a core), oneDNN its
AVX-512 ones (250). PyTorch hands float32 products to oneDNN only when lower internal precision is allowed, which
oneDNN makes use of on processors with matrix units (AMX) alone. So: allow it, look whether the products are still
float32, and else take it back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

FLOAT32_ERROR = 5e-6  # relative to the largest entry; float32 sums of 256 terms err by 1e-6, bfloat16 factors by 3e-3


def use_fastest_exact_matmul(device: torch.device | str = "cpu") -> str:
    """From now on float32 products on the CPU take the fastest route that is exact; other devices are left alone.

    Returns
    -------
    str
        "onednn" or "default", for the record.
    """
    before = torch.get_float32_matmul_precision()
    if torch.device(device).type != "cpu" or before != "highest":
        return "default"
    torch.set_float32_matmul_precision("medium")
    if _still_float32():
        return "onednn"
    torch.set_float32_matmul_precision(before)
    return "default"


@contextmanager
def fastest_exact_matmul(device: torch.device | str = "cpu") -> Iterator[str]:
    """`use_fastest_exact_matmul` within the block only; on CUDA `exact_float32`."""
    before = torch.get_float32_matmul_precision()
    try:
        with exact_float32(device):
            yield use_fastest_exact_matmul(device)
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """Within the block float32 on CUDA is float32: no TF32, which PyTorch lets convolutions use. Elsewhere nothing."""
    with float32_on_cuda(device, tf32=False):
        yield


@contextmanager
def float32_on_cuda(device: torch.device | str, *, tf32: bool) -> Iterator[None]:
    """Within the block all float32 products and convolutions on CUDA are exact, or all may use TF32; else nothing.

    TF32 keeps 10 of float32's 23 bits of mantissa. PyTorch's own default is neither: TF32 in convolutions alone.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    # not the newer `fp32_precision`: once it was set, get_float32_matmul_precision raises
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@cache  # of the processor, which stays
def _still_float32() -> bool:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 256, 256, generator=draw)
    exact = a.double() @ b.double()
    worst = max(
        ((product.double() - exact).abs().max() / exact.abs().max()).item()
        for product in (torch.bmm(a, b), _single(a, b))
    )
    return worst <= FLOAT32_ERROR


def _single(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([x @ y for x, y in zip(a, b, strict=True)])
