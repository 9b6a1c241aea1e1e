"""Scoring edits of drawn scenes: is what was asked for changed, and does the rest stay?

- Image to image (arXiv 2108.01073): one object shall become another colour or another shape, where it is. Little noise
  keeps the place and changes nothing, much noise the other way round; the curve over strengths shows how far the two go
  together. Strength 1 keeps nothing of the picture and is there for comparison.
- Inpainting: one of two objects is masked, by the latent cells that its box touches, and shall become another one.

Every prompt tells the whole scene that is asked for. Scenes before and after name no held-out combination.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from zoo.data.draw import footprints, render
from zoo.data.scenes import COLOURS, INDISTINCT, SHAPES, Description, Placed, Scene, is_heldout, random_scene
from zoo.evaluate.checker import Reading, Seen, judge, read
from zoo.evaluate.judged import Pipe
from zoo.evaluate.tasks import LANGUAGES, phrase

Change: TypeAlias = Literal["colour", "shape"]
Rng: TypeAlias = np.random.Generator
Told: TypeAlias = Callable[[int], object]  # how many pictures more are done

CHANGES: tuple[Change, ...] = ("colour", "shape")
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
SIZE = 64  # pixels a side
CELL = 4  # pixels of a latent cell: masks are cut along them, because a cell is made anew as a whole
NEAR = 0.08  # share of the picture by which a centre may move and still be kept
STRETCH = 1.25  # factor by which an extent may change and still be kept


@dataclass(frozen=True)
class Edit:
    """From the picture of `before` to one of `after`, in which object `which` has another colour or shape."""

    change: Change
    before: Scene
    after: Scene
    which: int
    prompt: str
    seed: int

    @property
    def wanted(self) -> Description:
        """What the picture is judged by: everything but the size, which is a matter of the kept place."""
        said = self.after.describe()
        return replace(said, items=tuple(replace(item, size=None) for item in said.items))

    @property
    def mask(self) -> Tensor:
        """[1, 64, 64], 1 on the cells that the box of object `which` touches."""
        return torch.from_numpy(_mask(self.before.objects[self.which])).float()[None]


@dataclass(frozen=True)
class Edited:
    """A picture [3, 64, 64] made for an edit. `strength` is None for inpainting.

    changed: what was asked for is there. kept: image to image keeps the object's place and extent, inpainting the other
    object. outside: mean difference from the given picture where the mask was not, seam: mean step across the mask's
    border beyond the step that was there before; both in levels of 255, and None without a mask.
    """

    edit: Edit
    strength: float | None
    picture: Tensor
    changed: bool
    kept: bool
    outside: float | None = None
    seam: float | None = None


class Editing(TypedDict):
    """Shares by change ("colour", "shape"), `img2img` also by strength ("0.6").

    `inpainting` has the means of `outside` and `seam` too.
    """

    img2img: dict[str, dict[str, dict[str, float]]]
    inpainting: dict[str, dict[str, float]]
    scenes: int
    images: int
    seconds: float


def evaluate(
    pipe: Pipe,
    *,
    n: int = 24,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    batch: int = 16,
    progress: bool = True,
    **settings: object,
) -> tuple[Editing, list[Edited]]:
    """How well a pipe edits drawn scenes, and the pictures: `n` scenes for each change, in two languages by turns.

    settings: sampler, steps, guidance and whatever else the pipe's call takes.

    Raises:
        ValueError: n below 1, no strength or one outside (0, 1], or a pipe that cannot start from images.
    """
    if n < 1 or not strengths or not all(0 < strength <= 1 for strength in strengths):
        raise ValueError(f"cannot evaluate n={n} edits at strengths {list(strengths)}: at least 1, in (0, 1]")
    from tqdm.auto import tqdm

    started = time.perf_counter()
    alone, pairs = edits("single", n, seed), edits("relation", n, seed)
    with tqdm(total=len(alone) * len(strengths) + len(pairs), disable=not progress, unit="image", leave=False) as bar:
        drawn = [edited for s in strengths for edited in _img2img(pipe, alone, s, batch, settings, bar.update)]
        painted = list(_inpainting(pipe, pairs, batch, settings, bar.update))
    report = Editing(
        img2img={
            change: {
                str(s): _shares([e for e in drawn if e.edit.change == change and e.strength == s]) for s in strengths
            }
            for change in CHANGES
        },
        inpainting={change: _shares([e for e in painted if e.edit.change == change]) for change in CHANGES},
        scenes=2 * len(CHANGES) * n,
        images=len(drawn) + len(painted),
        seconds=round(time.perf_counter() - started, 1),
    )
    return report, drawn + painted


def edits(kind: Literal["single", "relation"], n: int, seed: int = 0) -> list[Edit]:
    """`n` edits for each change, of scenes with one object or with two; always the same for a seed."""
    rng = np.random.default_rng((seed, 2**42, kind == "relation"))
    return [_edit(change, kind, (seed, index), rng) for change in CHANGES for index in range(n)]


def sheet_rows(edited: Sequence[Edited], rows: int = 2) -> Iterator[tuple[str, Tensor]]:
    """Captioned pictures for a contact sheet: the first English edits of each change, from what was given on."""
    by_edit: dict[int, list[Edited]] = {}
    for one in edited:
        by_edit.setdefault(id(one.edit), []).append(one)
    shown: dict[tuple[str, bool], int] = {}
    for group in by_edit.values():
        edit, strengths = group[0].edit, [one.strength for one in group if one.strength is not None]
        if not edit.prompt.isascii():  # sheets are looked at where there may be no font for Chinese
            continue
        shown[edit.change, not strengths] = shown.get((edit.change, not strengths), 0) + 1
        if shown[edit.change, not strengths] > rows:
            continue
        given = as_tensor(edit.before)
        if strengths:
            caption, before = f"strength {', '.join(map(str, strengths))}: {edit.prompt}", [given]
        else:
            caption, before = f"inpainting: {edit.prompt}", [given, torch.where(edit.mask > 0, 0.5, given)]
        yield from ((caption, picture) for picture in (*before, *(one.picture for one in group)))


def as_tensor(scene: Scene) -> Tensor:
    """A scene drawn, [3, 64, 64] in [0, 1]."""
    return torch.from_numpy(render(scene, SIZE)).permute(2, 0, 1).float() / 255


def stayed(seen: Seen, thing: Placed) -> bool:
    """Whether what is seen lies where the object lay, and is as large."""
    near = max(abs(seen.x - thing.x), abs(seen.y - thing.y)) <= NEAR
    return near and 1 / STRETCH <= seen.extent / thing.extent <= STRETCH


def table(report: Editing) -> str:
    """A report as text, in per cent."""

    def row(title: str, shares: dict[str, float]) -> str:
        values = "".join(f"{100 * shares[name]:>13.1f}%" for name in ("changed", "kept", "both"))
        rest = "".join(f"{shares[name]:>14.2f}" for name in ("outside", "seam") if name in shares)
        return f"{title:30}{values}{rest}"

    head = "".join(f"{name:>14}" for name in ("changed", "kept", "both", "outside/255", "seam/255"))
    lines = [f"{report['images']} images, {report['seconds']:.0f} s", f"{'':30}{head}"]
    for change, curve in report["img2img"].items():
        lines += [row(f"img2img, {change}, strength {s}", shares) for s, shares in curve.items()]
    return "\n".join([*lines, *(row(f"inpainting, {change}", s) for change, s in report["inpainting"].items())])


def _edit(change: Change, kind: str, key: tuple[int, int], rng: Rng) -> Edit:
    while True:
        before = random_scene(rng, kind=kind)
        which = int(rng.integers(len(before.objects)))
        after = _changed(before, which, change, rng)
        others = np.delete(footprints(before, SIZE), which, 0)
        # The mask of one object must leave the other one whole.
        if after is not None and not (others & _mask(before.objects[which])).any():
            language = LANGUAGES[key[1] % len(LANGUAGES)]
            picture_seed = int(rng.integers(2**31))
            return Edit(change, before, after, which, phrase(after.describe(), language, key), picture_seed)


def _changed(scene: Scene, which: int, change: Change, rng: Rng) -> Scene | None:
    """The scene with another object in one place, unlike all that were there; None where that is held out."""
    value = str(rng.choice(COLOURS if change == "colour" else SHAPES))
    if value in {getattr(thing, change) for thing in scene.objects} or (value, scene.background) in INDISTINCT:
        return None
    things = list(scene.objects)
    things[which] = replace(things[which], colour=value) if change == "colour" else replace(things[which], shape=value)
    after = replace(scene, objects=tuple(things))
    return None if is_heldout(after.describe()) else after


def _mask(thing: Placed) -> np.ndarray:
    """Which pixels [64, 64] lie in cells that the object's box touches."""
    cells, reach = SIZE // CELL, thing.extent / 2
    edges = np.arange(cells)
    mask = np.ones((cells, cells), bool)
    for axis, centre in enumerate((thing.y, thing.x)):
        inside = ((edges + 1) / cells > centre - reach) & (edges / cells < centre + reach)
        mask &= np.expand_dims(inside, 1 - axis)
    return mask.repeat(CELL, 0).repeat(CELL, 1)


