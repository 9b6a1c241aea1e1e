"""Models side by side: the same prompts and seeds for each, what they draw, what it scores, what it costs."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

import torch
from torch import Tensor

from zoo import registry
from zoo.adapt.files import load_all
from zoo.arguments import as_prompts, as_seeds
from zoo.call.abilities import Stepless
from zoo.clip import Clip
from zoo.comparison.result import Comparison, Row
from zoo.comparison.spec import Spec, parse_all
from zoo.comparison.table import ALIGNED
from zoo.cost import Memory, evaluations, parameters, release, seconds, steps_in
from zoo.data.captions import Language
from zoo.diffusion.samplers import find_sampler
from zoo.evaluate import fresh
from zoo.evaluate.metrics import check_inception, inception_fid
from zoo.evaluate.run import LANGUAGES, Pipe, Scores, evaluate
from zoo.loading import load
from zoo.pipeline import BATCH, Pipeline, device_of

Equal = Literal["steps", "time"]
Settings = dict[str, object]
FOR_ALL = ("negative", "image", "mask", "layout", "adapters")  # a call takes one for each prompt, a comparison does not


@dataclass(frozen=True)
class Asked:
    """What every model is asked for."""

    prompts: list[str]
    seeds: list[int]
    clip: Clip
    fresh: fresh.Fresh | None
    inception: str | Path | None
    alignment: int
    language: Language
    repeats: int
    batch: int
    reading: Mapping[str, Any]
    settings: Settings


def compare(
    models: Sequence[str | os.PathLike[str]],
    prompts: str | Sequence[str],
    *,
    n: int | None = None,
    seed: int | Sequence[int] = 0,
    equal: Equal | None = None,
    scored: int = 0,
    alignment: int = 0,
    language: Language = "en",
    inception: str | Path | None = None,
    repeats: int = 3,
    batch: int = BATCH,
    device: str | torch.device = "auto",
    reading: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: object,
) -> Comparison:
    """Draw the same prompts with the same seeds by each model, and measure what they draw and what it costs.

    models: names, folders, files or hub ids, each with other parts, adapters, sampler or steps if wanted (the grammar
    is in `zoo.comparison.spec`): all samplers of one model are so many models here. n: images of each prompt, 1 unless
    there are several seeds. seed: the first image's, or a list, one for each image of a prompt. settings: guidance,
    steps and whatever else a pipeline's call takes, one for all pictures, for all that do not say otherwise; what
    nobody says is the model's own.

    equal: None, each model by its own steps; "steps", all by those of the first; "time", each by as many as bring its
    seconds an image nearest to the first's, which is measured and depends on the moment. Generators without a sampler
    (a GAN, two of the priors) keep to steps of their own.

    scored: pictures of captions of fresh scenes that each model draws besides, for distance, precision and recall; from
    2,000 on the distance is FD-CLIP, before it the kernel distance. inception: the file of Inception's weights, for
    their FID too (`zoo.evaluate.metrics.inception_fid`). language: of those captions. alignment: scenes a task for the
    share of pictures that are what their prompt says (`zoo.evaluate.run`, held-out combinations of the dev half).
    repeats: how often one image is timed. reading: options of `zoo.load` for all models, such as {"dtype":
    torch.float16}. out: a folder for grid, tables and report (`Comparison.save`).

    Models are loaded one after the other, each released before the next. The scores are the same to the last digit when
    all is repeated on one machine, but for what `equal="time"` chooses.

    Raises:
        ValueError: a model that cannot be read or found, prompts or settings that a model cannot take, steps that are
            said twice, or too few pictures to score. Texts, names and samplers are checked before anything is drawn.
    """
    specs = parse_all(models)
    asked_prompts = as_prompts(prompts)
    seeds = as_seeds(seed, 1 if n is None and not isinstance(seed, Sequence) else n, 1)
    _check(specs, equal, scored, alignment, language, inception, repeats, settings)
    place = device_of(device)
    clip = Clip.load(registry.clip()).to(place)
    asked = Asked(
        prompts=asked_prompts,
        seeds=seeds,
        clip=clip,
        fresh=fresh.fresh(clip, scored, seed=seeds[0], language=language) if scored else None,
        inception=inception,
        alignment=alignment,
        language=language,
        repeats=repeats,
        batch=batch,
        reading=reading or {},
        settings=settings,
    )
    rows: list[Row] = []
    for spec in _told(specs, progress):
        release()
        try:
            rows.append(_measured(spec, asked, place, equal, rows[0] if rows else None))
        except ValueError as error:
            raise ValueError(f"{spec.said}: {error}") from error
    release()
    found = Comparison(
        rows=tuple(rows),
        prompts=tuple(asked_prompts),
        seeds=tuple(seeds),
        machine=_machine(place),
        notes=tuple(_notes(asked, equal, rows)),
        drawn=None if asked.fresh is None else asked.fresh.expected,
    )
    if out is not None:
        found.save(out)
    return found


def _check(
    specs: Sequence[Spec],
    equal: str | None,
    scored: int,
    alignment: int,
    language: str,
    inception: str | Path | None,
    repeats: int,
    settings: Mapping[str, object],
) -> None:
    """What can be wrong and is known before anything is loaded."""
    if equal not in (None, "steps", "time"):
        raise ValueError(f"equal must be 'steps', 'time' or None, not {equal!r}")
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, not {language!r}")
    if repeats < 1 or alignment < 0 or scored < 0:
        raise ValueError(f"repeats={repeats}, alignment={alignment}, scored={scored}: at least 1, 0 and 0 are needed")
    if inception is not None and not scored:
        raise ValueError("FID compares with fresh drawings: say how many with scored= as well")
    if inception is not None:
        check_inception(inception)
    own = [spec.said for spec in specs[1:] if spec.steps is not None]
    if equal is not None and own:
        raise ValueError(f"equal={equal!r} gives all models the first one's {equal}: leave the steps out of {own[0]!r}")
    if several := [name for name in FOR_ALL if isinstance(settings.get(name), list | tuple)]:
        raise ValueError(f"{several[0]} is given for each prompt, but other pictures are drawn too: give one for all")
    if settings.get("noise") is not None:
        raise ValueError("noise is that of some pictures, but others are drawn too: leave it out, and say the seed")
    for spec in specs:
        try:
            others = (choice.rpartition("/")[0] for choice in spec.parts.values() if "/" in choice)
            for model in (spec.model, *others):
                if not registry.is_fetched(model):  # what is, loading fetches
                    registry.find(model)
            find_sampler(str(spec.sampler or settings.get("sampler") or "ddim"), 0.0)
        except ValueError as error:
            raise ValueError(f"{spec.said}: {error}") from error


def _measured(spec: Spec, asked: Asked, place: torch.device, equal: Equal | None, first: Row | None) -> Row:
    """Load one model, and measure it. Nothing that outlives the call holds on to its pipeline."""
    memory = Memory(place)
    pipe = load(
        spec.model,
        device=place,
        text_encoder=spec.parts.get("text_encoder"),
        generator=spec.parts.get("generator"),
        decoder=spec.parts.get("decoder"),
        **asked.reading,
    )
    how = _settings(pipe, spec, asked.settings)
    stepless = isinstance(pipe.generator, Stepless)  # takes steps of its own, and no others
    if equal == "steps" and first is not None and not stepless:
        how["steps"] = first.settings["steps"]

    def timed(**more: object) -> list[float]:
        def draw(turn: int) -> None:
            _draw(pipe, asked.prompts[0], 1, asked.seeds[0] + turn, how | more)
            if place.type == "cuda":
                torch.cuda.synchronize(place)

        return seconds(draw, asked.repeats)

    if equal == "time" and first is not None and not stepless:
        start = int(cast(int, how.get("steps", pipe.defaults.steps)))
        how["steps"] = steps_in(first.seconds_per_image, lambda steps: median(timed(steps=steps)), start)
    taken = timed()
    most = memory.peak()
    with evaluations(pipe) as counts:
        made = pipe(asked.prompts, seed=asked.seeds, batch=asked.batch, progress=False, **how)  # type: ignore[arg-type]
    scores = _clip_scores(asked.clip, made.tensor, made.prompts)
    if asked.fresh is not None:
        scores |= _closeness(pipe, asked, asked.fresh, how)
    aligned = _alignment(pipe, asked, how) if asked.alignment else None
    if aligned is not None:
        scores |= {f"aligned_{s}_{k}": share for s, cell in aligned["overall"].items() for k, share in cell.items()}
        assert scores.keys() >= ALIGNED.keys()
    return Row(
        name=spec.said,
        settings=made.settings,
        parameters=parameters(pipe),
        evaluations={role: count / len(made) for role, count in counts.items()},
        scores=scores,
        seconds=tuple(taken),
        memory=most,
        pictures=tuple(made.images),
        alignment=aligned,
    )


def _settings(pipe: Pipeline, spec: Spec, settings: Mapping[str, object]) -> Settings:
    """How one model is called; loads its adapters."""
    adapters = load_all(pipe, spec.adapters)
    said: Settings = {"sampler": spec.sampler, "steps": spec.steps, "adapters": adapters or None}
    return dict(settings) | {name: value for name, value in said.items() if value is not None}


def _draw(pipe: Pipeline, prompts: str | Sequence[str], n: int, seed: int | list[int], how: Settings) -> Tensor:
    return pipe(prompts, n=n, seed=seed, progress=False, **how).tensor  # type: ignore[arg-type]


def _clip_scores(clip: Clip, images: Tensor, prompts: Sequence[str]) -> dict[str, float | None]:
    """The mean CLIP score and its uncertainty, over the prompts that CLIP can read; None where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown words the model has spoken already
        rows = [i for i, prompt in enumerate(prompts) if prompt and _readable(clip, prompt)]
        if not rows:
            return {"clip_score": None, "clip_score_spread": None}
        found = torch.cat(fresh.scores(clip, images[rows], [prompts[i] for i in rows])).double()
    spread = 1.96 * float(found.std()) / len(found) ** 0.5 if len(found) > 1 else None
    return {"clip_score": float(found.mean()), "clip_score_spread": spread}


