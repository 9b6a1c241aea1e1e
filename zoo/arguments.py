"""What a user may write for prompts, seeds, images and masks, brought to one form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from zoo.upright import as_rgb, upright

Picture: TypeAlias = Image.Image | Tensor
IMAGES = 4  # for each prompt, unless the call says otherwise


def as_prompts(prompts: str | Sequence[str]) -> list[str]:
    """One prompt or several, as a list.

    Raises:
        ValueError: there are none, or one is not text.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ValueError('no prompts: give at least one, if only the empty one ("") for an unconditional picture')
    for prompt in listed:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt is text, not {type(prompt).__name__}: {prompt!r}")
    return listed


def as_negatives(negative: str | Sequence[str] | None, prompts: int) -> list[str]:
    """A negative prompt for every prompt, "" for none.

    Raises:
        ValueError: a list that is not one for each prompt.
    """
    if negative is None or isinstance(negative, str):
        return [negative or ""] * prompts
    listed = as_prompts(negative)
    if len(listed) != prompts:
        raise ValueError(f"{len(listed)} negative prompts for {prompts} prompts: give one for all, or one for each")
    return listed


def as_seeds(seed: int | Sequence[int], n: int | None, prompts: int) -> list[int]:
    """The seed of every image, prompt by prompt.

    Raises:
        ValueError: no images are asked for, a seed is not a whole number from 0, or their number does not fit.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1 image for each prompt, not {n}")
    if isinstance(seed, Sequence):
        given = [_seed(value) for value in seed]
        wanted = len(given) if n is None else n
        if not given or len(given) not in (wanted, wanted * prompts):
            raise ValueError(
                f"{len(given)} seeds for {prompts} prompt{'s' * (prompts > 1)} and n={n}: give a first seed, one seed "
                f"for each image of a prompt, or one for each image of the call"
            )
        return given if len(given) == wanted * prompts else given * prompts
    first = _seed(seed)
    return [first + j for _ in range(prompts) for j in range(n or IMAGES)]


def as_images(given: Picture | Sequence[Picture], size: tuple[int, int] | None, prompts: int, count: int) -> Tensor:
    """Pictures as [count, 3, height, width] in [0, 1] ([1, ...] if all share one), cropped and scaled to `size`.

    PIL pictures are turned upright, and what is transparent in them is white.

    Raises:
        ValueError: their kind, number, shape or range does not fit.
    """
    return _stack([_pixels(one, size, "RGB") for one in _listed(given, "image")], "image", prompts, count)


def as_mask(given: Picture | Sequence[Picture], size: tuple[int, int], prompts: int, count: int) -> Tensor:
    """Masks as [count, 1, height, width] in [0, 1] (or [1, ...]), 1 where the picture is made anew.

    PIL pictures are turned upright; their brightness counts, and transparency does not.

    Raises:
        ValueError: their kind, number, shape or range does not fit.
    """
    return _stack([_pixels(one, size, "L") for one in _listed(given, "mask")], "mask", prompts, count)


def as_layout(
    given: Picture | Sequence[Picture], classes: Sequence[str], size: tuple[int, int] | None, prompts: int, count: int
) -> Tensor:
    """Semantic maps as class numbers [count, height, width], int64; pictures are cropped and scaled to `size`.

    PIL pictures are turned upright first.

    Raises:
        ValueError: their number, shape or kind does not fit, or they hold a number that is no class.
    """
    listed = list(given) if isinstance(given, Tensor) and given.dim() == 3 else _listed(given, "layout")
    painted = _stack([_numbers(one, size) for one in listed], "layout", prompts, count)
    if painted.numel() and not 0 <= int(painted.min()) <= int(painted.max()) < len(classes):
        wrong = next(int(number) for number in painted.unique() if not 0 <= number < len(classes))
        named = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
        raise ValueError(f"the layout holds {wrong}, which is no class; there are: {named}")
    return painted.expand(count, *painted.shape[1:])


def shrink(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of pixels as one of latents: a latent is free to change as soon as one of its pixels is."""
    return F.adaptive_max_pool2d(mask, (like.shape[-2], like.shape[-1]))


def _seed(value: object) -> int:
    try:
        seed = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"a seed is a whole number, not {value!r}") from None
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed lies between 0 and 2**63 - 1, not {seed}")
    return seed


def _listed(given: Picture | Sequence[Picture], what: str) -> list[Picture]:
    if isinstance(given, Tensor):
        return list(given) if given.dim() == 4 else [given]
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    listed = list(cast(Sequence[Picture], given)) if several else [cast(Picture, given)]
    for one in listed:
        if not isinstance(one, Image.Image | Tensor):
            raise ValueError(
                f"{what} is a PIL picture or a tensor, or a list of them, not {type(one).__name__}: open a file by "
                "PIL.Image.open, make a picture of an array by PIL.Image.fromarray"
            )
    return listed


def _pixels(picture: Picture, size: tuple[int, int] | None, mode: str) -> Tensor:
    channels = 3 if mode == "RGB" else 1
    if isinstance(picture, Image.Image):
        fitted = as_rgb(picture) if mode == "RGB" else upright(picture).convert(mode)
        if size is not None and fitted.size != (size[1], size[0]):
            fitted = ImageOps.fit(fitted, (size[1], size[0]), Image.Resampling.LANCZOS)
        return (
            torch.from_numpy(np.array(fitted, dtype=np.float32) / 255)
            .reshape(*fitted.size[::-1], channels)
            .movedim(2, 0)
        )
    pixels = picture.detach().float().cpu()
    pixels = pixels[None] if pixels.dim() == 2 else pixels
    wanted = (channels, *(size or pixels.shape[1:]))
    if tuple(pixels.shape) != wanted:
        raise ValueError(f"a picture given as a tensor has shape {list(pixels.shape)}, expected {list(wanted)}")
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError("a picture given as a tensor has values outside [0, 1]")
    return pixels


def _numbers(layout: Picture, size: tuple[int, int] | None) -> Tensor:
    if isinstance(layout, Image.Image):
        if layout.mode not in ("L", "P"):
            raise ValueError(
                f"a layout is a picture of class numbers, of mode L or P, not {layout.mode}: its colours would have to "
                "be guessed"
            )
        layout = upright(layout)
        if size is not None and layout.size != (size[1], size[0]):
            layout = ImageOps.fit(layout, (size[1], size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(layout, dtype=np.int64))
    if (
        layout.is_floating_point()
        or layout.is_complex()
        or layout.dim() != 2
        or tuple(layout.shape) != (size or layout.shape)
    ):
        wanted = list(size) if size else "[height, width]"
        raise ValueError(
            f"a layout given as a tensor holds whole numbers, of shape {wanted}, not {layout.dtype} of shape "
            f"{list(layout.shape)}"
        )
    return layout.detach().long().cpu()


def _stack(pictures: list[Tensor], what: str, prompts: int, count: int) -> Tensor:
    if len({tuple(picture.shape) for picture in pictures}) != 1:
        raise ValueError(f"{what}: pictures of one size are needed, at least one; give height and width to fit them")
    if len(pictures) not in (1, prompts, count):
        raise ValueError(f"{len(pictures)} {what}s: give one for all, one for each of {prompts} prompts, or {count}")
    stacked = torch.stack(pictures)
    return stacked if len(pictures) in (1, count) else stacked.repeat_interleave(count // prompts, 0)
