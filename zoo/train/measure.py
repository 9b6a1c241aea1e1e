"""What is measured of a shipped model folder, by the folder itself, and written into its config, card and README."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias, cast

import torch
from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from zoo import config as configs
from zoo import cost, weights
from zoo.atomic import write_image
from zoo.clip import Clip
from zoo.dalle2.decoder import UnclipDecoder
from zoo.diffusion.noise import ImageNoise
from zoo.evaluate import editing, fresh, maps, rerank
from zoo.evaluate import enlarging as enlarged
from zoo.evaluate.distances import reconstruction_psnr
from zoo.evaluate.judged import Pipe
from zoo.evaluate.run import evaluate
from zoo.gan.parts import GanGenerator
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import PIXELS, Representation
from zoo.loading import load
from zoo.pipeline import Pipeline
from zoo.sheet import tensor_sheet
from zoo.stable_diffusion.parts import LatentGenerator, VaeDecoder
from zoo.stable_diffusion.vae import VAE
from zoo.text.clip import ClipTextEncoder
from zoo.train import results, unclip_measures
from zoo.train.gates import judged, report, text_gate
from zoo.train.recipe import Table

SAMPLES, STRIPS = "samples.webp", "strips.webp"
TIMED = 5  # pictures

Found: TypeAlias = dict[str, JsonValue]  # figures, under the names by which config and card know them


class Measuring(Table):
    """How much is measured of a model."""

    heldout: Literal["dev", "test"] = "test"  # half of the held-out combinations that it is scored on
    per_task: int = 100
    edits: int = 24  # scenes for each kind of edit
    maps: int = 48  # painted scenes, seen and of the dev half, for a model that takes maps
    enlarged: int = 128  # fresh scenes, for a model whose decoder enlarges
    per_prior: int = 16  # scenes for each task, for a model with several priors, each of which is scored
    fed: int = 200  # fresh scenes for each way to tell a decoder of embeddings what they show
    varied: int = 200  # pictures of which variations are made
    inverted: int = 32  # pictures that are made again from their noise
    reranked: int = 100  # prompts of 8 candidates each
    scored: int = 2000  # captions of fresh scenes whose pictures are held, as a set, against fresh drawings
    clip: str = "clip-small"  # the folder beside the model's that looks, where the model has no CLIP of its own
    examples: tuple[str, ...] = ()  # prompts of the sample sheet


def enlarging(pipe: Pipeline, decoder: CascadeDecoder | UnclipDecoder, n: int) -> Found:
    """How true scenes that were made small come out of the stages that enlarge, by the level of augmentation."""
    stages = decoder.stages if isinstance(decoder, CascadeDecoder) else decoder.upsamplers
    defaults = [stage.config.sampling for stage in stages]
    swept: Found = {}
    for level in enlarged.LEVELS:
        how = [replace(sampling, augmentation=level) for sampling in defaults]

        def enlarge(small: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            text, null = pipe.text_encoder.encode(prompts), pipe.text_encoder.null(len(prompts))
            given = Representation(small * 2 - 1, "pixels", PIXELS)
            return CascadeDecoder(stages).decode(given, text, null, ImageNoise(seeds), how)  # noqa: B023 - in this turn

        swept[f"{level:g}"] = cast(JsonValue, enlarged.measure(enlarge, decoder.factor, n=n))
    return {"used": defaults[0].augmentation, "levels": swept}


def distances(pipe: Pipeline, clip: Clip, n: int) -> Found:
    """What `n` pictures of captions of fresh scenes are as a set, and what as many drawings are."""
    held = fresh.fresh(clip, n)
    made = fresh.measure(lambda said, seeds: pipe(said, n=1, seed=seeds, progress=False).tensor, clip, held)
    return {"scenes": n, "made": cast(JsonValue, _rounded(made)), "drawn": cast(JsonValue, _rounded(held.expected))}


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items() if value is not None}


def _clip(folder: Path, pipe: Pipeline, recipe: Measuring) -> Clip:
    """The CLIP that looks at a model's pictures."""
    return pipe.image_encoder if isinstance(pipe.image_encoder, Clip) else Clip.load(folder.parent / recipe.clip)


def gates(folder: Path, pipe: Pipeline) -> Found:
    """What can be read from the text encoder's features, and from those of the other tower if it has one."""
    part = configs.read(folder).text_encoder
    whole = isinstance(pipe.text_encoder, ClipTextEncoder) and part.shared is not None
    found = report(str(folder.parent / str(part.shared))) if whole else judged(text_gate(pipe.text_encoder))
    return cast(Found, found)


def _write(sheet: Image.Image, path: Path) -> None:
    """In a quarter of a PNG's size, without a difference that is seen: models are shipped with their pictures."""
    write_image(path, sheet, quality=90, method=6)


