"""Rendered scenes on disk, drawn once and read as a memory map by every part that trains on them.

A cache is a folder named after a fingerprint of what is in it; it appears under its name only when it is complete.
`$ZOO_CACHE` says where caches live (default: `cache/` in the working folder).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from zoo.atomic import replacing
from zoo.data.draw import render
from zoo.data.scenes import Scene, random_scene
from zoo.train.recipe import Table

Array: TypeAlias = NDArray[Any]
CHUNK = 500  # scenes drawn by one call of a worker
PROBED = 100  # scenes that tell whether a cache is what today's code would draw


class SceneData(Table):
    """The `[data]` table: how many scenes, how large, from which seed."""

    scenes: int = Field(200_000, ge=1)
    size: int = Field(64, ge=8)
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)  # processes that draw; 0 is one per core


@dataclass(frozen=True)
class Scenes:
    """A complete cache: `images` uint8 [scenes, size, size, 3] and the scenes they show."""

    folder: Path

    @cached_property
    def images(self) -> Array:
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def scenes(self) -> list[Scene]:
        return list(self)

    def __iter__(self) -> Iterator[Scene]:
        """The scenes, read one by one."""
        with open(self.folder / "scenes.jsonl", encoding="utf-8") as lines:
            for line in lines:
                yield Scene.from_dict(json.loads(line))

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def related(self) -> Array:
        """The rows whose scenes show one object beside another."""
        return np.array([row for row, scene in enumerate(self) if scene.relation], np.int64)

    def draw(self, count: int, relations: float, rng: np.random.Generator) -> Array:
        """Random rows; a share of `relations` is drawn from `related` alone, since binding is learned last."""
        if not relations:
            return rng.integers(len(self), size=count)
        related = rng.random(count) < relations
        return np.where(related, rng.choice(self.related, count), rng.integers(len(self), size=count))


def scenes(data: SceneData) -> Scenes:
    """The training scenes that `data` asks for, drawn now unless an earlier run drew them."""
    # Named by what the first scenes look like, so that a cache drawn by other code is not taken for a current one.
    drawn = [_scene(data, index) for index in range(PROBED)]
    name = fingerprint(data.scenes, data.size, data.seed, *(image.tobytes() for _, image in drawn))
    folder = root() / f"scenes-{name}"
    with PartialState().local_main_process_first():  # the others of several processes then find it
        if not folder.is_dir():
            with replacing(folder) as temporary:
                _draw(temporary, data)
    return Scenes(folder)


def filled(
    folder: Path, shape: tuple[int, ...], chunks: Iterable[Array], *, what: str, dtype: type[np.generic] = np.float16
) -> Array:
    """The array of `shape` in a cache folder, as a memory map; made of `chunks` of rows if it is not there."""
    return filled_together({folder: shape}, ((chunk,) for chunk in chunks), what=what, dtype=dtype)[0]


def filled_together(
    shapes: Mapping[Path, tuple[int, ...]],
    chunks: Iterable[tuple[Array, ...]],
    *,
    what: str,
    dtype: type[np.generic] = np.float16,
) -> list[Array]:
    """Arrays with as many rows in cache folders of their own; those that are not there are made in one pass.

    A chunk has rows of each array.
    """
    with PartialState().local_main_process_first():
        if missing := [folder for folder in shapes if not folder.is_dir()]:
            _fill(shapes, missing, chunks, what, dtype)
    return [np.load(folder / "array.npy", mmap_mode="r") for folder in shapes]


def _fill(
    shapes: Mapping[Path, tuple[int, ...]],
    missing: Sequence[Path],
    chunks: Iterable[tuple[Array, ...]],
    what: str,
    dtype: type[np.generic],
) -> None:
    promised, row = shapes[missing[0]][0], 0
    with ExitStack() as stack:
        arrays: dict[int, np.memmap[Any, Any]] = {}  # by their place in a chunk
        for place, (folder, shape) in enumerate(shapes.items()):
            if folder in missing:
                temporary = stack.enter_context(replacing(folder))
                temporary.mkdir(parents=True)
                arrays[place] = np.lib.format.open_memmap(temporary / "array.npy", "w+", dtype, shape)
        bar = stack.enter_context(tqdm(total=promised, desc=what, mininterval=2))
        for chunk in chunks:
            for place, array in arrays.items():
                array[row : row + len(chunk[place])] = chunk[place]
            row += len(chunk[0])
            bar.update(len(chunk[0]))
        assert row == promised, f"{row} rows were made, {promised} promised"
        for array in arrays.values():
            array.flush()


def picked(array: Array, rows: Array) -> Array:
    """Rows of a memory map as an array in memory, read in order of their place on disk."""
    order = np.argsort(rows, kind="stable")
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    out[order] = array[rows[order]]
    return out


def root() -> Path:
    """The folder that caches live in."""
    return Path(os.environ.get("ZOO_CACHE") or "cache")


def fingerprint(*what: object) -> str:
    """A short name for what determines a cache's content."""
    digest = hashlib.sha256()
    for part in what:
        digest.update(part if isinstance(part, bytes) else f"{part}\n".encode())
    return digest.hexdigest()[:12]


def _scene(data: SceneData, index: int) -> tuple[Scene, Array]:
    """Scene `index` and its picture: it has a seed of its own, so it does not matter which process draws it."""
    scene = random_scene(np.random.default_rng([data.seed, index]))
    return scene, render(scene, data.size)


def _draw(folder: Path, data: SceneData) -> None:
    folder.mkdir(parents=True)
    shape = (data.scenes, data.size, data.size, 3)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape).flush()
    jobs = [(folder, data, start, min(start + CHUNK, data.scenes)) for start in range(0, data.scenes, CHUNK)]
    workers = min(data.workers or os.cpu_count() or 1, len(jobs))
    with ExitStack() as stack:
        lines = stack.enter_context(open(folder / "scenes.jsonl", "w", encoding="utf-8"))
        bar = stack.enter_context(
            tqdm(total=data.scenes, desc=f"drawing {data.size}px scenes", unit="scene", mininterval=2)
        )
        if workers == 1:
            chunks: Iterable[list[str]] = map(_chunk, jobs)
        else:
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            chunks = pool.map(_chunk, jobs)
        for chunk in chunks:
            lines.writelines(chunk)
            bar.update(len(chunk))


def _chunk(job: tuple[Path, SceneData, int, int]) -> list[str]:
    """Draw scenes start..stop into the cache; returns their JSON lines."""
    folder, data, start, stop = job
    images = np.load(folder / "images.npy", mmap_mode="r+")
    lines = []
    for index in range(start, stop):
        scene, images[index] = _scene(data, index)
        lines.append(json.dumps(scene.to_dict(), ensure_ascii=False) + "\n")
    images.flush()
    return lines
