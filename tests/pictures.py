"""How pictures are held against each other."""

from __future__ import annotations

from torch import Tensor


def same(a: Tensor, b: Tensor) -> bool:
    """Of one shape, and nowhere more than a step of eight bits apart."""
    return a.shape == b.shape and float((a - b).abs().max()) <= 1 / 255


def apart(a: Tensor, b: Tensor) -> float:
    """The mean difference of pictures in [0, 1]."""
    assert a.shape == b.shape
    return float((a - b).abs().mean())
