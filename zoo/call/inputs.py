"""The pictures that a call begins with: where sampling starts, what is kept, what goes where."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.arguments import Picture, as_images, as_layout, as_mask, shrink
from zoo.call.abilities import ImageEncoder, Inpainting, Mapped
from zoo.interface import Decoder, Generator, Init


def start_of(
    generator: Generator,
    decoder: Decoder,
    image: Picture | Sequence[Picture] | None,
    mask: Picture | Sequence[Picture] | None,
    strength: float | None,
    size: tuple[int, int] | None,
    prompts: int,
    count: int,
) -> tuple[Init | None, tuple[Tensor, Tensor] | None]:
    """Where sampling starts, and the pixels to keep (original, mask), from what the user gave.

    Raises:
        ValueError: a mask or strength without an image, a decoder that cannot encode, or a strength outside (0, 1].
    """
    if image is None:
        if mask is not None or strength is not None:
            raise ValueError("mask and strength say what to do with an image: give image= as well")
        return None, None
    if not isinstance(decoder, ImageEncoder):
        raise ValueError(f"{type(decoder).__name__} cannot encode images, so image= does not work with it")
    strength = (1.0 if mask is not None else 0.6) if strength is None else strength
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], not {strength}: 1 keeps nothing of the image")
    pictures = as_images(image, size, prompts, count)
    latents = decoder.encode(pictures).data.float().cpu()
    latents = latents.expand(count, *latents.shape[1:])
    if mask is None:
        return Init(latents, strength), None
    fresh = as_mask(mask, (pictures.shape[-2], pictures.shape[-1]), prompts, count)
    small, known = shrink(fresh, latents), None
    if isinstance(generator, Inpainting) and generator.inpaints:
        # As such networks were trained: a mask of whole latents, and grey, 0 in [-1, 1], where it is.
        small = (F.interpolate(fresh, latents.shape[-2:]) >= 0.5).float()
        known = decoder.encode(torch.where(fresh >= 0.5, 0.5, pictures)).data.float().cpu()
        known = known.expand(count, *known.shape[1:])
    return Init(latents, strength, small.expand(count, *small.shape[1:]), known), (pictures, fresh)


def layout_of(
    generator: Generator,
    name: str,
    layout: Picture | Sequence[Picture] | None,
    size: tuple[int, int] | None,
    prompts: int,
    count: int,
) -> Tensor | None:
    """The class of every pixel, [count, height, width], where the model `name` is shown a painted map.

    Raises:
        ValueError: it takes none.
    """
    if layout is None:
        return None
    if not isinstance(generator, Mapped) or not generator.classes:
        raise ValueError(f"{name} takes no layout: its generator was trained without semantic maps")
    return as_layout(layout, generator.classes, size, prompts, count)
