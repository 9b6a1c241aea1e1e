"""What is measured of a DALL-E 2 alone: its priors, what its decoder needs to be told, and edits by embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import JsonValue
from torch import Tensor, nn

from zoo import config as configs
from zoo.cascade import shrunk
from zoo.clip import Clip
from zoo.cost import seconds
from zoo.dalle2.decoder import UnclipDecoder
from zoo.dalle2.edit import interpolate, invert, regenerate, text_diff, variations
from zoo.data.scenes import Placed, Scene
from zoo.diffusion.noise import ImageNoise
from zoo.evaluate import feeding
from zoo.evaluate import variations as varied
from zoo.evaluate.checker import read
from zoo.evaluate.distances import psnr
from zoo.evaluate.fresh_scenes import Drawn, as_tensor, fresh
from zoo.evaluate.judged import Pipe
from zoo.evaluate.run import evaluate
from zoo.interface import Representation
from zoo.loading import load
from zoo.pipeline import Pipeline
from zoo.result import Result
from zoo.sheet import tensor_sheet

ALIKE = 8  # pictures of each prompt whose diversity is measured
REPEATS = 5  # draws that are timed
INVERTED_SEED = 5_000_000
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
BETWEEN = 7  # pictures of the interpolation

# What the strips begin with. No combination is held out.
GIVEN = Scene((Placed("circle", "red", 0.5, 0.5, 0.55),), "white", "plain", False)
OTHER = Scene((Placed("star", "blue", 0.5, 0.5, 0.55),), "mint", "plain", False)
DIFFERENCES = {"red to blue": ("a red circle", "a blue circle"), "circle to star": ("a red circle", "a red star")}


def is_dalle2(pipe: Pipeline) -> bool:
    """Whether all of this can be asked of a pipeline."""
    return isinstance(pipe.decoder, UnclipDecoder) and isinstance(pipe.image_encoder, Clip)


def priors(folder: Path, *, per_task: int, heldout: str, prompts: Sequence[str]) -> dict[str, JsonValue]:
    """A row for each prior: scores, how unlike its pictures of a prompt are, seconds for one embedding, parameters."""
    config = configs.read(folder)
    found: dict[str, JsonValue] = {}
    for name in config.variants.get("generator", {}) or (None,):
        pipe = load(folder, device="cpu", generator=name)
        scores = evaluate(cast(Pipe, pipe), per_task=per_task, heldout=heldout, calibration=0)  # type: ignore[arg-type]
        row = {
            "overall": scores["overall"],
            "intervals": scores["intervals"]["overall"],
            "images": scores["images"],
            "diversity": round(_diversity(pipe, prompts), 4),
            "seconds": round(_seconds_of_prior(pipe, prompts[0]), 4),
            "parameters": sum(p.numel() for p in cast(nn.Module, pipe.generator).parameters()),
        }
        found[name or config.generator.kind] = json.loads(json.dumps(row))
    return found


def fed(pipe: Pipeline, n: int) -> dict[str, JsonValue]:
    """How often pictures are their scene, by what the decoder is told of it."""
    scored = feeding.measure(ways(pipe), n=n)
    return json.loads(json.dumps({"scenes": n, "ways": scored}))


def ways(pipe: Pipeline) -> dict[str, feeding.Way]:
    """What a decoder may be told of a scene: which embedding, and whether the caption."""
    decoder, clip = _decoder(pipe), _clip(pipe)

    def draw(embed: object, told: bool, asked: Drawn) -> Tensor:
        text, null = pipe.text_encoder.encode(asked.prompts), pipe.text_encoder.null(len(asked))
        noise = ImageNoise(asked.seeds)
        if embed == "prior":
            given = pipe.generator.generate(text, null, noise, pipe.defaults)
        elif embed == "picture":
            given = clip.encode(asked.pictures)
        elif embed == "text":
            assert text.pooled is not None  # or no prior would read it
            given = Representation(F.normalize(text.pooled, dim=-1), "clip_image", decoder.needs.space)
        else:
            nothing = decoder.network.null().expand(len(asked), -1)
            given = Representation(nothing, "clip_image", decoder.needs.space)
        return decoder.decode(given, text if told else null, null, noise)

    return {
        "embedding of the true picture, and caption": partial(draw, "picture", True),
        "embedding of the true picture, no caption": partial(draw, "picture", False),
        "embedding by the prior, and caption": partial(draw, "prior", True),
        "embedding by the prior, no caption": partial(draw, "prior", False),
        "text embedding in its place, and caption": partial(draw, "text", True),
        "no embedding, caption alone": partial(draw, None, True),
    }


def vary(pipe: Pipeline, pictures: Tensor, seeds: Sequence[int]) -> Tensor:
    """One variation of each picture."""
    made = [variations(pipe, one, 1, seed=seed).tensor for one, seed in zip(pictures, seeds, strict=True)]
    return torch.cat(made)


def kept_in_variations(pipe: Pipeline, n: int) -> dict[str, JsonValue]:
    """What variations of drawn pictures keep and change."""
    return cast("dict[str, JsonValue]", dict(varied.measure(partial(vary, pipe), n=n)))


def strips(pipe: Pipeline) -> tuple[dict[str, JsonValue], Image.Image]:
    """An interpolation between two pictures and two text differences: what the checker sees in each, and the sheet."""
    first, last = as_tensor([GIVEN, OTHER], _decoder(pipe).size[0])
    way = interpolate(pipe, first, last, BETWEEN)
    made = {"interpolation": (way, list(way.prompts))}
    for name, (before, after) in DIFFERENCES.items():
        turned = text_diff(pipe, first, before, after, STRENGTHS)
        made[name] = turned, [f"{strength:g}" for strength in STRENGTHS]
    seen = {name: _told(result, labels) for name, (result, labels) in made.items()}
    rows = [(name, picture) for name, (result, _) in made.items() for picture in (first, *result.tensor)]
    return cast("dict[str, JsonValue]", seen), tensor_sheet(rows)


@torch.no_grad()
def inversion(pipe: Pipeline, n: int) -> dict[str, JsonValue]:
    """Mean PSNR in dB of true scenes made again from their noise: in the decoder's own size, and enlarged."""
    decoder = _decoder(pipe)
    alone = UnclipDecoder(decoder.denoiser, decoder.config)
    inner = Pipeline(pipe.text_encoder, pipe.generator, alone, image_encoder=pipe.image_encoder)
    small, whole, steps = list[Tensor](), list[Tensor](), 0
    given = fresh(n, INVERTED_SEED, size=decoder.size[0])
    for picture, seed in zip(given.pictures, given.seeds, strict=True):
        start = invert(pipe, picture)
        steps, true = start.sampling.steps, picture[None]
        small.append(psnr(regenerate(inner, start).tensor, shrunk(true, decoder.factor)))
        whole.append(psnr(regenerate(pipe, start, seed=seed).tensor, true))
    found = {"small": torch.cat(small), "whole": torch.cat(whole)}
    means: dict[str, JsonValue] = {name: round(float(values.mean()), 2) for name, values in found.items()}
    return means | {"steps": steps, "scenes": n}