def _through(vae: VAE, images: torch.Tensor) -> torch.Tensor:
    """Images [batch, 3, height, width] in [0, 1] encoded and decoded."""
    made = vae.decode(vae.encode(images * 2 - 1).mean)
    return ((made + 1) / 2).clamp(0, 1)


def _parameters(_: Path, pipe: Pipeline, __: Measuring) -> Found:
    return {"parameters": {role.replace("_", " "): count for role, count in cost.parameters(pipe).items()}}


def _seconds(_: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    """The median time of one picture, warm."""
    draw = partial(pipe, recipe.examples[0], n=1, progress=False)
    return {"seconds_per_image": round(median(cost.seconds(lambda turn: draw(seed=turn + 1), TIMED)), 3)}


def _samples(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    _write(pipe(list(recipe.examples), n=4, seed=0, progress=False).sheet(), folder / SAMPLES)
    return {}


def _evaluation(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    scores = evaluate(cast(Pipe, pipe), per_task=recipe.per_task, heldout=recipe.heldout)
    return {"evaluation": json.loads(json.dumps(scores))}


def _editing(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    if isinstance(pipe.generator, GanGenerator):  # which starts from no picture
        return {}
    scores, edited = editing.evaluate(cast(Pipe, pipe), n=recipe.edits)
    _write(tensor_sheet(editing.sheet_rows(edited)), folder / "editing.webp")
    return {"editing": json.loads(json.dumps(scores))}


def _maps(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    if not isinstance(pipe.generator, LatentGenerator) or not pipe.generator.classes:
        return {}
    scores, kept = maps.evaluate(cast(Pipe, pipe), n=recipe.maps)
    _write(tensor_sheet(maps.sheet_rows(kept)), folder / "maps.webp")
    return {"maps": json.loads(json.dumps(scores))}


def _psnr(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    decoder = pipe.decoder
    if not isinstance(decoder, VaeDecoder):
        return {}
    return {"psnr": round(reconstruction_psnr(lambda images: _through(decoder.vae, images)), 2)}


def _enlarging(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    decoder = pipe.decoder
    if not isinstance(decoder, CascadeDecoder | UnclipDecoder) or decoder.factor == 1:
        return {}
    return {"enlarging": enlarging(pipe, decoder, recipe.enlarged)}


def _rerank(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    clip = _clip(folder, pipe, recipe)
    scores = rerank.measure(cast(Pipe, pipe), clip, prompts=recipe.reranked, heldout=recipe.heldout)
    return {"rerank": cast(JsonValue, dict(scores))}


def _priors(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    scored = unclip_measures.priors(folder, per_task=recipe.per_prior, heldout=recipe.heldout, prompts=recipe.examples)
    return {"priors": scored, "fed": unclip_measures.fed(pipe, recipe.fed)}


def _strips(folder: Path, pipe: Pipeline, recipe: Measuring) -> Found:
    seen, sheet = unclip_measures.strips(pipe)
    _write(sheet, folder / STRIPS)
    return {"strips": seen}


# What each finds, in the order in which they are made; nothing where a model has nothing of the kind.
MEASUREMENTS: Mapping[str, Callable[[Path, Pipeline, Measuring], Found]] = {
    "samples": _samples,
    "evaluation": _evaluation,
    "editing": _editing,
    "maps": _maps,
    "psnr": _psnr,
    "enlarging": _enlarging,
    "gates": lambda folder, pipe, _: {"gates": gates(folder, pipe)},
    "parameters": _parameters,
    "seconds_per_image": _seconds,
    "distances": lambda folder, pipe, recipe: {
        "distances": distances(pipe, _clip(folder, pipe, recipe), recipe.scored)
    },
    "priors": _priors,
    "variations": lambda _, pipe, recipe: {"variations": unclip_measures.kept_in_variations(pipe, recipe.varied)},
    "strips": _strips,
    "inversion": lambda _, pipe, recipe: {"inversion": unclip_measures.inversion(pipe, recipe.inverted)},
    "rerank": _rerank,
}
OF_DALLE2 = ("priors", "variations", "strips", "inversion")  # which make sense for CLIP embeddings alone


def measure(folder: Path, recipe: Measuring, what: Collection[str] = MEASUREMENTS) -> None:
    """Measure the shipped folder itself and write what is found into config, card and README, as it is found.

    What is not in `what` keeps the figures that it had: they hold as long as its files do.
    """
    pipe = load(folder, device="cpu")
    for name in MEASUREMENTS:
        if name in what and (name not in OF_DALLE2 or unclip_measures.is_dalle2(pipe)):
            tell(folder, MEASUREMENTS[name](folder, pipe, recipe))


def tell(folder: Path, found: Found) -> None:
    """Add to the results of a model folder, in place of older ones of the same names, and to what shows them."""
    config = configs.read(folder)  # as it is by now: another process may measure something else
    weights.write_config(folder, config.model_copy(update={"results": config.results | found}))
    if results.RESULTS.is_dir():  # in a checkout, which tells of its models in other places too
        results.write(Path())
