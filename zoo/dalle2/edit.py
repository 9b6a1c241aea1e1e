"""What only DALL-E 2 can do with a picture, for it has its meaning and its noise apart (arXiv 2204.06125, section 3).

The meaning is the CLIP image embedding, which the pipeline's `image_encoder`, the CLIP that it was trained with, makes
of a picture; the noise is what deterministic sampling makes the picture of, given the embedding. Between and beside
embeddings lie other pictures. Captions are not read in any of this.

Results name in their settings what was done, and pictures by their fingerprints. Stages are set as in a call of the
pipeline; `stages={"decoder": ...}` is about the decoder's own small pictures, and where those are inverted it says how,
both ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.arguments import Picture, as_images, as_seeds
from zoo.cascade import shrunk
from zoo.dalle2.decoder import STAGE, UnclipDecoder
from zoo.diffusion import inversion
from zoo.diffusion.inversion import REFINEMENTS, slerp
from zoo.diffusion.noise import GivenNoise, ImageNoise
from zoo.interface import NoiseSource, Representation, Sampling
from zoo.result import Result, mark_of

if TYPE_CHECKING:
    from zoo.pipeline import Pipeline

Stages: TypeAlias = Mapping[str, Mapping[str, object]]

AT_ONCE = 16  # pictures
# Of the decoder's own pictures, where they are inverted; from less than pure noise, of which epsilon tells no picture.
INVERTED = Sampling(steps=50, sampler="ddim", spacing="leading+1", guidance=1.0)


@dataclass(frozen=True)
class Inversion:
    """A picture as meaning and noise: `representation` and `noise`, both of a batch of one, and how to join them.

    picture: its fingerprint, by which results tell one picture's edits from another's.
    """

    representation: Representation
    noise: Tensor
    sampling: Sampling
    picture: str = ""


def variations(
    pipe: Pipeline,
    image: Picture,
    n: int | None = None,
    *,
    seed: int | Sequence[int] = 0,
    eta: float | None = None,
    stages: Stages | None = None,
) -> Result:
    """`n` pictures (4, or as many as there are seeds) that mean what `image` does; picture j is that of seed + j, or of
    the j-th seed.

    eta: None begins with fresh noise. A number in [0, 1] begins with the picture's own and is DDIM's randomness from
    there on: 0 gives the picture back, 1 keeps little more than its meaning.

    Raises:
        ValueError: a pipeline of another family or without its CLIP, or a setting that cannot be.
    """
    seeds = as_seeds(seed, n, 1)
    n = len(seeds)
    did: dict[str, object] = {"edit": "variations", "picture": _mark(pipe, image), "eta": eta}
    if eta is None:
        meaning = _meaning(pipe, _fitted(pipe, image))
        return _drawn(pipe, _all_of(meaning, n), seeds, _fresh(pipe, stages), ["variation"] * n, did)
    start = invert(pipe, image, stages=stages)
    chain = _inverted(pipe, stages)
    chain[STAGE] = replace(start.sampling, eta=eta)
    noise = start.noise.expand(n, -1, -1, -1)
    return _drawn(pipe, _all_of(start.representation, n), seeds, chain, ["variation"] * n, did, noise)


def interpolate(
    pipe: Pipeline,
    first: Picture,
    last: Picture,
    n: int = 5,
    *,
    seed: int = 0,
    inverted: bool = False,
    stages: Stages | None = None,
) -> Result:
    """`n` pictures evenly on the way from the meaning of `first` to that of `last`, both included.

    inverted: the noise goes from that of the one picture to that of the other too, so that both ends are the pictures
    themselves; otherwise all begin with the noise of `seed`.

    Raises:
        ValueError: fewer than 2 pictures, or as in `variations`.
    """
    if n < 2:
        raise ValueError(f"an interpolation shows both its ends: n must be at least 2, not {n}")
    shares = torch.linspace(0, 1, n, dtype=torch.float64)
    labels = [f"{share:.2f}" for share in shares.tolist()]
    marks = [_mark(pipe, picture) for picture in (first, last)]
    did: dict[str, object] = {"edit": "interpolate", "pictures": marks, "inverted": inverted}
    seeds = as_seeds([seed] * n, n, 1)
    if not inverted:
        ends = [_meaning(pipe, _fitted(pipe, picture)) for picture in (first, last)]
        return _drawn(pipe, _between(ends[0], ends[1].data, shares), seeds, _fresh(pipe, stages), labels, did)
    a, b = (invert(pipe, picture, stages=stages) for picture in (first, last))
    noise = slerp(a.noise, b.noise, shares)
    meanings = _between(a.representation, b.representation.data, shares)
    return _drawn(pipe, meanings, seeds, _inverted(pipe, stages), labels, did, noise)


def text_diff(
    pipe: Pipeline,
    image: Picture,
    from_prompt: str,
    to_prompt: str,
    strength: float | Sequence[float] = 0.35,
    *,
    seed: int = 0,
    stages: Stages | None = None,
) -> Result:
    """`image` changed as `from_prompt`, which should describe it, changes to `to_prompt`; one picture a strength.

    Its embedding is turned towards the difference of the two CLIP text embeddings, by a share `strength` in [0, 1] of
    the way (the paper's greatest are 0.25 to 0.5), and decoded from the picture's own noise: 0 gives the picture back.

    Raises:
        ValueError: prompts that say the same, a strength outside [0, 1], or as in `variations`.
    """
    strengths = [float(s) for s in strength] if isinstance(strength, Sequence) else [float(strength)]
    if not strengths or not all(0 <= s <= 1 for s in strengths):
        raise ValueError(f"strength is a share of the way in [0, 1], or several of them, got {strength}")
    spoken = pipe.text_encoder.encode([from_prompt, to_prompt]).pooled
    if spoken is None:
        raise ValueError(f"{type(pipe.text_encoder).__name__} makes no CLIP text embedding, whose difference is needed")
    said = F.normalize(spoken.float(), dim=-1)
    difference = said[1] - said[0]
    if float(difference.norm()) < 1e-4:
        raise ValueError(f"{from_prompt!r} and {to_prompt!r} say the same to this text encoder: there is no difference")
    start = invert(pipe, image, stages=stages)
    meaning = start.representation.data.float()
    towards = F.normalize(difference, dim=0).to(meaning) * meaning.norm(dim=1, keepdim=True)
    turned = _between(start.representation, towards, torch.tensor(strengths, dtype=torch.float64))
    count = len(strengths)
    did: dict[str, object] = {"edit": "text_diff", "picture": start.picture}
    did |= {"from": from_prompt, "to": to_prompt, "strength": strengths}
    labels = [f"{from_prompt} -> {to_prompt} ({s:g})" for s in strengths]
    noise = start.noise.expand(count, -1, -1, -1)
    return _drawn(pipe, turned, as_seeds([seed] * count, count, 1), _inverted(pipe, stages), labels, did, noise)


def invert(
    pipe: Pipeline,
    image: Picture,
    *,
    refinements: int = REFINEMENTS,
    stages: Stages | None = None,
) -> Inversion:
    """The meaning of a picture, and the noise of which the decoder makes it, at the decoder's own size.

    What the upsamplers add is not inverted: they enlarge what the decoder makes as in any other call. Good to guidance
    1, the default here; for more steps or refinements see `zoo.diffusion.inversion`.

    Raises:
        ValueError: as in `variations`, or another sampler than DDIM.
    """
    decoder, pictures = _decoder(pipe), _fitted(pipe, image)
    sampling = _inverted(pipe, stages)[STAGE]
    meaning, nothing = _meaning(pipe, pictures), pipe.text_encoder.null(1)
    small = shrunk(pictures * 2 - 1, decoder.factor)
    noise = inversion.invert(
        decoder.denoiser,
        decoder.condition(meaning, nothing),
        decoder.condition(None, nothing),
        small,
        sampling,
        refinements=refinements,
    )
    return Inversion(meaning, noise.cpu(), sampling, _mark(pipe, image))


def regenerate(pipe: Pipeline, start: Inversion, *, seed: int = 0, stages: Stages | None = None) -> Result:
    """The picture again; `seed` and `stages` are those of the upsamplers.

    Raises:
        ValueError: a pipeline of another family, or one that was not trained with the inversion's CLIP.
    """
    chain = _fresh(pipe, stages)
    chain[STAGE] = start.sampling
    seeds = as_seeds([seed], 1, 1)
    did = {"edit": "regenerate", "picture": start.picture}
    return _drawn(pipe, start.representation, seeds, chain, ["regenerated"], did, start.noise)


@torch.no_grad()
def _drawn(
    pipe: Pipeline,
    meanings: Representation,
    seeds: Sequence[int],
    chain: Mapping[str, Sampling],
    labels: Sequence[str],
    did: Mapping[str, object],
    noise: Tensor | None = None,
) -> Result:
    """The pictures of these embeddings, one for each seed."""
    made = []
    for rows in torch.arange(len(seeds)).split(AT_ONCE):
        source: NoiseSource = ImageNoise([seeds[i] for i in rows])
        if noise is not None:
            source = GivenNoise(noise[rows], then=source, stage=STAGE)
        nothing = pipe.text_encoder.null(len(rows))
        some = replace(meanings, data=meanings.data[rows.to(meanings.data.device)])
        made.append(_decoder(pipe).decode(some, nothing, nothing, source, list(chain.values())).float().cpu())
    images, unsafe = pipe.looked_over(torch.cat(made))
    settings = dict(did) | {"height": images.shape[-2], "width": images.shape[-1]}
    settings |= {"stages": {stage: asdict(how) for stage, how in chain.items()}}
    return Result(images, tuple(labels), tuple(seeds), settings, pipe.name, unsafe=unsafe)


def _decoder(pipe: Pipeline) -> UnclipDecoder:
    if not isinstance(pipe.decoder, UnclipDecoder):
        raise ValueError(
            f"{pipe.name} decodes by a {type(pipe.decoder).__name__}; only an UnclipDecoder, DALL-E 2's, decodes CLIP "
            "image embeddings, in which such edits are made"
        )
    pipe.check_weights()
    return pipe.decoder


def _meaning(pipe: Pipeline, pictures: Tensor) -> Representation:
    if pipe.image_encoder is None:
        raise ValueError(
            f"{pipe.name} came without the CLIP that it was trained with: set pipe.image_encoder to what encodes "
            f"images in the space {pipe.decoder.needs.space} (for models of the zoo, a zoo.clip.Clip)"
        )
    return pipe.image_encoder.encode(pictures)


def _fitted(pipe: Pipeline, image: Picture) -> Tensor:
    """The picture as large as the pipeline's own, [1, 3, height, width] in [0, 1]."""
    return as_images(image, _decoder(pipe).size, 1, 1)


def _mark(pipe: Pipeline, image: Picture) -> str:
    return mark_of(picture=_fitted(pipe, image))


def _fresh(pipe: Pipeline, stages: Stages | None) -> dict[str, Sampling]:
    """How each stage is sampled from fresh noise: as in a call of the pipeline."""
    _decoder(pipe)
    return pipe.stages(stages)


def _inverted(pipe: Pipeline, stages: Stages | None) -> dict[str, Sampling]:
    """How each stage is sampled where the decoder's own pictures are inverted."""
    given = dict(stages or {})
    return _fresh(pipe, given | {STAGE: asdict(INVERTED) | dict(given.get(STAGE, {}))})


def _all_of(meaning: Representation, n: int) -> Representation:
    return replace(meaning, data=meaning.data.expand(n, -1))


def _between(start: Representation, towards: Tensor, shares: Tensor) -> Representation:
    return replace(start, data=slerp(start.data.float(), towards.to(start.data).float(), shares))
