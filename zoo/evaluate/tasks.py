"""The tasks a model is scored on: GenEval's six (arXiv 2310.11513) in the scenes world, and style beside them.

| task | a seen prompt | what makes its held-out version held out |
|---|---|---|
| single object | a butterfly | has none |
| two objects | a car and a tree | the pair of objects |
| counting | three stars, three red stars | the colour of the object (always said) |
| colours | a red car | the colour of the object |
| position | a car left of a tree | the pair of objects |
| colour attribution | a red car and a blue tree | the colour of one object |
| style | a cartoon of a green cat, sprite | the colour of the object (always said) |

What a prompt leaves open is free and not judged. A held-out scene holds combinations of one half (dev or test) only,
and of one sort: held-out colours come with seen pairs of objects. English and Chinese prompts tell the same scenes, in
one of their many phrasings, for the same seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from zoo.data.captions import LANGUAGES, Language, caption
from zoo.data.scenes import COLOURS, RELATIONS, SHAPES, Description, Item, heldout, is_heldout

Part: TypeAlias = Literal["seen", "dev", "test"]
Rng: TypeAlias = np.random.Generator

MEAN_OF = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
TASKS = (*MEAN_OF, "style")
PARTS = ("seen", "dev", "test")


@dataclass(frozen=True)
class Case:
    """One picture to ask for and to judge. `split` is seen or held_out; `seed` is the picture's."""

    task: str
    split: str
    language: str
    prompt: str
    scene: Description
    seed: int


def scenes_for(task: str, part: Part, n: int, seed: int = 0) -> list[Description]:
    """`n` scenes of a task, always the same for a seed; the first m of n are those of a call for m.

    `part` is seen (no held-out combination), or the dev or test half of the held-out ones.

    Raises:
        ValueError: an unknown task or part, or the held-out version of a single object, which has none.
    """
    if task not in TASKS or part not in PARTS:
        raise ValueError(
            f"no scenes for task {task!r}, part {part!r}; tasks: {', '.join(TASKS)}; parts: {', '.join(PARTS)}"
        )
    if not has_part(task, part):
        raise ValueError("the task 'single object' has no held-out version: it says no combination")
    rng = np.random.default_rng((seed, TASKS.index(task), PARTS.index(part)))
    return [_draw(task, part, rng) for _ in range(n)]


def has_part(task: str, part: str) -> bool:
    """Whether a task exists in seen or held-out scenes."""
    return part == "seen" or task != "single object"


def cases(
    per_task: int, seed: int = 0, heldout: Literal["dev", "test"] = "test", languages: Sequence[Language] = LANGUAGES
) -> list[Case]:
    """All pictures to ask for: every task, seen and held-out, in every language, `per_task` each."""
    found = []
    splits: tuple[tuple[str, Part], ...] = (("seen", "seen"), ("held_out", heldout))
    for index, task in enumerate(TASKS):
        for split, part in splits:
            if not has_part(task, part):
                continue
            for number, scene in enumerate(scenes_for(task, part, per_task, seed)):
                key = (seed, index, PARTS.index(part), number)
                picture_seed = int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)
                found += [
                    Case(task, split, language, phrase(scene, language, key), scene, picture_seed)
                    for language in languages
                ]
    return found


def phrase(scene: Description, language: Language, key: Sequence[int]) -> str:
    """One of the natural phrasings of a scene, chosen by `key`; everything the scene says is said."""
    return caption(scene, language, np.random.default_rng((*key, LANGUAGES.index(language))), full=True)


def _draw(task: str, part: Part, rng: Rng) -> Description:
    pairs, object_pairs = heldout("all" if part == "seen" else part)
    by_objects = task in ("two objects", "position")
    while True:
        scene = _PROPOSE[task](rng, part)
        if part == "seen":
            if not is_heldout(scene):
                return scene
            continue
        coloured = [(item.colour, item.shape) for item in scene.items]
        together = frozenset(item.shape for item in scene.items)
        wanted = together in object_pairs if by_objects else any(pair in pairs for pair in coloured)
        _, any_object_pairs = heldout("all")
        other: Literal["dev", "test"] = "test" if part == "dev" else "dev"
        if wanted and not is_heldout(scene, other) and (by_objects or together not in any_object_pairs):
            return scene


