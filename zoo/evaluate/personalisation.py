"""How well a model has learned the P7, and at what cost to what it knew: fidelity, alignment, diversity, forgetting.

| measure | what of | as in DreamBooth (arXiv 2208.12242) |
|---|---|---|
| fidelity | share of pictures asked to show the subject that do, by `zoo.evaluate.subject` | DINO, CLIP-I |
| alignment | share of them in which the rest of the prompt is right, by the scene checker | CLIP-T |
| both | share that is right in both | |
| leak | share of pictures of the class alone, "a car", that show the subject | PRES |
| diversity | mean distance between these pictures, relative to the base model's | DIV |
| others | share of right pictures for prompts without the subject | |
| forgotten | how much less that is than the base model's | |

`python -m zoo.train.adapters runs/p7-lora/final runs/p7-dreambooth/final --sheet p7.png` compares what training runs of
the part "adapter" left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import torch
from torch import Tensor

from zoo.data.captions import article
from zoo.data.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Description, Item, is_heldout
from zoo.data.subjects import P7_CLASS, P7_COLOUR, P7_PROMPT
from zoo.evaluate.checker import Reading, Seen, judge, read
from zoo.evaluate.judged import Pipe, draw_and_judge
from zoo.evaluate.likeness import Sighting, Subject, sightings
from zoo.evaluate.subject import LOOK, is_p7
from zoo.evaluate.tasks import MEAN_OF, cases

if TYPE_CHECKING:
    from PIL import Image

P7_ITEM = Item("car", P7_COLOUR)  # what the P7 counts as for the scene checker
Asked: TypeAlias = tuple[str, Description]
CLASS_SEED = 50_000
PROMPTS = 50
SHOWN = (0, 5, 8, 21, 36, 40)  # of the prompts, on a sheet; two of the class come after them
COLUMNS = ("fidelity", "alignment", "both", "leak", "diversity", "others", "forgotten")


class Measures(TypedDict):
    """What is measured of one contestant: shares, and the mean distance between pictures of the class (`spread`)."""

    fidelity: float
    alignment: float
    both: float
    leak: float
    spread: float
    others: float


@dataclass(frozen=True)
class Sizes:
    """How much is drawn: pictures for each of `asked`, of the class alone, and scenes for each of six other tasks, seen
    and (but for single objects) held out. steps: None is each model's own."""

    per_prompt: int = 4
    of_class: int = 200
    per_task: int = 91  # of 11 kinds: 1,001 pictures
    steps: int | None = None
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True)
class Contestant:
    """A pipeline, what its calls ask for besides prompts (its adapters), and the bytes of what was trained."""

    name: str
    pipe: Pipe
    settings: Mapping[str, object]
    bytes: int = 0


def asked(subject: str = P7_PROMPT) -> list[Asked]:
    """50 prompts of "a P7 car", and what else they say: background (cream is new to it), style, size, neighbour.

    Raises:
        ValueError: a subject that does not begin with "a".
    """
    first, _, thing = subject.partition(" ")
    if first != "a" or not thing:
        raise ValueError(f'{subject!r} cannot be put into the prompts: expected "a" and a thing, such as {P7_PROMPT!r}')
    found = [
        (
            f"a {size} {thing} on a {ground} background".replace("  ", " ") + (f", {style}" if style else ""),
            Description((Item("car", size=size or None),), background=ground, style=style or None),
        )
        for style, size, ground in product(("", "cartoon"), ("", *SIZES), BACKGROUNDS)
    ]
    others = [shape for shape in SHAPES if shape != "car"]
    i = 0
    while len(found) < PROMPTS:  # steps without a common divisor: many shapes, in many colours, on all sides
        relation, shape, colour = RELATIONS[i % 4], others[7 * i % len(others)], COLOURS[3 * i % len(COLOURS)]
        scene = Description((Item("car"), Item(shape, colour)), relation=relation)
        if not is_heldout(scene):  # what the model itself was never shown is no measure of what it learns now
            found.append((f"a {thing} {relation} {article(colour)} {colour} {shape}", scene))
        i += 1
    return found


def judge_rest(picture: Tensor, scene: Description, look: Subject = LOOK, named: Item = P7_ITEM) -> tuple[bool, bool]:
    """Whether the subject is in a picture, and whether the rest is as the scene says.

    The subject counts as what the scene calls it, whole: a thing of the shape and colour of `named`.
    """
    found = [one for one in sightings(picture, look) if one.ok]
    reading = read(picture)
    kept = [thing for thing in reading.objects if not any(_near(thing, one) for one in found)]
    face = bool(scene.face)
    told = [Seen(named.shape, named.colour or "", one.style, face, one.x, one.y, one.extent) for one in found]
    return bool(found), judge(Reading(reading.background, (*told, *kept), reading.strays), scene).ok


