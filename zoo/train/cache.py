"""Rendered scenes on disk, drawn once and read as a memory map by every part that trains on them.

A cache is a folder named after a fingerprint of what went into it, the drawing code included; it appears under its name
only when it is complete. `$ZOO_CACHE` says where caches live (default: `cache/` in the working folder).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
from pydantic import Field
from tqdm import tqdm

from zoo.data import artwork, draw
from zoo.data import scenes as world
from zoo.data.scenes import Scene
from zoo.train.checkpoint import replacing
from zoo.train.recipe import Table

CHUNK = 500  # scenes drawn by one call of a worker


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
    def images(self) -> np.ndarray:
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def scenes(self) -> list[Scene]:
        with open(self.folder / "scenes.jsonl", encoding="utf-8") as lines:
            return [Scene.from_dict(json.loads(line)) for line in lines]

    def __len__(self) -> int:
        return len(self.images)


def scenes(data: SceneData) -> Scenes:
    """The training scenes that `data` asks for, drawn now unless an earlier run drew them."""
    folder = root() / f"scenes-{fingerprint(data.scenes, data.size, data.seed, source(world, draw, artwork))}"
    if not folder.is_dir():
        with building(folder) as temporary:
            _draw(temporary, data)
    return Scenes(folder)


def root() -> Path:
    return Path(os.environ.get("ZOO_CACHE") or "cache")


def fingerprint(*what: object) -> str:
    """A short name for what determines a cache's content."""
    return hashlib.sha256("\n".join(map(str, what)).encode()).hexdigest()[:12]


def source(*modules: ModuleType) -> str:
    """The hash of some modules' files, so that a cache drawn by older code is not taken for a current one."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


building = replacing


def picked(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a memory map as an array in memory, read in order of their place on disk."""
    order = np.argsort(rows, kind="stable")
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    out[order] = array[rows[order]]
    return out


def _draw(folder: Path, data: SceneData) -> None:
    folder.mkdir(parents=True)
    shape = (data.scenes, data.size, data.size, 3)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape).flush()
    jobs = [(folder, data, start, min(start + CHUNK, data.scenes)) for start in range(0, data.scenes, CHUNK)]
    workers = min(data.workers or os.cpu_count() or 1, len(jobs))
    with open(folder / "scenes.jsonl", "w", encoding="utf-8") as lines:
        if workers == 1:
            _write(lines, map(_chunk, jobs), data)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                _write(lines, pool.map(_chunk, jobs), data)


def _write(lines, chunks: Iterable[list[str]], data: SceneData) -> None:  # type: ignore[no-untyped-def]
    with tqdm(total=data.scenes, desc=f"drawing {data.size}px scenes", unit="scene", mininterval=2) as bar:
        for chunk in chunks:
            lines.writelines(chunk)
            bar.update(len(chunk))


def _chunk(job: tuple[Path, SceneData, int, int]) -> list[str]:
    """Draw scenes start..stop into the cache; each has its own seed, so the workers' number does not matter."""
    folder, data, start, stop = job
    images = np.load(folder / "images.npy", mmap_mode="r+")
    lines = []
    for index in range(start, stop):
        scene = world.random_scene(np.random.default_rng([data.seed, index]))
        images[index] = draw.render(scene, data.size)
        lines.append(json.dumps(scene.to_dict(), ensure_ascii=False) + "\n")
    images.flush()
    return lines
