"""Where bfloat16 is fast: GPUs, and CPUs that compute in it. Others imitate it, fifty times slower than float32."""

from __future__ import annotations

from functools import cache

import torch


def in_half(autocast: str, device: torch.device) -> bool:
    """Does training under a recipe's `autocast` compute in bfloat16 on `device`? "auto" does where that is fast."""
    return autocast == "bf16" or (autocast == "auto" and bf16_is_fast(device.type))


@cache
def bf16_is_fast(device: str) -> bool:
    """Has the device ("cpu", "cuda" ...) instructions for bfloat16? Of CPUs, those with AVX-512 BF16 or AMX do."""
    if device != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
