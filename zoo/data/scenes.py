"""The scenes world: a small text-to-image world in which a caption can be checked against its picture.

A `Scene` is everything needed to draw a picture; a `Description` is what a caption says of one (what it leaves open is
None). Scenes are drawn at random by `random_scene`, which never makes a held-out combination for training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

import numpy as np

SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon"),
    *("butterfly", "car", "house", "tree", "flower", "fish", "cat", "mushroom"),
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "cream", "sky blue", "mint", "night")
RELATIONS = ("left of", "right of", "above", "below")
STYLES = ("plain", "cartoon", "sketch")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
INDISTINCT = {("black", "night"), ("blue", "sky blue"), ("green", "mint"), ("yellow", "cream")}
"""Colours that cannot be told from a background; such scenes are not drawn."""

Split: TypeAlias = Literal["train", "dev", "test"]
SINGLE_SIZES = {"small": (0.29, 0.41), "large": (0.56, 0.75)}  # extent as a share of the picture
FACE_EXTENT = 0.41  # below this a face has too few pixels to be read at 64
GAP = 0.035  # least distance between objects and to the border


@dataclass(frozen=True)
class Item:
    """One object as a caption names it; None is left open."""

    shape: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says: one item `count` times, or two and how the first lies to the second. None is left open."""

    items: tuple[Item, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None
    style: str | None = None
    face: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the open facets: the `scene` of `zoo evaluate --prompts`."""
        data = {k: v for k, v in asdict(self).items() if v is not None}
        data["items"] = [{k: v for k, v in item.items() if v is not None} for item in data["items"]]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Description:
        """The inverse of `to_dict`. Raises ValueError naming the field and the allowed values."""
        unknown = set(data) - {"items", "count", "relation", "background", "style", "face"}
        if unknown:
            raise ValueError(
                f"scene has unknown fields {sorted(unknown)}; allowed: items, count, relation, background, style, face"
            )
        if not isinstance(data.get("items"), list | tuple) or len(data["items"]) not in (1, 2):
            raise ValueError(
                "scene needs 'items': a list of one or two objects such as {'shape': 'car', 'colour': 'red'}"
            )
        for item in data["items"]:
            if set(item) - {"shape", "colour", "size"}:
                raise ValueError(f"item {item} has unknown fields; allowed: shape, colour, size")
            _check("shape", item.get("shape"), SHAPES, required=True)
            _check("colour", item.get("colour"), COLOURS)
            _check("size", item.get("size"), SIZES)
        _check("count", data.get("count"), (1, 2, 3, 4))
        _check("relation", data.get("relation"), RELATIONS)
        _check("background", data.get("background"), BACKGROUNDS)
        _check("style", data.get("style"), STYLES)
        _check("face", data.get("face"), (True, False))
        if len(data["items"]) == 2 and data.get("count", 1) != 1:
            raise ValueError("a scene with two items cannot have a count; name one item, or leave count out")
        if len(data["items"]) == 1 and data.get("relation"):
            raise ValueError("a relation needs two items")
        return cls(
            items=tuple(Item(**item) for item in data["items"]), **{k: v for k, v in data.items() if k != "items"}
        )


def _check(name: str, value: object, allowed: Sequence[object], *, required: bool = False) -> None:
    if (value is None and required) or (value is not None and value not in allowed):
        raise ValueError(f"scene {name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Placed:
    """One drawn object: centre and extent as shares of the picture, tilt in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    extent: float
    tilt: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A complete picture. `relation` says how the first of two unlike objects lies to the second, else it is None."""

    objects: tuple[Placed, ...]
    background: str
    style: str
    face: bool
    relation: str | None = None

    def describe(self) -> Description:
        """Everything a caption could say of this scene."""
        common: dict[str, Any] = {"background": self.background, "style": self.style, "face": self.face}
        if self.relation:
            return Description(tuple(Item(o.shape, o.colour) for o in self.objects), 1, self.relation, **common)
        first = self.objects[0]
        size = (
            None if len(self.objects) > 1 else next(s for s, (_, high) in SINGLE_SIZES.items() if first.extent <= high)
        )
        return Description((Item(first.shape, first.colour, size),), len(self.objects), **common)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        return cls(**{**data, "objects": tuple(Placed(**o) for o in data["objects"])})


# --- held-out combinations -------------------------------------------------------------------------------------------


@cache
def heldout(
    split: Literal["all", "dev", "test"] = "all",
) -> tuple[frozenset[tuple[str, str]], frozenset[frozenset[str]]]:
    """Held-out (colour, shape) pairs and unordered shape pairs: all, or the first half (dev) or the second (test)."""
    data = json.loads(files("zoo.data").joinpath("heldout.json").read_text())

    def half(rows: list[list[str]]) -> list[list[str]]:
        middle = len(rows) // 2
        return {"all": rows, "dev": rows[:middle], "test": rows[middle:]}[split]

    return (
        frozenset((colour, shape) for colour, shape in half(data["pairs"])),
        frozenset(frozenset(pair) for pair in half(data["object_pairs"])),
    )


def is_heldout(description: Description, split: Literal["all", "dev", "test"] = "all") -> bool:
    """Whether the description names a held-out combination."""
    pairs, object_pairs = heldout(split)
    return any((item.colour, item.shape) in pairs for item in description.items) or (
        frozenset(item.shape for item in description.items) in object_pairs
    )


# --- drawing scenes at random ----------------------------------------------------------------------------------------

KIND_SHARES = {"single": 0.36, "relation": 0.36, "count": 0.28}


def random_scene(rng: np.random.Generator, *, split: Split = "train", kind: str | None = None) -> Scene:
    """A random scene: seen combinations only for "train", at least one held-out combination for "dev" and "test".

    `kind` is single, relation or count; None draws it. Rejection keeps the remaining facets independent.
    """
    while True:
        scene = _propose(rng, kind or str(rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values()))))
        if scene is None:
            continue
        description = scene.describe()
        if split == "train":
            if not is_heldout(description):
                return scene
        elif is_heldout(description, split) and not is_heldout(description, "test" if split == "dev" else "dev"):
            return scene


def _propose(rng: np.random.Generator, kind: str) -> Scene | None:
    background = str(rng.choice(BACKGROUNDS))
    style = str(rng.choice(STYLES, p=(0.4, 0.35, 0.25)))
    face = bool(rng.random() < 0.35)
    colours = [c for c in COLOURS if (c, background) not in INDISTINCT]
    if kind == "relation":
        shapes = [str(s) for s in rng.choice(SHAPES, 2, replace=False)]
        relation = str(rng.choice(RELATIONS))
        centres = _beside(rng, relation, face)
        picked = [str(c) for c in rng.choice(colours, 2, replace=False)]
    else:
        count = 1 if kind == "single" else int(rng.choice((2, 3, 4)))
        shapes, picked, relation = [str(rng.choice(SHAPES))] * count, [str(rng.choice(colours))] * count, None
        centres = [_alone(rng, face)] if count == 1 else _together(rng, count, face)
    if centres is None:
        return None
    objects = tuple(
        Placed(shape, colour, round(x, 4), round(y, 4), round(extent, 4), round(float(rng.uniform(-7, 7)), 2))
        for shape, colour, (x, y, extent) in zip(shapes, picked, centres, strict=True)
    )
    return Scene(objects, background, style, face, relation)


def _alone(rng: np.random.Generator, face: bool) -> tuple[float, float, float]:
    low, high = SINGLE_SIZES[str(rng.choice(SIZES))]
    extent = float(rng.uniform(max(low, min(high, FACE_EXTENT if face else 0)), high))
    room = extent / 2 + GAP
    return float(rng.uniform(room, 1 - room)), float(rng.uniform(room, 1 - room)), extent


def _beside(rng: np.random.Generator, relation: str, face: bool) -> list[tuple[float, float, float]] | None:
    """Two places of which the first lies as `relation` says: clear along one axis, nearly level along the other."""
    a, b = (float(e) for e in rng.uniform(FACE_EXTENT if face else 0.31, 0.45, 2))
    slack = 1 - a - b - 3 * GAP
    if slack < 0:
        return None
    before, between = np.sort(rng.uniform(0, slack, 2))
    first = GAP + before + a / 2
    second = first + a / 2 + GAP + (between - before) + b / 2
    middle = float(rng.uniform(max(a, b) / 2 + GAP, 1 - max(a, b) / 2 - GAP))
    drift = float(rng.uniform(-0.1, 0.1))
    across = [float(np.clip(m, e / 2 + GAP, 1 - e / 2 - GAP)) for m, e in ((middle + drift, a), (middle - drift, b))]
    ends = [(float(first), across[0], a), (float(second), across[1], b)]
    if relation in ("right of", "below"):
        ends = [(1 - x, y, e) for x, y, e in ends]
    return ends if relation in ("left of", "right of") else [(y, x, e) for x, y, e in ends]


def _together(rng: np.random.Generator, count: int, face: bool) -> list[tuple[float, float, float]]:
    """Two to four places of one extent, at random but clear of each other; four fall back on a loose grid."""
    extent = float(rng.uniform(FACE_EXTENT if face else 0.29, {2: 0.45, 3: 0.43, 4: 0.43}[count]))
    low, high = extent / 2 + GAP, 1 - extent / 2 - GAP
    for _ in range(30):
        xy = rng.uniform(low, high, (count, 2))
        apart = np.abs(xy[:, None] - xy[None]).max(-1) + np.eye(count)
        if apart.min() >= extent + GAP:
            return [(float(x), float(y), extent) for x, y in xy]
    extent = min(extent, (1 - 3 * GAP) / 2)
    low, high = extent / 2 + GAP, 1 - extent / 2 - GAP
    room = (high - low - extent - GAP) / 2
    cells = [(low, low), (high, low), (low, high), (high, high)]
    picked = rng.permutation(4)[:count] if count > 2 else np.array([[0, 3], [1, 2]])[rng.integers(2)]
    inward = rng.uniform(0, max(room, 0), (count, 2))
    return [
        (cells[c][0] + (dx if cells[c][0] == low else -dx), cells[c][1] + (dy if cells[c][1] == low else -dy), extent)
        for c, (dx, dy) in zip(picked, inward, strict=True)
    ]
