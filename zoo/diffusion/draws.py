"""Random numbers for the samples of a batch, the first dimension counting samples.

Processes that share a batch, each seeded alike, all draw for the whole of it and keep the rows of their own samples: so
several see the noise that one would see. Which rows those are is said for the duration of a call (`shared`), as it is
of adapters; without, all of them, and what is drawn is what torch's function of that name draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_SHARE: ContextVar[tuple[int, int]] = ContextVar("zoo.diffusion.draws", default=(0, 1))


@contextmanager
def shared(rank: int, ranks: int) -> Iterator[None]:
    """Within the block, the samples at hand are the rows rank, rank + ranks, ... of a batch that is `ranks` times so
    large.

    Raises:
        ValueError: there is no such rank.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank is in [0, ranks), got {rank} of {ranks}")
    token = _SHARE.set((rank, ranks))
    try:
        yield
    finally:
        _SHARE.reset(token)


def rand(shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Even numbers in [0, 1), float32 [batch, ...], on the generator's device; on `device` without one."""
    return _mine(torch.rand(_whole(shape), generator=generator, device=_source(generator, device)))


def randn(shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Normal numbers, float32 [batch, ...], on the generator's device; on `device` without one."""
    source = _source(generator, device)
    return _mine(torch.randn(_whole(shape), generator=generator, device=source, dtype=torch.float32))


def randint(
    high: int, shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Whole numbers from 0 to high - 1, int64 [batch, ...], on the generator's device; on `device` without one."""
    return _mine(torch.randint(high, _whole(shape), generator=generator, device=_source(generator, device)))


def randn_like(x: Tensor) -> Tensor:
    """Normal numbers for x [batch, ...]: on its device, in its type, and laid out in memory as it is."""
    ranks = _SHARE.get()[1]
    return _mine(torch.randn_like(x if ranks == 1 else torch.cat([x.detach()] * ranks)))


def choice(weights: Tensor) -> Tensor:
    """For each row of weights [batch, n], not negative and not all zero, a column in proportion to them: int64 [batch].

    What `torch.multinomial` draws: the first of exponential numbers that arrive at these rates.
    """
    waiting = torch.empty(_whole(weights.shape), device=weights.device, dtype=weights.dtype).exponential_()
    return (weights / _mine(waiting)).argmax(1)


def _source(generator: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    return device if generator is None else generator.device


def _whole(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what is drawn for all who share the batch."""
    batch, *rest = shape
    return batch * _SHARE.get()[1], *rest


def _mine(drawn: Tensor) -> Tensor:
    """The rows of the samples at hand."""
    rank, ranks = _SHARE.get()
    return drawn if ranks == 1 else drawn[rank::ranks].clone()
