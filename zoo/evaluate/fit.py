"""Which object a blob is: the prototype that explains its pixels best, moved, stretched and turned into place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.scenes import COLOURS, FACE_EXTENT
from zoo.evaluate.foreground import SIDE, Array, Blob
from zoo.evaluate.prototypes import CELLS, GRID, RGB, Kind, Prototypes, interpolate, on_grid, prototypes, soften

FREEDOM = 24.0  # RGB distance by which a colour may be off at no cost
CANDIDATES, WORSE, ROUNDS = 6, 3.5, 3
SPOT = 1.5  # cells: a place in an object
SHADES = np.array((1.0, 0.93, 0.86, 0.8))  # a blurred thin body is darker than its colour
HAZE = 0.9  # cells: the blur whose share in a picture is fitted
TINGE, LEAST_INSIDE = 1.5, 12  # cells: a patch of another hue is so wide; a body of fewer cells shows no hue
MOSTLY, MOST, MOST_LINE = 0.6, 0.97, 0.9  # a cell of body; quantiles that leave single cells aside
GRAYISH, FAINT_ACCENT = 40.0, 12.0  # RGB levels: black has no hue; of what is not body in a line drawing
BEND, BEND_OVER, BENDS = 1.2, 2.5, 1  # pixels at most, smooth over so many cells
STIFFNESS = 400.0
# A little resistance keeps what the picture leaves undecided (a circle's turn) where it is.
RESISTANCE = np.array((100, 100, 1e4, 1e4, 4e4, 4e4, 1e3))
_X, _Y = np.meshgrid(*(np.arange(GRID, dtype=np.float32) + 0.5 - GRID / 2,) * 2)


@dataclass(frozen=True)
class Fit:
    """A prototype in its place; x, y and extent as in `zoo.data.scenes.Placed`."""

    kind: Kind
    colour: str
    tint: Array  # the body colour that fits best, RGB
    error: float  # the share of the blob that is left unexplained
    loose: float  # the same, forgiving displacements of a cell
    spot: float  # the same where it is worst, as a share of how much the object stands out there
    foreign: float  # share of the body that has another colour
    tinged: float  # how far a filled body strays from its one hue: RGB distance, shading left aside
    off_hue: float  # how far the body, filled or line, is from its hue where it is most: RGB levels
    x: float
    y: float
    extent: float
    tilt: float  # degrees
    stretch: float  # how much wider than the prototype, as a factor


@dataclass(frozen=True)
class _Sums:
    """The prototypes at half resolution (a slightly misplaced line still meets its own) and their inner products with
    themselves, so that all of them are compared with a patch at once."""

    body: Array
    covered: Array
    flat_fixed: Array
    ff: Array
    fu: Array
    uu: Array
    wf: Array
    wu: Array
    ww: Array


@cache
def _sums(night: bool) -> _Sums:
    p = prototypes(night)
    fixed, body, covered = (
        _halved(layer.reshape(len(layer), GRID, GRID, -1)) for layer in (p.fixed, p.body, p.covered)
    )
    body, covered = body[..., 0], covered[..., 0]
    return _Sums(
        body,
        covered,
        fixed.reshape(len(fixed), -1),
        (fixed**2).sum((1, 2)),
        np.einsum("pnc,pn->pc", fixed, covered),
        (covered**2).sum(1),
        np.einsum("pnc,pn->pc", fixed, body),
        (body * covered).sum(1),
        (body**2).sum(1),
    )


def _halved(layers: Array) -> Array:
    """[n, grid, grid, channels] in means of 2 x 2 cells, [n, grid^2 / 4, channels]."""
    n, *_, channels = layers.shape
    return layers.reshape(n, GRID // 2, 2, GRID // 2, 2, channels).mean((2, 4)).reshape(n, -1, channels)


def _costs(patch: Array, behind: Array, p: Prototypes, s: _Sums) -> Array:
    """Squared error [n, colours] of every prototype in every colour, the colour free within `FREEDOM`."""
    pixels = _halved(patch[None])[0]
    match = s.flat_fixed @ pixels.ravel() - (s.covered @ pixels) @ behind
    own = s.ff - 2 * (s.fu @ behind) + s.uu * (behind @ behind)
    lean = s.body @ pixels - s.wf + s.wu[:, None] * behind  # body . (patch - model without body)
    free = (pixels**2).sum() - 2 * match + own - (lean**2).sum(1) / s.ww
    off = np.linalg.norm(lean[:, None] / s.ww[:, None, None] - RGB, axis=2)
    costs = free[:, None] + s.ww[:, None] * np.maximum(0, off - FREEDOM) ** 2
    return np.where(p.allowed > 0, costs, np.inf)


def fit(picture: Array, background: Array, blob: Blob, others: list[Blob], night: bool) -> list[Fit]:
    """The best explanations of a blob, best first, one a kind. `picture` is the difference from the background."""
    p, s = prototypes(night), _sums(night)
    elsewhere = np.zeros((SIDE, SIDE), bool)
    for other in others:
        elsewhere |= other.mask
    around = ndimage.binary_dilation(elsewhere, iterations=2) & ~ndimage.binary_dilation(blob.mask)
    alone = picture * ~(elsewhere | around)[..., None]
    soft = soften(alone, blob.box)
    behind = background[blob.mask].mean(0)
    width, height = blob.box[2] - blob.box[0], blob.box[3] - blob.box[1]
    shape_ratio = np.log(width / height) - np.log(p.size[:, 0] / p.size[:, 1])
    costs = _costs(on_grid(soft, blob.box), behind, p, s) * (1 + 4 * shape_ratio**2)[:, None]
    best: list[tuple[float, int]] = []
    for index in np.argsort(costs.min(1)):
        if p.kinds[index] not in {p.kinds[i] for _, i in best}:
            best.append((float(costs[index].min()), int(index)))
            if len(best) == CANDIDATES or best[-1][0] > WORSE * best[0][0]:
                break
    return sorted((_refine(soft, behind, blob, index, p) for _, index in best), key=_unlikely)


def _unlikely(fit: Fit) -> float:
    return fit.error * (2 if fit.kind.face and fit.extent < FACE_EXTENT - 0.04 else 1)


def _refine(picture: Array, behind: Array, blob: Blob, index: int, p: Prototypes) -> Fit:
    """Gauss-Newton on place, size, turn, slant and sharpness of a prototype (Lucas and Kanade's image alignment).

    What the last step leaves is then bent a little: a slight wobble of the outline is not unexplained.
    """
    left, top, right, bottom = (float(v) for v in blob.box)
    x, y, width, height, turn = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0.0
    slant, haze = 0.0, 0.0
    plain = p.fixed[index] - p.covered[index][:, None] * behind
    sharp = np.concatenate([plain, p.body[index][:, None]], 1).reshape(GRID, GRID, 4)
    hazy = ndimage.gaussian_filter(sharp, (HAZE, HAZE, 0)) - sharp
    allowed = np.flatnonzero(p.allowed[index])
    for step in range(ROUNDS + 1):
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        patch = on_grid(picture, box, turn, slant)
        layers = sharp + haze * hazy
        tint, name = _tint(patch - layers[..., :3], layers[..., 3:], allowed)
        model = layers[..., :3] + layers[..., 3:] * tint
        if step == ROUNDS:
            break
        down, across = np.gradient(model, axis=(0, 1))
        turning = across * -_Y[..., None] + down * _X[..., None]
        blurring = -(hazy[..., :3] + hazy[..., 3:] * tint)  # moves the picture towards the model, as the others do
        moves = [across, down, across * _X[..., None], down * _Y[..., None], turning, across * _Y[..., None], blurring]
        slopes = np.stack(moves, -1).reshape(-1, len(moves))
        normal = slopes.T @ slopes
        normal[np.diag_indices(len(moves))] = np.diag(normal) * 1.02 + RESISTANCE
        dx, dy, sx, sy, dt, ds, dh = np.linalg.solve(normal, slopes.T @ (model - patch).ravel())
        x += float(np.clip(dx, -1.5, 1.5)) * width / CELLS
        y += float(np.clip(dy, -1.5, 1.5)) * height / CELLS
        width *= 1 + float(np.clip(sx, -0.08, 0.08))
        height *= 1 + float(np.clip(sy, -0.08, 0.08))
        turn += float(np.clip(dt, -0.06, 0.06))
        slant = float(np.clip(slant + np.clip(ds, -0.06, 0.06), -0.12, 0.12))
        haze = float(np.clip(haze + dh, -0.5, 1.5))
    extents = np.array((width, height)) / SIDE / p.size[index]
    extent = float(np.sqrt(extents.prod()))
    energy = 0.5 * float((patch**2).sum() + (model**2).sum())
    layers = _bent(layers, model, patch, width / CELLS, height / CELLS)
    body = layers[..., 3]
    tint, name = _tint(patch - layers[..., :3], layers[..., 3:], allowed)
    model = layers[..., :3] + layers[..., 3:] * tint
    excess = _beyond(patch, model)
    if p.kinds[index].style == "sketch":
        hues = _hues_of_line(tint, name, patch, behind, layers)
    else:
        hues = _hues(tint, name, patch - model, excess, body)
    beyond = (excess**2 + _beyond(model, patch) ** 2).sum(2)
    return Fit(
        kind=p.kinds[index],
        colour=COLOURS[name],
        tint=tint,
        error=float(((patch - model) ** 2).sum()) / energy,
        loose=float(beyond.sum()) / 2 / energy,
        spot=float(ndimage.gaussian_filter(beyond, SPOT).max()) * float(p.covered[index].sum()) / energy,
        foreign=hues.foreign,
        tinged=hues.tinged,
        off_hue=hues.off,
        x=float(x / SIDE + p.centre[index, 0] * extent),
        y=float(y / SIDE + p.centre[index, 1] * extent),
        extent=extent,
        tilt=float(p.tilt[index] + np.degrees(turn)),
        stretch=float(extents[0] / extents[1]),
    )


def _tint(patch: Array, body: Array, allowed: NDArray[np.intp]) -> tuple[Array, int]:
    """The body colour that explains a patch best, and which colour's name it bears; far from the name costs."""
    tint = (body * patch).sum((0, 1)) / (body * body).sum()
    hues = RGB[allowed] * SHADES[:, None, None]
    off = np.linalg.norm(hues - tint, axis=2)
    shade, which = np.unravel_index(off.argmin(), off.shape)
    nearest = hues[shade, which]
    return nearest + (tint - nearest) * min(1.0, FREEDOM / max(float(off.min()), 1e-6)), int(allowed[which])


def _bent(layers: Array, model: Array, patch: Array, cell_x: float, cell_y: float) -> Array:
    """The layers moved smoothly towards the patch, by `BEND` pixels at most (optical flow of Lucas and Kanade)."""
    for _ in range(BENDS):
        down, across = np.gradient(model, axis=(0, 1))
        away = patch - model
        products = [across * across, across * down, down * down, across * away, down * away]
        xx, xy, yy, xd, yd = ndimage.gaussian_filter(np.stack([q.sum(2) for q in products]), (0, BEND_OVER, BEND_OVER))
        xx, yy = xx + STIFFNESS, yy + STIFFNESS
        scale = 1 / (xx * yy - xy * xy)
        right, lower = (yy * xd - xy * yd) * scale * cell_x, (xx * yd - xy * xd) * scale * cell_y
        far = np.maximum(np.hypot(right, lower) / BEND, 1)
        columns, rows = _X + GRID / 2 - 0.5 + right / far / cell_x, _Y + GRID / 2 - 0.5 + lower / far / cell_y
        layers = interpolate(layers, columns, rows)
    return layers


class _Hues(NamedTuple):
    """What a `Fit` says of the colours of a body."""

    foreign: float
    tinged: float
    off: float


def _hues(tint: Array, name: int, away: Array, excess: Array, body: Array) -> _Hues:
    deep = ndimage.minimum_filter(body, 3) > 0.5
    off = np.where(deep[..., None], away, excess)  # at the rim, what a cell of displacement would not explain
    return _Hues(_foreign_fill(tint, name, off, body), _tinged(tint, excess, body), _off_hue(tint, off, body))


def _hues_of_line(tint: Array, name: int, patch: Array, behind: Array, layers: Array) -> _Hues:
    foreign = _foreign_line(tint, name, patch, behind, layers[..., 3])
    return _Hues(foreign, 0.0, _off_hue_line(tint, patch, behind, layers))


def _foreign_fill(tint: Array, name: int, off: Array, body: Array) -> float:
    """The share of a filled body whose pixels resemble another colour clearly more than the object's own."""
    inside = body > 0.5
    off = off[inside] / body[inside][:, None]
    hues = np.delete(RGB, name, 0)
    hues = np.concatenate([hues, 0.76 * hues])  # as they are, and as they are shaded
    others = np.linalg.norm(tint + off[:, None] - hues, axis=2).min(1)
    return float(body[inside][others + 10 < np.linalg.norm(off, axis=1)].sum() / max(body[inside].sum(), 1e-6))


def _tinged(tint: Array, excess: Array, body: Array) -> float:
    """How far a filled body strays from its one hue, root mean square: an orange patch on a red wing."""
    inside = (ndimage.minimum_filter(body, 3) > 0.5).astype(np.float32)
    if inside.sum() < LEAST_INSIDE:
        return 0.0
    off = _smooth(excess, inside)
    hue = tint / np.linalg.norm(tint)
    away = (off - (off @ hue)[..., None] * hue)[inside > 0]
    return float(np.sqrt((away**2).sum(1).mean()))


def _smooth(colours: Array, weight: Array) -> Array:
    """Colours averaged over so many cells as a patch of another hue is wide, each by its weight."""
    spread = ndimage.gaussian_filter(weight, TINGE)[..., None]
    return ndimage.gaussian_filter(colours * weight[..., None], (TINGE, TINGE, 0)) / np.maximum(spread, 1e-3)


def _off_hue(tint: Array, off: Array, body: Array) -> float:
    """How far a filled body is of another hue where it is most: an orange patch on a red ring.

    Light, shade and highlights move a colour within the plane of itself and white; what counts is across that plane.
    """
    inside = np.where(body > MOSTLY, body, 0.0)
    if (inside > 0).sum() < LEAST_INSIDE:
        return 0.0
    smooth = _smooth(off, inside)
    if np.ptp(tint) < GRAYISH:
        away = np.linalg.norm(smooth - smooth.mean(2, keepdims=True), axis=2)
    else:
        across = np.cross(tint, np.ones(3))
        away = np.abs(smooth @ (across / np.linalg.norm(across)))
    return float(np.quantile(away[inside > 0], MOST))


def _off_hue_line(tint: Array, patch: Array, behind: Array, layers: Array) -> float:
    """The same for a line drawing, its face left aside: how far a stretch of line is from the ray to its colour."""
    body = layers[..., 3]
    accents = np.linalg.norm(layers[..., :3] + body[..., None] * behind, axis=2) > FAINT_ACCENT
    line = np.where(ndimage.binary_dilation(accents, iterations=2), 0.0, body / max(float(body.max()), 1e-6))
    if not (line > 0.3).any():
        return 0.0
    ray = tint - behind
    smooth = ndimage.gaussian_filter(patch * line[..., None], (TINGE, TINGE, 0))
    share = smooth @ ray / (ray @ ray)
    clear = share > max(0.35 * float(np.quantile(share[line > 0.3], 0.8)), 1e-3)
    off = np.linalg.norm(smooth - share[..., None] * ray, axis=2)[clear] / share[clear]
    return float(np.quantile(off, MOST_LINE)) if clear.any() else 0.0


def _foreign_line(tint: Array, name: int, patch: Array, behind: Array, body: Array) -> float:
    """The same for a line drawing, whose pixels show their colour only in part: wherever the line really runs."""
    strength = np.linalg.norm(patch, axis=2)
    near = ndimage.maximum_filter(body, 3) > 0.3
    line = near & (strength > 0.5 * np.quantile(strength[near], 0.9)) if near.any() else near
    if not line.any():
        return 0.0
    seen = patch[line]
    rays = np.concatenate([tint[None], np.delete(RGB, name, 0)]) - behind
    share = np.clip(seen @ rays.T / (rays**2).sum(1), 0, 1.1)
    off = np.linalg.norm(seen[:, None] - share[..., None] * rays, axis=2)
    return float((off[:, 1:].min(1) + 10 < off[:, 0]).mean())


def _beyond(a: Array, b: Array) -> Array:
    """How far each value of `a` lies outside of what `b` shows within one cell, with its sign."""
    low = ndimage.minimum_filter(b, (3, 3, 1))
    high = ndimage.maximum_filter(b, (3, 3, 1))
    return np.maximum(a - high, 0) - np.maximum(low - a, 0)