def _img2img(
    pipe: Pipe, asked: Sequence[Edit], strength: float, batch: int, settings: dict[str, object], told: Told
) -> Iterator[Edited]:
    for part in _parts(asked, batch):
        made = _draw(pipe, part, {"strength": strength, **settings})
        for edit, picture in zip(part, made, strict=True):
            reading, thing = read(picture), edit.before.objects[0]
            kept = any(stayed(seen, thing) for seen in reading.objects)
            yield Edited(edit, strength, picture, judge(reading, edit.wanted).ok, kept)
        told(len(part))


def _inpainting(
    pipe: Pipe, asked: Sequence[Edit], batch: int, settings: dict[str, object], told: Told
) -> Iterator[Edited]:
    for part in _parts(asked, batch):
        masks = torch.stack([edit.mask for edit in part])
        made = _draw(pipe, part, {"mask": masks, **settings})
        for edit, picture in zip(part, made, strict=True):
            reading, given, mask = read(picture), as_tensor(edit.before), edit.mask[0] > 0
            difference = 255 * (picture - given).abs().mean(0)
            seam = _steps(picture, mask) - _steps(given, mask)
            yield Edited(
                edit,
                None,
                picture,
                _replaced(reading, edit),
                _other_kept(reading, edit),
                float(difference[~mask].mean()),
                float(seam),
            )
        told(len(part))