def _diversity(pipe: Pipeline, prompts: Sequence[str]) -> float:
    made = pipe(list(prompts), n=ALIKE, seed=0, progress=False).tensor
    return feeding.diversity(_clip(pipe).encode(made).data.float().unflatten(0, (len(prompts), ALIKE)))


@torch.no_grad()
def _seconds_of_prior(pipe: Pipeline, prompt: str) -> float:
    """The median time in which the prior makes one embedding, warm."""
    text, null = pipe.text_encoder.encode([prompt]), pipe.text_encoder.null(1)
    taken = seconds(lambda turn: pipe.generator.generate(text, null, ImageNoise([turn]), pipe.defaults), REPEATS)
    return sorted(taken)[REPEATS // 2]


def _told(result: Result, labels: Sequence[str]) -> dict[str, str]:
    """What the checker sees in each picture, by its label."""

    def words(picture: Tensor) -> str:
        things = [f"{o.colour} {o.shape}" + (f" ({o.flaw})" if o.flaw else "") for o in read(picture).objects]
        return ", ".join(things) or "nothing"

    return {label: words(picture) for label, picture in zip(labels, result.tensor, strict=True)}


def _decoder(pipe: Pipeline) -> UnclipDecoder:
    assert isinstance(pipe.decoder, UnclipDecoder)  # see `is_dalle2`
    return pipe.decoder


def _clip(pipe: Pipeline) -> Clip:
    assert isinstance(pipe.image_encoder, Clip)
    return pipe.image_encoder
