"""The denoisers inside a pipeline, each as something to train on pictures and their text.

A family whose parts hold denoisers has one function here that finds them, listed in `FAMILIES`: that is all it takes
for its parts to be personalised. Found are Stable Diffusion's generator, Imagen's base, the stages of a cascade, and
DALL-E 2's diffusion prior, decoder and upsamplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo.cascade import Stage, condition, shrunk
from zoo.config import Role
from zoo.dalle2.decoder import STAGE, UnclipDecoder
from zoo.dalle2.karlo import KarloUpsampler
from zoo.dalle2.prior import DiffusionPrior
from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser
from zoo.imagen.parts import CascadeDecoder, PixelGenerator
from zoo.interface import Conditioning, Representation, TextFeatures
from zoo.pipeline import ImageEncoder, Pipeline
from zoo.stable_diffusion.parts import LatentGenerator


@dataclass(frozen=True)
class Learner:
    """One denoiser of a pipeline, the role of the part that holds it, and how pictures become its training data.

    represent: images [batch, 3, height, width] in [0, 1], of the pipeline's size, to what is kept of them.
    told: what was kept and the text to x0 and its conditioning; anything random in it is drawn from torch's generator,
        by `zoo.diffusion.draws`.
    null: the conditioning of "no text".
    """

    name: str
    role: Role
    denoiser: Denoiser
    represent: Callable[[Tensor], Tensor]
    told: Callable[[Tensor, TextFeatures], tuple[Tensor, Conditioning]]
    null: Callable[[TextFeatures], Conditioning]


def learners(pipe: Pipeline) -> list[Learner]:
    """Every denoiser of a pipeline that can learn from pictures.

    Raises:
        ValueError: a part was trained for more than text (distilled, inpainting), which pictures alone do not teach.
    """
    return [learner for find in FAMILIES for learner in find(pipe)]


def _latent(pipe: Pipeline) -> list[Learner]:
    """The U-Net of a latent generator; one that also takes a map is taught without."""
    generator = pipe.generator
    if not isinstance(generator, LatentGenerator):
        return []
    if generator.inpaints or not generator.heeds_negative:
        what = "for inpainting" if generator.inpaints else "by distillation, with guidance as an input"
        raise ValueError(f"{pipe.name} was trained {what}: adapt the model it came from, and load the adapter here")

    def null(text: TextFeatures) -> Conditioning:
        return Conditioning(text.tokens, text.mask, text.pooled if generator.config.unet.vector_width else None)

    def told(data: Tensor, text: TextFeatures) -> tuple[Tensor, Conditioning]:
        said = null(text)
        if generator.classes:
            said = replace(said, concat=data.new_zeros(len(data), len(generator.classes), *data.shape[2:]))
        return data, said

    return [Learner("generator", "generator", generator.denoiser, _encoded(pipe), told, null)]


def _pixels(pipe: Pipeline) -> list[Learner]:
    """The network of small pictures that a cascade begins with."""
    if not isinstance(pipe.generator, PixelGenerator):
        return []

    def told(data: Tensor, text: TextFeatures) -> tuple[Tensor, Conditioning]:
        return data, _said(text)

    return [Learner("generator", "generator", pipe.generator.denoiser, _encoded(pipe), told, _said)]


def _cascade(pipe: Pipeline) -> list[Learner]:
    """The stages that enlarge. They learn at noise levels up to the one they are sampled at: DreamBooth (arXiv
    2208.12242) found that more of it costs the subject its details."""
    decoder, found = pipe.decoder, []
    if not isinstance(decoder, CascadeDecoder | UnclipDecoder):
        return []
    factor = decoder.factor
    for stage in decoder.stages if isinstance(decoder, CascadeDecoder) else decoder.upsamplers:
        factor //= stage.config.factor
        if not isinstance(stage, KarloUpsampler):  # whose two networks are of seven fixed steps
            found.append(_stage(stage, factor))
    return found


def _prior(pipe: Pipeline) -> list[Learner]:
    """A diffusion prior: what CLIP sees in pictures. The other priors learn by losses of their own."""
    prior = pipe.generator
    if not isinstance(prior, DiffusionPrior) or pipe.image_encoder is None:
        return []
    clip = pipe.image_encoder

    def represent(images: Tensor) -> Tensor:
        return prior.stored.standardise(clip.encode(images).data)

    def null(text: TextFeatures) -> Conditioning:
        return Conditioning(tokens=text.tokens, mask=text.mask, vector=text.pooled)

    def told(data: Tensor, text: TextFeatures) -> tuple[Tensor, Conditioning]:
        return data, null(text)

    return [Learner("generator", "generator", prior.denoiser, represent, told, null)]


def _unclip(pipe: Pipeline) -> list[Learner]:
    """The network that decodes CLIP embeddings, told that of each picture; kept are small pictures and embeddings."""
    decoder, clip = pipe.decoder, pipe.image_encoder
    if not isinstance(decoder, UnclipDecoder):
        return []
    shape = (3, *decoder.config.resolution)

    def represent(images: Tensor) -> Tensor:
        if clip is None:
            raise ValueError(f"{pipe.name} came without the CLIP whose embeddings its decoder is told")
        small = shrunk(images * 2 - 1, decoder.factor)
        return torch.cat([small.flatten(1), clip.encode(images).data.to(small)], dim=1)

    def null(text: TextFeatures) -> Conditioning:
        return decoder.condition(None, text)

    def told(data: Tensor, text: TextFeatures) -> tuple[Tensor, Conditioning]:
        small, seen = data.tensor_split([math.prod(shape)], dim=1)
        embedding = Representation(seen, decoder.needs.kind, decoder.needs.space)
        return small.unflatten(1, shape), decoder.condition(embedding, text)

    return [Learner(STAGE, "decoder", decoder.denoiser, represent, told, null)]


def _stage(stage: Stage, factor: int) -> Learner:
    config = stage.config

    def represent(images: Tensor) -> Tensor:
        return shrunk(images * 2 - 1, factor) if factor > 1 else images * 2 - 1

    def null(text: TextFeatures) -> Conditioning:
        return Conditioning() if config.text is None else _said(text)

    def told(data: Tensor, text: TextFeatures) -> tuple[Tensor, Conditioning]:
        # From the CPU's generator, as times and noise are: the same wherever the run goes on.
        level = draws.rand((len(data),)) * (config.sampling.augmentation or 0.0)
        picture = condition(shrunk(data, config.factor), level, draws.randn(data.shape).to(data), config)
        said = null(text)
        return data, replace(picture, tokens=said.tokens, mask=said.mask)

    return Learner(config.name, "decoder", stage.denoiser, represent, told, null)


def _said(text: TextFeatures) -> Conditioning:
    return Conditioning(tokens=text.tokens, mask=text.mask)


def _encoded(pipe: Pipeline) -> Callable[[Tensor], Tensor]:
    def represent(images: Tensor) -> Tensor:
        if not isinstance(pipe.decoder, ImageEncoder):
            raise ValueError(f"{type(pipe.decoder).__name__} cannot encode pictures, which its generator is to learn")
        return pipe.decoder.encode(images).data

    return represent


FAMILIES: Sequence[Callable[[Pipeline], list[Learner]]] = (_latent, _pixels, _prior, _unclip, _cascade)
