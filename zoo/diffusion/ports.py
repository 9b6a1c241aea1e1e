"""Operations on a whole `Conditioning`: cast it, choose per sample, take samples, put two batches in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from zoo.interface import Conditioning

PORTS = tuple(field.name for field in fields(Conditioning))
EXACT = ("augmentation", "guidance", "vector")  # ports that are too exact for half precision


def cast(conditioning: Conditioning, device: torch.device, dtype: torch.dtype) -> Conditioning:
    """On `device`, floating ports in `dtype`; masks stay bool, and the `EXACT` ports float32."""

    def move(name: str, port: Tensor) -> Tensor:
        keep = name in EXACT or not port.is_floating_point()
        return port.to(device) if keep else port.to(device, dtype)

    ports = {name: getattr(conditioning, name) for name in PORTS}
    return Conditioning(**{name: None if port is None else move(name, port) for name, port in ports.items()})


def check_batch(conditioning: Conditioning, batch: int) -> None:
    """Every port holds `batch` samples.

    Raises:
        ValueError: naming the port that does not.
    """
    for name in PORTS:
        port = getattr(conditioning, name)
        if port is not None and port.shape[0] != batch:
            raise ValueError(f"conditioning.{name} holds {port.shape[0]} samples, but the batch has {batch}")


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` [batch], or one number, shaped to be broadcast to `like` [batch, ...]: a value for each sample."""
    return values.view(-1, *[1] * (like.dim() - 1))


def choose(drop: Tensor, null: Conditioning, conditioning: Conditioning) -> Conditioning:
    """Per sample, `null` where drop [batch] is True. Its empty ports keep what is there; one sample serves all."""

    def pick(given: Tensor, other: Tensor) -> Tensor:
        return torch.where(per_sample(drop.to(given.device), given), other.to(given), given)

    return _merge(conditioning, null, pick)


def join(conditioning: Conditioning, null: Conditioning) -> Conditioning:
    """Both in one batch, `conditioning` first. An empty port of `null` is filled from `conditioning`."""

    def stack(given: Tensor, other: Tensor) -> Tensor:
        return torch.cat([given, other.to(given).expand_as(given)])

    return _merge(conditioning, null, stack, fill=lambda given: torch.cat([given, given]))


def rows(conditioning: Conditioning, which: Tensor | Sequence[int]) -> Conditioning:
    """The samples with these numbers."""
    numbers = torch.as_tensor(which)
    ports = {name: getattr(conditioning, name) for name in PORTS}
    return Conditioning(
        **{name: None if port is None else port[numbers.to(port.device)] for name, port in ports.items()}
    )


def _merge(
    conditioning: Conditioning,
    null: Conditioning,
    both: Callable[[Tensor, Tensor], Tensor],
    fill: Callable[[Tensor], Tensor] = lambda given: given,
) -> Conditioning:
    # A mask that only one side has is all True on the other side: attend to every token.
    if (
        conditioning.tokens is not None
        and null.tokens is not None
        and (conditioning.mask is None) != (null.mask is None)
    ):
        conditioning, null = _with_mask(conditioning), _with_mask(null)
    merged: dict[str, Tensor | None] = {}
    for name in PORTS:
        given, other = getattr(conditioning, name), getattr(null, name)
        if given is None and other is not None:
            raise ValueError(f"the null conditioning has {name}, but the conditioning has none; give both or neither")
        if given is not None and other is not None:
            if other.shape[1:] != given.shape[1:] or other.shape[0] not in (1, given.shape[0]):
                raise ValueError(
                    f"{name} of the null conditioning has shape {list(other.shape)}, expected {list(given.shape)} "
                    "(or one sample for the whole batch)"
                )
            merged[name] = both(given, other)
        else:
            merged[name] = None if given is None else fill(given)
    return Conditioning(**merged)


def _with_mask(conditioning: Conditioning) -> Conditioning:
    if conditioning.mask is not None or conditioning.tokens is None:
        return conditioning
    tokens = conditioning.tokens
    return replace(conditioning, mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