def _readable(clip: Clip, prompt: str) -> bool:
    try:
        clip.tokenizer.encode([prompt])
    except ValueError:  # longer than its window
        return False
    return True


def _closeness(pipe: Pipeline, asked: Asked, held: fresh.Fresh, how: Settings) -> dict[str, float | None]:
    """Pictures of the captions of fresh scenes, against fresh drawings."""
    kept: list[Tensor] | None = None if asked.inception is None else []

    def drawing(said: list[str], seeds: list[int]) -> Tensor:
        return _draw(pipe, said, 1, seeds, how)

    found = fresh.measure(drawing, asked.clip, held, batch=asked.batch, kept=kept)
    if kept is not None and asked.inception is not None:
        found["fid"] = inception_fid(torch.cat(kept), held.pictures, asked.inception)
    return found


def _alignment(pipe: Pipeline, asked: Asked, how: Settings) -> Scores:
    return evaluate(
        cast(Pipe, pipe),  # which takes more settings than a Pipe must
        per_task=asked.alignment,
        seed=asked.seeds[0],
        heldout="dev",
        calibration=0,
        batch=asked.batch,
        progress=False,
        **how,  # type: ignore[arg-type]
    )


def _told(specs: Sequence[Spec], progress: bool) -> Iterator[Spec]:
    from tqdm.auto import tqdm

    with tqdm(specs, disable=not progress, unit="model", leave=False) as bar:
        for spec in bar:
            bar.set_description(spec.said)
            yield spec


