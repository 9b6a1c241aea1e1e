"""Mean and deviation of embeddings, by which priors and decoders standardise them."""

from __future__ import annotations

from torch import Tensor


def moments(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [width] of embeddings [n, width], float64; no deviation is below 1e-6.

    Raises:
        ValueError: fewer than two of them.
    """
    if len(embeddings) < 2:
        raise ValueError(f"{len(embeddings)} embeddings have no deviation: give at least two")
    exact = embeddings.double()
    return exact.mean(0), exact.std(0).clamp(min=1e-6)