def spread(pictures: Tensor) -> float:
    """Mean distance between pictures [n, 3, height, width] in [0, 1]: root mean square over pixels, over all pairs.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(pictures) < 2:
        raise ValueError(f"{len(pictures)} pictures have no distance between them: give at least two")
    flat = pictures.flatten(1).double()
    return float(torch.pdist(flat).mean() / math.sqrt(flat.shape[1]))


def measure(
    contestant: Contestant,
    sizes: Sizes | None = None,
    *,
    subject: str = P7_PROMPT,
    kind: str = P7_CLASS,
    progress: bool = True,
) -> Measures:
    """All measures of a contestant.

    Raises:
        ValueError: fewer than two pictures of the class, or none of the subject or for a task.
    """
    sizes = sizes or Sizes()
    if min(sizes.per_prompt, sizes.per_task, sizes.batch) < 1 or sizes.of_class < 2:
        raise ValueError(f"cannot measure on {sizes}: expected at least 1 of each, and 2 pictures of the class")
    wanted = asked(subject)
    prompts = [prompt for prompt, _ in wanted for _ in range(sizes.per_prompt)]
    scenes = [scene for _, scene in wanted for _ in range(sizes.per_prompt)]
    seeds = [sizes.seed + i for _ in wanted for i in range(sizes.per_prompt)]
    contestant = _stepped(contestant, sizes.steps)
    made = draw(contestant, prompts, seeds, sizes.batch)
    marks = [judge_rest(picture, scene) for picture, scene in zip(made, scenes, strict=True)]
    alone = draw(
        contestant, [kind] * sizes.of_class, [CLASS_SEED + sizes.seed + i for i in range(sizes.of_class)], sizes.batch
    )
    others = [case for case in cases(sizes.per_task, sizes.seed, "dev", ("en",)) if case.task in MEAN_OF]
    judged = draw_and_judge(contestant.pipe, others, sizes.batch, progress, dict(contestant.settings))
    return Measures(
        fidelity=sum(there for there, _ in marks) / len(marks),
        alignment=sum(rest for _, rest in marks) / len(marks),
        both=sum(there and rest for there, rest in marks) / len(marks),
        leak=sum(is_p7(picture) for picture in alone) / len(alone),
        spread=spread(alone),
        others=sum(one.verdict.ok for one in judged) / len(judged),
    )


def relative(measures: Measures, base: Measures) -> dict[str, float]:
    """The measures as the table above has them: diversity and what was forgotten are relative to the base model's.

    The base model's own diversity is 1, or NaN where all its pictures are the same.
    """
    found: dict[str, float] = {name: value for name, value in measures.items() if name != "spread"}  # type: ignore[misc]
    found["diversity"] = measures["spread"] / base["spread"] if base["spread"] else math.nan
    found["forgotten"] = base["others"] - measures["others"]
    return {name: found[name] for name in COLUMNS}


def strip(contestants: Sequence[Contestant], *, seed: int = 0, steps: int | None = None) -> Image.Image:
    """A picture of each of some prompts and two of "a car", a row a contestant; None are each model's own steps."""
    from zoo.sheet import tensor_sheet

    prompts = [prompt for prompt, _ in asked()]
    shown, seeds = [*(prompts[i] for i in SHOWN), P7_CLASS, P7_CLASS], [*(seed for _ in SHOWN), seed, seed + 1]
    rows = []
    for one in contestants:
        drawn = draw(one, shown, seeds, len(shown), steps)
        rows += [(one.name, picture) for picture in drawn]
    return tensor_sheet(rows)


def _stepped(contestant: Contestant, steps: int | None) -> Contestant:
    return contestant if steps is None else replace(contestant, settings={**contestant.settings, "steps": steps})


def draw(
    contestant: Contestant, prompts: Sequence[str], seeds: Sequence[int], batch: int, steps: int | None = None
) -> Tensor:
    """A picture of each prompt with its seed, [prompts, 3, height, width] in [0, 1]; None are the model's own steps."""
    contestant, made = _stepped(contestant, steps), []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        drawn = contestant.pipe(prompts[rows], n=1, seed=seeds[rows], progress=False, **contestant.settings)
        made.append(drawn.tensor.detach().float().cpu())
    return torch.cat(made)


def _near(thing: Seen, one: Sighting) -> bool:
    return math.hypot(thing.x - one.x, thing.y - one.y) < one.extent / 2
