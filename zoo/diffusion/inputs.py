"""What every network over images checks of its inputs, so that all refuse the same in the same words."""

from __future__ import annotations

from torch import Tensor

from zoo.interface import Conditioning


def check_inputs(
    x: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    *,
    downsampling: int,
    in_channels: int,
    context_width: int | None,
    vector: int | None = None,
    augmentation: bool = False,
    guidance: bool = False,
    resize: str = "",
) -> None:
    """The inputs of a U-Net are those it was built for.

    in_channels: of x [batch, channels, height, width] and `concat` together. context_width: of the text tokens, None
    for a network without text. vector: width of that port, None without one. augmentation, guidance: are they inputs?
    resize: what to do about a `concat` of another size, for the message.

    Raises:
        ValueError: an input is missing, not asked for, or of the wrong shape.
    """
    tokens, concat, mask = conditioning.tokens, conditioning.concat, conditioning.mask
    if x.ndim != 4 or x.shape[2] % downsampling or x.shape[3] % downsampling:
        raise ValueError(
            f"the input has shape {list(x.shape)}; this U-Net needs [batch, channels, height, width] with "
            f"height and width multiples of {downsampling}"
        )
    batch = x.shape[0]
    extra = 0 if concat is None else concat.shape[1]
    if x.shape[1] + extra != in_channels:
        raise ValueError(
            f"the input has {x.shape[1]} channels and Conditioning.concat {extra}; "
            f"this U-Net needs {in_channels} in all"
        )
    if concat is not None and (concat.shape[0] != batch or concat.shape[2:] != x.shape[2:]):
        raise ValueError(
            f"Conditioning.concat has shape {list(concat.shape)}, the input {list(x.shape)}: they differ{resize}"
        )
    if t.shape != (batch,):
        raise ValueError(f"the times have shape {list(t.shape)}; one per input is needed: [{batch}]")
    if tokens is None and context_width is not None:
        raise ValueError(f"Conditioning.tokens is missing: this U-Net needs text [batch, length, {context_width}]")
    if tokens is not None and (tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != context_width):
        raise ValueError(
            f"Conditioning.tokens has shape {list(tokens.shape)}; this U-Net "
            + (f"needs [{batch}, length, {context_width}]" if context_width else "was built without text")
        )
    if mask is not None and (tokens is None or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"Conditioning.mask has shape {list(mask.shape)}, not "
            + ("that of tokens: there are none" if tokens is None else f"{list(tokens.shape[:2])}")
        )
    numbers = (batch,)
    _check_port("vector", conditioning.vector, None if vector is None else (batch, vector))
    _check_port("augmentation", conditioning.augmentation, numbers if augmentation else None)
    _check_port("guidance", conditioning.guidance, numbers if guidance else None)


def check_size(height: int, width: int, multiple: int) -> None:
    """A picture of this size can be made by a network that needs multiples of `multiple`.

    Raises:
        ValueError: it cannot; the message names the nearest possible size.
    """
    if min(height, width) < 1 or height % multiple or width % multiple:
        near = " x ".join(str(max(1, round(side / multiple)) * multiple) for side in (height, width))
        raise ValueError(
            f"impossible size {height} x {width}: height and width must be positive multiples of {multiple}; "
            f"the nearest is {near}"
        )


def _check_port(name: str, given: Tensor | None, needed: tuple[int, ...] | None) -> None:
    found = None if given is None else tuple(given.shape)
    if found != needed:
        raise ValueError(
            f"Conditioning.{name} has shape {found}; this U-Net was built for {needed} (None: no such port)"
        )