def _notes(asked: Asked, equal: Equal | None, rows: Sequence[Row]) -> list[str]:
    each = f"{_many(len(asked.seeds), 'image')} of each (seed {_range(asked.seeds)})"
    said = [f"{_many(len(asked.prompts), 'prompt')}, {each}."]
    if asked.fresh is not None:
        count = len(asked.fresh.prompts)
        said.append(f"{count} captions of fresh scenes ({asked.language}) for the distance, precision and recall.")
    if asked.alignment:
        said.append(f"Alignment: {asked.alignment} scenes a task, split and language; held-out half dev.")
    if equal == "steps":
        said.append(f"All in the steps of {rows[0].name}.")
    if equal == "time":
        first = rows[0].seconds_per_image
        chosen = [row for row in rows if "sampler" in row.settings]  # those whose steps could be
        apart = max((abs(row.seconds_per_image / first - 1) for row in chosen), default=0.0)
        said.append(f"Steps chosen for the {first:.3g} s of {rows[0].name}; at most {apart:.0%} apart.")
    return said


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _range(seeds: Sequence[int]) -> str:
    run = list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 and list(seeds) == run else ", ".join(map(str, seeds))


def _machine(place: torch.device) -> str:
    if place.type == "cuda":
        return f"{torch.cuda.get_device_name(place)}, torch {torch.__version__}."
    if place.type == "mps":
        return f"{platform.machine()} GPU (MPS), torch {torch.__version__}."
    return f"{platform.machine()} CPU, {_many(torch.get_num_threads(), 'thread')}, torch {torch.__version__}."
