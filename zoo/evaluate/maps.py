"""Scoring pictures of painted maps: do the objects fill the cells painted for them, is the rest left empty?

Cells are those of a 16x16 latent. What stands out from the background is an object, as the checker sees it; what a
sketch encloses belongs to it. The same prompts without their maps show what is owed to the map.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from zoo.data.maps import as_picture, draw_map
from zoo.data.scenes import Scene, random_scene
from zoo.evaluate.checker import judge, read
from zoo.evaluate.editing import stayed
from zoo.evaluate.foreground import FAINT, SIDE, as_pixels, distance_from, find_background
from zoo.evaluate.judged import Pipe
from zoo.evaluate.tasks import LANGUAGES, phrase

Split: TypeAlias = Literal["train", "dev"]
CELL = SIDE // 16  # pixels
SPLITS: dict[str, Split] = {"seen": "train", "held_out": "dev"}
MEASURES = ("object cells", "background cells", "objects", "prompt")


@dataclass(frozen=True)
class Painted:
    """A scene to ask for by its map and its prompt; `seed` is the picture's."""

    scene: Scene
    prompt: str
    seed: int

    @property
    def layout(self) -> Tensor:
        """The map, [64, 64] of class numbers."""
        return torch.from_numpy(draw_map(self.scene, SIDE))


@dataclass(frozen=True)
class Kept:
    """What a picture [3, 64, 64] keeps of a map, as shares in [0, 1].

    object_cells: of the cells painted as objects, where an object is; background_cells: of the cells without any
    painted pixel, where none is; objects: of the painted objects, those seen as what they were painted as, in their
    place; prompt: 1 if the picture is all that the prompt says.
    """

    asked: Painted
    picture: Tensor
    object_cells: float
    background_cells: float
    objects: float
    prompt: float


class Maps(TypedDict):
    """{"seen" | "held_out" (dev half): {"with" | "without" the map: {measure: mean share}}}."""

    kept: dict[str, dict[str, dict[str, float]]]
    scenes: int
    images: int
    seconds: float


def evaluate(
    pipe: Pipe, *, n: int = 48, seed: int = 0, batch: int = 16, progress: bool = True, **settings: object
) -> tuple[Maps, list[Kept]]:
    """How well a pipe keeps to maps, and its pictures of seen scenes: `n` scenes of each split, in two languages.

    settings: sampler, steps, guidance and whatever else the pipe's call takes.

    Raises:
        ValueError: n below 1, or a pipe that takes no layouts.
    """
    from tqdm.auto import tqdm

    if n < 1:
        raise ValueError(f"cannot evaluate {n} maps: at least 1")
    started = time.perf_counter()
    found: dict[str, dict[str, list[Kept]]] = {split: {"with": [], "without": []} for split in SPLITS}
    with tqdm(total=4 * n, disable=not progress, unit="image", leave=False) as bar:
        for split, part in SPLITS.items():
            asked = painted(n, seed, part)
            for start in range(0, n, batch):
                some = asked[start : start + batch]
                for how, given in (("with", {"layout": torch.stack([p.layout for p in some])}), ("without", {})):
                    prompts, seeds = [p.prompt for p in some], [p.seed for p in some]
                    made = pipe(prompts, n=1, seed=seeds, progress=False, **given, **settings).tensor.float().cpu()
                    found[split][how] += [measure(p, picture) for p, picture in zip(some, made, strict=True)]
                    bar.update(len(some))
    report = Maps(
        kept={split: {how: means(kept) for how, kept in hows.items()} for split, hows in found.items()},
        scenes=2 * n,
        images=4 * n,
        seconds=round(time.perf_counter() - started, 1),
    )
    return report, found["seen"]["with"]


def painted(n: int, seed: int = 0, split: Split = "train") -> list[Painted]:
    """`n` scenes with their prompts; always the same for a seed, the first m of n those of a call for m."""
    rng = np.random.default_rng((seed, 2**43, split == "dev"))
    scenes = [(random_scene(rng, split=split), int(rng.integers(2**31))) for _ in range(n)]
    return [
        Painted(scene, phrase(scene.describe(), LANGUAGES[index % len(LANGUAGES)], (seed, index)), picture_seed)
        for index, (scene, picture_seed) in enumerate(scenes)
    ]


def measure(asked: Painted, picture: Tensor) -> Kept:
    """What a picture [3, 64, 64] in [0, 1] keeps of a map."""
    objects, background = cells_kept(picture, draw_map(asked.scene, SIDE))
    reading = read(picture)
    right = [
        any(seen.shape == thing.shape and seen.flaw is None and stayed(seen, thing) for seen in reading.objects)
        for thing in asked.scene.objects
    ]
    obeyed = judge(reading, asked.scene.describe()).ok
    return Kept(asked, picture, objects, background, sum(right) / len(right), float(obeyed))


def cells_kept(picture: Tensor, layout: NDArray[np.uint8]) -> tuple[float, float]:
    """The shares of a map's object cells and of its background cells that a picture keeps; 1 where there are none.

    An object cell is painted by at least half, and kept if at least half of what is painted stands out from the
    background. A background cell has nothing painted, and is kept unless half of it stands out.
    """
    pixels = as_pixels(picture)
    there = distance_from(find_background(pixels)[1], pixels) > FAINT
    wanted = layout > 0
    share, covered = _per_cell(wanted), _per_cell(wanted & ndimage.binary_fill_holes(there))
    objects = (covered >= share / 2)[share >= 0.5]
    background = (_per_cell(there) < 0.5)[share == 0]
    return float(objects.mean()) if objects.size else 1.0, float(background.mean()) if background.size else 1.0


def sheet_rows(kept: Sequence[Kept], rows: int = 6) -> Iterator[tuple[str, Tensor]]:
    """Captioned pictures for a contact sheet: maps in their classes' colours and what was made, of English prompts."""
    shown = [one for one in kept if one.asked.prompt.isascii()][:rows]
    for one in shown:
        colours = np.array(as_picture(one.asked.layout.numpy()).convert("RGB"))
        yield one.asked.prompt, torch.from_numpy(colours).permute(2, 0, 1).float() / 255
        yield one.asked.prompt, one.picture


def table(report: Maps) -> str:
    """A report as text, in per cent."""
    columns = [(split, how) for split in SPLITS for how in ("with", "without")]
    head = "".join(f"{split.replace('_', '-') + ' ' + how:>20}" for split, how in columns)
    rows = [
        f"{name:24}" + "".join(f"{100 * report['kept'][split][how][name]:>19.1f}%" for split, how in columns)
        for name in MEASURES
    ]
    return "\n".join([f"{report['images']} images, {report['seconds']:.0f} s", f"{'':24}{head}", *rows])


def means(kept: Sequence[Kept]) -> dict[str, float]:
    """The mean of each of `MEASURES`."""
    return {name: round(sum(getattr(one, name.replace(" ", "_")) for one in kept) / len(kept), 4) for name in MEASURES}


def _per_cell(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    cells = SIDE // CELL
    share: NDArray[np.float64] = mask.reshape(cells, CELL, cells, CELL).mean((1, 3))
    return share
