"""From data back to the noise that deterministic sampling makes them of (DDIM inversion: arXiv 2010.02502, 4.3).

A step of DDIM from a to b is x_b = alpha_b x0(x_a) + sigma_b epsilon(x_a), with both estimates made at x_a. Going back,
x_a is what is looked for, so x_b stands in for it at first; each refinement then makes the estimates anew at the x_a
that was found (arXiv 2309.04907). Of the two ways to solve for x_a, by epsilon and by x0, each converges where the
other does not: epsilon near clean data, x0 near pure noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import Predict, guided
from zoo.diffusion.ports import per_sample
from zoo.diffusion.samplers import epsilon, leaps
from zoo.diffusion.spacing import Grid, Point, make_grid
from zoo.interface import Conditioning, Observer, Sampling, Step

REFINEMENTS = 3


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    conditioning: Conditioning,
    null: Conditioning | None,
    data: Tensor,
    sampling: Sampling,
    *,
    refinements: int = REFINEMENTS,
    stage: str = "inversion",
    observe: Observer | None = None,
) -> Tensor:
    """The noise [batch, ...] of which `zoo.diffusion.sample` with the same settings makes `data` [batch, ...] again.

    It takes 1 + `refinements` calls of the denoiser a step. Guidance above 1 spreads what is close together, which
    going back undoes badly: keep it at 1, or refine more. `observe` is shown every step; what it returns is ignored.

    Raises:
        ValueError: another sampler than DDIM with eta 0, a threshold, or settings out of range.
    """
    if sampling.sampler != "ddim" or sampling.eta != 0:
        raise ValueError(
            f"only the sampler 'ddim' with eta 0 can be gone back, not {sampling.sampler!r} with eta {sampling.eta:g}"
        )
    if sampling.threshold is not None:
        raise ValueError(f"threshold {sampling.threshold:g} forgets what it cuts off: leave it out to invert")
    if refinements < 0:
        raise ValueError(f"refinements are counted from 0, got {refinements}")
    grid = make_grid(denoiser.schedule, sampling.steps, sampling.spacing)
    predict = guided(denoiser, conditioning, null, sampling)
    x = data.to(denoiser.device, torch.float32)
    for step in walk(predict, x, grid, refinements):
        x = step.x
        if observe is not None:
            observe(stage, step)
    return x


def walk(predict: Predict, x: Tensor, grid: Grid, refinements: int = REFINEMENTS) -> Iterator[Step]:
    """The steps from `x` [batch, ...], at the grid's end, back to its beginning; each one's state is that at its time.

    Raises:
        ValueError: a grid of one step from pure noise, of which the data tell nothing.
    """
    for i, a, b in reversed(list(grid.pairs())):
        if b.sigma == 0 and leaps(a, b):
            raise ValueError("one step from pure noise to data cannot be gone back: take more steps")
        end, x0 = x, predict(x, a.t).x0
        x = _back(end, x0, end, a, b)
        for _ in range(refinements):
            x0 = predict(x, a.t).x0
            x = _back(end, x0, x, a, b)
        yield Step(i, a.t, x, x0)


def _back(end: Tensor, x0: Tensor, x: Tensor, a: Point, b: Point) -> Tensor:
    """The state at a from `end`, at b, by the clean estimate x0 that was made of the state x."""
    # With data of unit variance, an error of x is left sigma_a sigma_b / (alpha_a alpha_b) times as large by epsilon as
    # by x0.
    if a.alpha * b.alpha > a.sigma * b.sigma:
        noise = epsilon(x, x0, a)
        return a.alpha / b.alpha * (end - b.sigma * noise) + a.sigma * noise
    ratio = a.sigma / b.sigma
    return ratio * end + (a.alpha - b.alpha * ratio) * x0


def slerp(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    """The point a `share` ([batch] or one number) of the way from a [batch, ...] to b along the arc between them.

    Each sample is one vector. Between noises it keeps their variance, between unit vectors their length. The ends are a
    and b to the bit.

    Raises:
        ValueError: two vectors that point in opposite directions.
    """
    first, second = a.cpu().double(), b.cpu().double()  # not all devices have double precision
    share = per_sample(torch.as_tensor(share, dtype=torch.float64).cpu(), a)
    units = [each.flatten(1) / each.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (first, second)]
    # Exact for small angles too, where the arc cosine of the product is not.
    angle = per_sample(2 * torch.atan2((units[0] - units[1]).norm(dim=1), (units[0] + units[1]).norm(dim=1)), a)
    if bool((angle > torch.pi - 1e-6).any()):
        raise ValueError("two opposite vectors have no arc between them: every way is as short")
    bent = angle > 1e-6
    sine = torch.where(bent, angle.sin(), 1.0)
    of_first = torch.where(bent, ((1 - share) * angle).sin() / sine, 1 - share)
    of_second = torch.where(bent, (share * angle).sin() / sine, share)
    return (of_first * first + of_second * second).to(a)
