"""From pixels to background and blobs: what in a picture is not background, cut into separate things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.draw import BACKDROP

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SIDE = 64  # pictures are looked at in this size
FAINT, CLEAR = 20.0, 34.0  # RGB distance from the background at which a pixel may, and must, belong to something
LEAST_CLEAR = 8  # clear pixels below which a speck is dust
_FADE = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
_ALL = np.ones((3, 3), bool)


@dataclass(frozen=True, eq=False)
class Blob:
    """One connected thing: its pixels, and its box (left, top, right, bottom; right and bottom exclusive)."""

    mask: Mask
    box: tuple[int, int, int, int]

    @property
    def span(self) -> int:
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    def gap(self, other: Blob) -> int:
        """Pixels between the boxes; 0 if they touch or overlap."""
        corners = list(zip(self.box, other.box, strict=True))
        return max(0, *(max(start) - min(end) for start, end in zip(corners[:2], corners[2:], strict=True)))

    def joined(self, other: Blob) -> Blob:
        (left, top, right, bottom), (a, b, c, d) = self.box, other.box
        return Blob(self.mask | other.mask, (min(left, a), min(top, b), max(right, c), max(bottom, d)))


def as_pixels(picture: NDArray[np.uint8] | Array | Tensor) -> Array:
    """RGB [64, 64, 3] in 0..255 from uint8 [h, w, 3], or floats in [0, 1] as [h, w, 3] or [3, h, w].

    Raises ValueError unless the picture is square and its side a multiple of 64.
    """
    array = picture if isinstance(picture, np.ndarray) else picture.detach().float().cpu().numpy()
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or array.shape[0] != array.shape[1] or array.shape[0] % SIDE:
        raise ValueError(
            f"a picture of shape {tuple(picture.shape)} cannot be judged; "
            f"expected [h, h, 3] or [3, h, h] with h a multiple of {SIDE}"
        )
    pixels = array.astype(np.float32) * (1.0 if array.dtype == np.uint8 else 255.0)
    step = array.shape[0] // SIDE
    return pixels.reshape(SIDE, step, SIDE, step, 3).mean((1, 3))


def backdrop(name: str) -> Array:
    """A background as it is drawn, [64, 64, 3]."""
    top, bottom = (np.array(colour, np.float32) for colour in BACKDROP[name])
    return np.broadcast_to(top + (bottom - top) * _FADE, (SIDE, SIDE, 3)).astype(np.float32)


def find_background(pixels: Array) -> tuple[str | None, Array]:
    """The background's name (None if it resembles none) and its colour everywhere, read off the picture's rim."""
    rim = np.ones((SIDE, SIDE), bool)
    rim[2:-2, 2:-2] = False
    far, shift, name = min(
        (
            float(np.median(np.linalg.norm(pixels[rim] - picture[rim], axis=1))),
            np.median((pixels - picture)[rim], 0),
            name,
        )
        for name, picture in ((name, backdrop(name)) for name in BACKDROP)
    )
    return (name if far < 26 else None), backdrop(name) + shift


def distance_from(background: Array, pixels: Array) -> Array:
    """RGB distance from the background [64, 64], a little smoothed so that noise does not count."""
    return np.linalg.norm(ndimage.gaussian_filter(pixels - background, (0.5, 0.5, 0)), axis=2).astype(np.float32)


def find_blobs(distance: Array) -> list[Blob]:
    """Connected things that are clear enough; a part that lies within the box of a larger one belongs to it."""
    labels, _ = ndimage.label(distance > FAINT, _ALL)
    clear = ndimage.sum_labels(distance > CLEAR, labels, np.arange(labels.max() + 1))
    blobs = [
        Blob(labels == index, _box(where))
        for index, where in enumerate(ndimage.find_objects(labels), 1)
        if clear[index] >= LEAST_CLEAR and where is not None
    ]
    return _gather(blobs)


def split(blob: Blob, distance: Array, share: float = 0.0, peel: int = 0) -> list[Blob]:
    """The blob cut where it is faint or narrow, into parts around its cores; everything goes to the nearest core.

    Cores are what stays connected above `share` of the clearest pixels, and with `peel` layers of pixels taken off.
    """
    peak = np.quantile(distance[blob.mask], 0.95)
    clear = blob.mask & (distance > share * peak)
    cores = _cores(ndimage.binary_erosion(ndimage.binary_fill_holes(clear), _ALL, peel) if peel else clear)
    if len(cores) < 2:
        return [blob]
    seeds = np.zeros(distance.shape, np.int32)
    for index, core in enumerate(cores, 1):
        seeds[core.mask] = index
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = np.where(blob.mask, seeds[tuple(nearest)], 0)
    return [
        Blob(owner == i, _box(where)) for i, where in enumerate(ndimage.find_objects(owner), 1) if where is not None
    ]


def _cores(mask: Mask) -> list[Blob]:
    labels, _ = ndimage.label(mask, _ALL)
    blobs = [
        Blob(labels == i, _box(where)) for i, where in enumerate(ndimage.find_objects(labels), 1) if where is not None
    ]
    return [blob for blob in _gather(blobs) if blob.span >= 9]


def _box(where: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = where
    return columns.start, rows.start, columns.stop, rows.stop


def _gather(blobs: list[Blob]) -> list[Blob]:
    """Joins each blob to the larger one whose box holds half of its own: a face in a ring, the parts of a sketch."""
    gathered: list[Blob] = []
    for blob in sorted(blobs, key=lambda b: -_area(b.box)):
        for index, host in enumerate(gathered):
            shared = (
                *(max(a, b) for a, b in zip(blob.box[:2], host.box[:2], strict=True)),
                *(min(a, b) for a, b in zip(blob.box[2:], host.box[2:], strict=True)),
            )
            if _area(shared) >= 0.5 * _area(blob.box):
                gathered[index] = host.joined(blob)
                break
        else:
            gathered.append(blob)
    return gathered


def _area(box: tuple[int, ...]) -> int:
    left, top, right, bottom = box
    return max(0, right - left) * max(0, bottom - top)