def _draw(pipe: Pipe, part: Sequence[Edit], settings: dict[str, object]) -> Tensor:
    given = torch.stack([as_tensor(edit.before) for edit in part])
    prompts, seeds = [edit.prompt for edit in part], [edit.seed for edit in part]
    made = pipe(prompts, n=1, seed=seeds, progress=False, image=given, **settings).tensor.detach().float().cpu()
    if made.shape != given.shape:
        raise ValueError(f"the pipe returned pictures {list(made.shape)} for given ones {list(given.shape)}")
    return made


def _replaced(reading: Reading, edit: Edit) -> bool:
    """Whether the mask holds one whole object, and that is the one asked for."""
    mask, wanted = edit.mask[0] > 0, edit.after.objects[edit.which]
    inside = [s for s in reading.objects if mask[_pixel(s.y), _pixel(s.x)]]
    return len(inside) == 1 and _is(inside[0], wanted)


def _other_kept(reading: Reading, edit: Edit) -> bool:
    """Whether the object that was not masked is still there, as it was."""
    return all(
        any(_is(seen, thing) and stayed(seen, thing) for seen in reading.objects)
        for index, thing in enumerate(edit.before.objects)
        if index != edit.which
    )


def _is(seen: Seen, thing: Placed) -> bool:
    return seen.flaw is None and (seen.shape, seen.colour) == (thing.shape, thing.colour)


def _pixel(share: float) -> int:
    return min(max(int(share * SIZE), 0), SIZE - 1)


def _steps(picture: Tensor, mask: Tensor) -> float:
    """Mean absolute difference, in levels of 255, between neighbouring pixels on either side of the mask's border."""
    found = []
    for axis in (0, 1):
        a, b = mask.narrow(axis, 0, SIZE - 1), mask.narrow(axis, 1, SIZE - 1)
        step = (picture.narrow(axis + 1, 1, SIZE - 1) - picture.narrow(axis + 1, 0, SIZE - 1)).abs().mean(0)
        found.append(step[a != b])
    return 255 * float(torch.cat(found).mean())


def _shares(edited: Sequence[Edited]) -> dict[str, float]:
    shares = {
        "changed": sum(e.changed for e in edited),
        "kept": sum(e.kept for e in edited),
        "both": sum(e.changed and e.kept for e in edited),
    }
    found = {name: round(count / len(edited), 4) for name, count in shares.items()}
    for name in ("outside", "seam"):
        values = [value for e in edited if (value := getattr(e, name)) is not None]
        if values:
            found[name] = round(sum(values) / len(values), 3)
    return found


def _parts(asked: Sequence[Edit], batch: int) -> Iterator[Sequence[Edit]]:
    return (asked[start : start + batch] for start in range(0, len(asked), batch))