def _pick(rng: Rng, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _item(rng: Rng, coloured: bool) -> Item:
    return Item(_pick(rng, SHAPES), _pick(rng, COLOURS) if coloured else None)


def _two(rng: Rng, coloured: bool, relation: str | None = None) -> Description:
    """Two different objects, in two different colours if they are said."""
    shapes, colours = rng.permutation(SHAPES)[:2], rng.permutation(COLOURS)[:2]
    items = tuple(Item(str(s), str(c) if coloured else None) for s, c in zip(shapes, colours, strict=True))
    return Description(items, relation=relation)


def _counting(rng: Rng, part: Part) -> Description:
    coloured = part != "seen" or bool(rng.random() < 0.5)
    return Description((_item(rng, coloured),), count=int(rng.integers(2, 5)))


def _style(rng: Rng, part: Part) -> Description:
    """A style, a face, or both."""
    coloured = part != "seen" or bool(rng.random() < 0.5)
    style, face = [("cartoon", None), ("sketch", None), ("cartoon", True), ("sketch", True), (None, True)][
        rng.integers(5)
    ]
    return Description((_item(rng, coloured),), style=style, face=face)


_PROPOSE: dict[str, Callable[[Rng, Part], Description]] = {
    "single object": lambda rng, part: Description((_item(rng, False),)),
    "two objects": lambda rng, part: _two(rng, False),
    "counting": _counting,
    "colours": lambda rng, part: Description((_item(rng, True),)),
    "position": lambda rng, part: _two(rng, False, _pick(rng, RELATIONS)),
    "colour attribution": lambda rng, part: _two(rng, True),
    "style": _style,
}


def read_cases(path: str | Path, seed: int = 0) -> list[Case]:
    """Prompts of one's own, one JSON object a line:

        {"prompt": "a red car left of a tree", "task": "position",
         "scene": {"items": [{"shape": "car", "colour": "red"}, {"shape": "tree"}], "relation": "left of"}}

    `scene` is what the picture is judged by, as `zoo.data.scenes.Description.from_dict` takes it: `items` (one or two,
    each with `shape` and, if said, `colour` and `size`), and if said `count` (1 to 4, with one item), `relation` (of
    the first item to the second), `background`, `style` and `face` (true or false). `task` is any name ("custom" if
    left out); `language` is en or zh (zh if left out and the prompt has Chinese characters); `seed` is the picture's.

    Raises:
        ValueError: a line that is not as above; the message gives its number and what is wrong.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_case(json.loads(line), seed + number - 1))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no prompts: expected JSON lines of prompt, scene and task")
    return found


def _case(row: object, seed: int) -> Case:
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object with prompt, scene and task")
    unknown = set(row) - {"prompt", "scene", "task", "language", "seed"}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}; allowed: prompt, scene, task, language, seed")
    prompt, scene, task = row.get("prompt"), row.get("scene"), row.get("task", "custom")
    if not isinstance(prompt, str) or not isinstance(task, str) or not isinstance(scene, dict):
        raise ValueError("expected a prompt (text), a scene (object) and a task (text)")
    language = row.get("language", "zh" if any("\u4e00" <= c <= "\u9fff" for c in prompt) else "en")
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; allowed: {', '.join(LANGUAGES)}")
    if not isinstance(row.get("seed", 0), int):
        raise ValueError(f"seed is {row['seed']!r}; expected a whole number")
    description = Description.from_dict(scene)
    split = "held_out" if is_heldout(description) else "seen"
    return Case(task, split, language, prompt, description, row.get("seed", seed))
