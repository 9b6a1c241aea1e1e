"""How far the checker can be trusted: `python -m zoo.evaluate.calibration` prints it.

On freshly drawn scenes (every combination, held-out ones too) the checker should say yes to a true description and no
to one with a facet changed, also on slightly blurred and noisy pictures, and no to pictures spoilt on purpose. It
should find the scenes cleanly drawn, and those that were smeared or patched on purpose not.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.draw import render
from zoo.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    Description,
    Item,
    Scene,
    random_scene,
)
from zoo.evaluate.checker import Verdict, judge, read
from zoo.evaluate.defects import BLEMISHES, DEFECTS, Spoil

Pixels: TypeAlias = NDArray[np.uint8]
Rng: TypeAlias = np.random.Generator

BLUR, NOISE = 0.6, 6.0  # standard deviations: pixels at 64, and levels of 255
WOBBLE, DRIFT = 0.6, 2.3  # the same, of how far outlines stray and of how colours drift, both smoothly
CONDITIONS = ("clean", "blurred", "noisy", "blurred and noisy", "wobbly")
GOAL = {"true": 0.99, "changed": 0.01, "defects": 0.95, "blemishes": 0.8}  # some patches are hardly to be seen
FEWER = 4  # so many defects are drawn for one blemish
LEAST_TRUE_WOBBLY = 0.95  # of pictures that wobble by a pixel, a few are not what they were


class Report(TypedDict):
    """Shares of yes by condition: to true descriptions, to these as cleanly drawn, to changed ones by facet; and of no:
    to defects by kind, and to badly drawn pictures as cleanly drawn ones."""

    scenes: int
    true: dict[str, float]
    clean: dict[str, float]
    changed: dict[str, dict[str, float]]
    defects: dict[str, dict[str, float]]
    blemishes: dict[str, dict[str, float]]


@dataclass
class _Tally:
    """Counts of yes and of all."""

    yes: Counter[str] = field(default_factory=Counter)
    all: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, yes: bool) -> None:
        self.yes[name] += yes
        self.all[name] += 1

    def shares(self) -> dict[str, float]:
        return {name: round(self.yes[name] / count, 4) for name, count in self.all.items()}

    def total(self) -> float:
        return round(self.yes.total() / max(1, self.all.total()), 4)


def calibrate(n: int = 1000, seed: int = 0, conditions: tuple[str, ...] = CONDITIONS) -> Report:
    """The checker's record on `n` fresh scenes, `n` with a defect and a quarter as many with a blemish, in each
    condition: some 80 ms a scene.

    Raises ValueError for fewer than one scene.
    """
    if n < 1:
        raise ValueError(f"cannot calibrate on {n} scenes: expected at least 1 scene")
    true, clean, changed, defects, blemishes = {}, {}, {}, {}, {}
    for condition in conditions:
        rng = np.random.default_rng((seed, CONDITIONS.index(condition)))
        kept, neat, facets = _Tally(), _Tally(), _Tally()
        for scene in any_scenes(rng, n):
            reading, said = read(weather(render(scene), condition, rng)), scene.describe()
            verdict = judge(reading, said)
            kept.add("yes", verdict.ok)
            neat.add("yes", verdict.clean)
            for facet, other in changes(said, rng):
                facets.add(facet, judge(reading, other).ok)
        true[condition], clean[condition] = kept.total(), neat.total()
        changed[condition] = {"all": facets.total(), **facets.shares()}
        defects[condition] = _refused(n, condition, rng, DEFECTS, lambda verdict: verdict.ok)
        blemishes[condition] = _refused(n // FEWER, condition, rng, BLEMISHES, lambda verdict: verdict.clean)
    return Report(scenes=n, true=true, clean=clean, changed=changed, defects=defects, blemishes=blemishes)


def any_scenes(rng: Rng, n: int) -> Iterator[Scene]:
    """Scenes of every sort: half of them as in training, a quarter with dev and a quarter with test combinations."""
    for index in range(n):
        yield random_scene(rng, split=("train", "dev", "train", "test")[index % 4])


def weather(picture: Pixels, condition: str, rng: Rng) -> Pixels:
    """The picture as a model might leave it: a little blurred, noisy, or both; or wobbly.

    Wobbly outlines stray by a pixel of 64 here and there and colours drift, under some blur and noise.
    """
    pixels = picture.astype(np.float32)
    if condition == "wobbly":
        x, y = (WOBBLE * _smooth(pixels.shape[:2], 5, rng) for _ in range(2))
        rows, columns = np.indices(x.shape, np.float32)
        pixels = np.stack(
            [
                ndimage.map_coordinates(c, (rows + y, columns + x), order=1, mode="nearest")
                for c in pixels.T.swapaxes(1, 2)
            ],
            2,
        )
        pixels = pixels + DRIFT * np.stack([_smooth(x.shape, 3, rng) for _ in range(3)], 2)
        pixels = ndimage.gaussian_filter(pixels, (0.5, 0.5, 0)) + rng.normal(0, 3, pixels.shape).astype(np.float32)
    if "blurred" in condition:
        pixels = ndimage.gaussian_filter(pixels, (BLUR, BLUR, 0))
    if "noisy" in condition:
        pixels = pixels + rng.normal(0, NOISE, pixels.shape).astype(np.float32)
    return pixels.round().clip(0, 255).astype(np.uint8)


def _smooth(shape: tuple[int, ...], length: float, rng: Rng) -> NDArray[np.float32]:
    """A random field of standard deviation 1 that varies over `length` pixels."""
    field = ndimage.gaussian_filter(rng.normal(0, 1, shape), length)
    return (field / field.std()).astype(np.float32)


def changes(said: Description, rng: Rng) -> Iterator[tuple[str, Description]]:
    """Every facet that is said, changed to another value, one at a time."""

    def other(value: object, values: tuple[str, ...]) -> str:
        return str(rng.choice([v for v in values if v != value]))

    def with_item(item: Item) -> Description:
        return replace(said, items=tuple(item if k == which else i for k, i in enumerate(said.items)))

    which = int(rng.integers(len(said.items)))
    item = said.items[which]
    shapes = tuple(s for s in SHAPES if s not in {i.shape for i in said.items})
    yield "shape", with_item(replace(item, shape=other(item.shape, shapes)))
    yield "colour", with_item(replace(item, colour=other(item.colour, COLOURS)))
    if len(said.items) == 2:
        a, b = said.items
        yield "colour", replace(said, items=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
        yield "relation", replace(said, relation=other(said.relation, RELATIONS))
    else:
        count = int(rng.choice([c for c in (1, 2, 3, 4) if c != said.count]))
        yield "count", replace(said, count=count)
    if item.size:
        yield "size", with_item(replace(item, size=other(item.size, SIZES)))
    yield "background", replace(said, background=other(said.background, BACKGROUNDS))
    yield "style", replace(said, style=other(said.style, STYLES))
    yield "face", replace(said, face=not said.face)


def _refused(
    n: int, condition: str, rng: Rng, kinds: Mapping[str, Spoil], passes: Callable[[Verdict], bool]
) -> dict[str, float]:
    """The share that does not pass, by kind, over `n` spoilt pictures in all."""
    tally = _Tally()
    for name, spoil in kinds.items():
        scenes = any_scenes(rng, 100 * n + 100)
        while tally.all[name] < max(1, n // len(kinds)):
            scene = next(scenes)
            try:
                picture = spoil(scene, rng)
            except ValueError:  # no room for a stray, no face to smear: the next scene has
                continue
            verdict = judge(weather(picture, condition, rng), scene.describe())
            tally.add(name, not passes(verdict))
    return tally.shares()


def holds(report: Report) -> bool:
    """Whether every figure of a report is as good as it is asked to be."""
    return (
        all(
            share >= (LEAST_TRUE_WOBBLY if condition == "wobbly" else GOAL["true"])
            for record in (report["true"], report["clean"])
            for condition, share in record.items()
        )
        and all(share <= GOAL["changed"] for row in report["changed"].values() for share in row.values())
        and all(
            share >= GOAL[spoilt]
            for spoilt, record in (("defects", report["defects"]), ("blemishes", report["blemishes"]))
            for row in record.values()
            for share in row.values()
        )
    )


def table(report: Report) -> str:
    """The report as text, a column a condition."""
    names = list(report["true"])
    rows = [("yes to true descriptions", list(report["true"].values()))]
    rows += [("and cleanly drawn", list(report["clean"].values()))]
    for title, part in (
        ("yes with changed", report["changed"]),
        ("no to", report["defects"]),
        ("not clean:", report["blemishes"]),
    ):
        kinds = dict.fromkeys(kind for row in part.values() for kind in row)
        rows += [(f"{title} {kind}", [part[name].get(kind, float("nan")) for name in names]) for kind in kinds]
    head = f"{'checker, ' + str(report['scenes']) + ' scenes':32}" + "".join(f"{name:>20}" for name in names)
    return "\n".join([head, *(f"{title:32}" + "".join(f"{100 * v:>19.2f}%" for v in values) for title, values in rows)])


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(description="Measure the checker on freshly drawn and on spoilt pictures.")
    found.add_argument("--scenes", type=int, default=1000, help="scenes, and spoilt pictures, in each condition")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--json", action="store_true", help="print one JSON object")
    return found


def main() -> None:
    options = parser().parse_args()
    report = calibrate(options.scenes, options.seed)
    print(json.dumps(report) if options.json else table(report))


if __name__ == "__main__":
    main()
