"""Where bfloat16 is fast: GPUs since Ampere, and CPUs that multiply it faster than float32.

CPUs without instructions for it imitate it, fifty times slower; of those with AVX-512 BF16 alone, some take half of
float32's time (AMD Zen 4) and some twice (Intel Xeons whose AMX is hidden from a virtual machine). So it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

SIDE = 512  # of the matrices that are multiplied: a few milliseconds
TRIES = 5
AMPERE = (8, 0)  # the first GPUs of NVIDIA's that multiply bfloat16; older ones imitate it


def in_half(autocast: str, device: torch.device) -> bool:
    """Does training under a recipe's `autocast` compute in bfloat16 on `device`? "auto" does where that is fast."""
    return autocast == "bf16" or (autocast == "auto" and bf16_is_fast(device.type))


@contextmanager
def aside(autocast: torch.autocast) -> Iterator[None]:
    """`autocast` in another thread than the training step's, which makes batches.

    Leaving a `torch.autocast` drops what all threads have cast, in the middle of the step of another: a weight that it
    uses twice would be cast twice, and its gradient rounded otherwise than in a run that was not disturbed.
    """
    kind = autocast.device
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, autocast._enabled)
    torch.set_autocast_dtype(kind, autocast.fast_dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


@cache
def bf16_is_fast(device: str) -> bool:
    """Does the device ("cpu", "cuda" ...) multiply bfloat16 faster than float32? CPUs are timed, once."""
    if device == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability() >= AMPERE
    if device != "cpu":
        return True
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(capable) and seconds(torch.bfloat16) < seconds(torch.float32)


def seconds(dtype: torch.dtype) -> float:
    """What a product of two matrices takes on the CPU, at its best of some tries."""
    matrix = torch.ones(SIDE, SIDE, dtype=dtype)
    torch.mm(matrix, matrix)  # kernels are made on their first use
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - start)
    return min(taken)
