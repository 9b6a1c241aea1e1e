"""Samplers: pure generators that walk a grid from noise to data and yield every step.

States x and clean estimates x0 are [batch, ...] of one shape, whatever the data are: latents, pixels, embeddings.
`predict(x, t)` gives x0, `noise(i)` the random numbers of step i, standard normal. A step goes from point a to the less
noisy b. Formulas are in alpha, sigma, lambda, arranged so that nothing is infinite at alpha_a = 0 or sigma_b = 0.
To add a sampler, write one function here and name it in `SAMPLERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo.diffusion.guidance import Predict
from zoo.diffusion.spacing import Grid, Point
from zoo.interface import Step

Noise = Callable[[int], Tensor]
Sampler = Callable[[Predict, Tensor, Grid, Noise], Iterator[Step]]


def epsilon(x: Tensor, x0: Tensor, a: Point) -> Tensor:
    """The noise in x that the clean estimate x0 leaves over."""
    return (x - a.alpha * x0) / a.sigma


def transfer(x: Tensor, x0: Tensor, a: Point, b: Point) -> Tensor:
    """From a to b along a straight line in x / alpha: the probability-flow equation solved exactly for constant x0."""
    ratio = b.sigma / a.sigma
    return ratio * x + (b.alpha - a.alpha * ratio) * x0


def posterior(x: Tensor, x0: Tensor, a: Point, b: Point) -> tuple[Tensor, float]:
    """Mean and standard deviation of the state at b, given the state x at a and the clean x0."""
    shrink = a.alpha * b.sigma / (a.sigma * b.alpha)  # e^(lambda_a - lambda_b)
    mean = shrink * b.sigma / a.sigma * x + (1 - shrink**2) * b.alpha * x0
    return mean, b.sigma * math.sqrt(1 - shrink**2)


def leaps(a: Point, b: Point) -> bool:
    """Whether a step leads out of all but pure noise to where there is something to see, as the cosine schedule's first
    does: the slopes at the ends of so long a step have no average that means anything."""
    return a.alpha < 0.02 and b.lambda_ - a.lambda_ >= 4


def ddpm(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Ancestral sampling of DDPM (arXiv 2006.11239), whose variance may be learned (arXiv 2102.09672)."""
    for i, a, b in grid.pairs():
        now = predict(x, a.t, b.t)
        x, deviation = posterior(x, now.x0, a, b)
        if a.sigma > b.sigma > 0:  # no noise on the step to clean data, nor on an empty one
            x = x + (deviation if now.log_variance is None else torch.exp(now.log_variance / 2)) * noise(i)
        yield Step(i, a.t, x, now.x0)


def ddim(predict: Predict, x: Tensor, grid: Grid, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """DDIM (arXiv 2010.02502): eta 0 is deterministic, eta 1 has the randomness of DDPM."""
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        fresh = eta * b.sigma / a.sigma * math.sqrt(1 - (a.alpha / b.alpha) ** 2)
        x = b.alpha * x0 + math.sqrt(b.sigma**2 - fresh**2) * epsilon(x, x0, a)
        if fresh > 0:
            x = x + fresh * noise(i)
        yield Step(i, a.t, x, x0)


def euler(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Euler's method on x / alpha against sigma / alpha (arXiv 2206.00364), which is DDIM at eta 0."""
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        x = transfer(x, x0, a, b)
        yield Step(i, a.t, x, x0)


def euler_ancestral(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Euler with ancestral noise (k-diffusion, after arXiv 2011.13456): below b by a step, then noise up to b."""
    # In sigma / alpha the step goes down to ratio_b^2 / ratio_a; put in alpha and sigma that is DDPM's posterior.
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        x, deviation = posterior(x, x0, a, b)
        if deviation > 0:
            x = x + deviation * noise(i)
        yield Step(i, a.t, x, x0)


def heun(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Heun's second-order method on x / alpha, two predictions a step (arXiv 2206.00364, algorithm 1 without churn)."""
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        end = transfer(x, x0, a, b)
        if b.sigma > 0 and not leaps(a, b):  # at a vanishing or infinite noise level there is no second slope
            slope = (epsilon(x, x0, a) + epsilon(end, predict(end, b.t).x0, b)) / 2
            end = b.alpha / a.alpha * x + (b.sigma - a.sigma * b.alpha / a.alpha) * slope
        x = end
        yield Step(i, a.t, x, x0)


def ahead(x0: Tensor, h: float, before: tuple[Tensor, float] | None) -> Tensor:
    """x0 in the middle of a step of length h in lambda, on the line through this x0 and that of the step before."""
    if before is None or math.isinf(h) or before[1] <= 0:  # first order at the start and to clean data
        return x0
    share = h / (2 * before[1])
    return (1 + share) * x0 - share * before[0]


def dpmpp_2m(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) (arXiv 2211.01095): second order with one prediction a step."""
    before = None
    for i, a, b in grid.pairs():
        x0, h = predict(x, a.t).x0, b.lambda_ - a.lambda_
        x = transfer(x, ahead(x0, h, before), a, b)
        before = x0, h
        yield Step(i, a.t, x, x0)


def dpmpp_2m_sde(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), midpoint form (arXiv 2211.01095): DDPM's step with x0 extrapolated as in 2M."""
    before = None
    for i, a, b in grid.pairs():
        x0, h = predict(x, a.t).x0, b.lambda_ - a.lambda_
        x, deviation = posterior(x, ahead(x0, h, before), a, b)
        if deviation > 0:
            x = x + deviation * noise(i)
        before = x0, h
        yield Step(i, a.t, x, x0)


Variant = Literal["bh1", "bh2"]


def unipc(
    predict: Predict, x: Tensor, grid: Grid, noise: Noise, order: int = 2, variant: Variant = "bh2"
) -> Iterator[Step]:
    """UniPC (arXiv 2302.04867): each prediction first corrects the step that led to it, then makes the next."""
    past: list[tuple[float, Tensor]] = []  # (lambda, x0) of the last points, newest first
    last: tuple[Tensor, Point, int] | None = None  # state and point the last step left, and its order
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        if last is not None and past:
            start, point, used = last
            x = _unipc_step(start, point, a, past[:used], variant, arrived=x0)
        if not math.isinf(a.lambda_):  # pure noise has no finite lambda to interpolate from
            past = [(a.lambda_, x0), *past[: order - 1]]
        # As published, the order grows with the known past and falls again at the end.
        used = min(order, max(len(past), 1), grid.steps - i)
        last = x, a, used
        x = transfer(x, x0, a, b) if used == 1 else _unipc_step(x, a, b, past[:used], variant)
        yield Step(i, a.t, x, x0)


def _unipc_step(
    x: Tensor, a: Point, b: Point, past: list[tuple[float, Tensor]], variant: Variant, arrived: Tensor | None = None
) -> Tensor:
    # transfer() with the x0 at a, plus differences to the x0 before (and, for the corrector, to the one at b).
    h = b.lambda_ - a.lambda_
    newest = past[0][1]
    places = [(lambda_ - a.lambda_) / h for lambda_, _ in past[1:]]
    differences = [x0 - newest for _, x0 in past[1:]]
    if arrived is not None:
        places, differences = [*places, 1.0], [*differences, arrived - newest]
    x = transfer(x, newest, a, b)
    scale = -h if variant == "bh1" else math.expm1(-h)
    weights = _unipc_weights(places, h, scale)
    for weight, place, difference in zip(weights, places, differences, strict=True):
        x = x - b.alpha * scale * weight / place * difference
    return x


def _unipc_weights(places: list[float], h: float, scale: float) -> list[float]:
    # The weights that integrate polynomials of the given places exactly; a single one is 1/2, as published.
    if len(places) == 1:
        return [0.5]
    phi, wanted = math.expm1(-h) / -h - 1, []
    for k in range(1, len(places) + 1):
        wanted.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = torch.tensor([[place**k for place in places] for k in range(len(places))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
    return weights


# Adams-Bashforth: weights of the newest slopes, newest first
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """PLMS (arXiv 2202.09778): Adams-Bashforth on epsilon, then DDIM's transfer; the first step predicts twice."""
    slopes: list[Tensor] = []
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        slopes = [epsilon(x, x0, a), *slopes[:3]]
        slope = _adams_bashforth(slopes)
        if i == 0 and b.sigma > 0 and not leaps(a, b):
            end = transfer(x, x0, a, b)
            slope = (slopes[0] + epsilon(end, predict(end, b.t).x0, b)) / 2
        if not leaps(a, b):  # the epsilon of (almost) pure noise says nothing of x0
            x0 = (x - a.sigma * slope) / a.alpha
        x = b.alpha * x0 + b.sigma * slope
        yield Step(i, a.t, x, x0)


def plms_v(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """PLMS with the slopes taken of v = (alpha x - x0) / sigma, as published for networks that predict it."""
    slopes: list[Tensor] = []
    for i, a, b in grid.pairs():
        now = predict(x, a.t).x0
        slopes = [velocity(x, now, a), *slopes[:3]]
        slope = _adams_bashforth(slopes)
        if i == 0 and b.sigma > 0:
            ahead = transfer(x, now, a, b)
            slope = (slopes[0] + velocity(ahead, predict(ahead, b.t).x0, b)) / 2
        x0 = a.alpha * x - a.sigma * slope
        x = b.alpha * x0 + b.sigma * (a.alpha * slope + a.sigma * x)
        yield Step(i, a.t, x, x0)


def velocity(x: Tensor, x0: Tensor, at: Point) -> Tensor:
    """The v of a state and its clean estimate (arXiv 2202.00512)."""
    return (at.alpha * x - x0) / at.sigma


def _adams_bashforth(slopes: list[Tensor]) -> Tensor:
    weighted = [weight * slope for weight, slope in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True)]
    return torch.stack(weighted).sum(0)


def lms(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Linear multistep of order 4 on x / alpha against sigma / alpha (k-diffusion): the slopes of the last points are
    joined by a polynomial, which is integrated exactly."""
    past: list[tuple[float, Tensor]] = []  # (sigma / alpha, slope) of the last points, newest first
    for i, a, b in grid.pairs():
        x0 = predict(x, a.t).x0
        if a.alpha > 0:
            past = [(a.sigma / a.alpha, epsilon(x, x0, a)), *past[:3]]
            weights = _lagrange_integrals([level for level, _ in past], a.sigma / a.alpha, b.sigma / b.alpha)
            steps = (weight * slope for weight, (_, slope) in zip(weights, past, strict=True))
            x = b.alpha * sum(steps, x / a.alpha)
        else:  # an infinite noise level is no point of a polynomial
            x = transfer(x, x0, a, b)
        yield Step(i, a.t, x, x0)


def _lagrange_integrals(places: list[float], start: float, end: float) -> list[float]:
    # The integral from start to end of each polynomial that is 1 at one of the places and 0 at the others.
    integrals = []
    for k, place in enumerate(places):
        others = [other for j, other in enumerate(places) if j != k]
        whole = np.poly1d(others, r=True).integ()
        integrals.append(float(whole(end) - whole(start)) / math.prod(place - other for other in others))
    return integrals


Times = TypeVar("Times", float, Tensor)


def boundary(t: Times) -> tuple[Times, Times]:
    """c_skip and c_out of latent consistency models (arXiv 2310.04378) at times t: the shares of the state and of the
    clean estimate in what such a model says, which is the state itself at time 0."""
    time, data = 10 * t, 0.5  # the scaled time and the data's deviation that these models are distilled with
    return data**2 / (time**2 + data**2), time / (time**2 + data**2) ** 0.5


def lcm(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Latent consistency models (arXiv 2310.04378): a clean estimate with boundary scaling, noised again to b."""
    for i, a, b in grid.pairs():
        skip, out = boundary(a.t)
        x0 = skip * x + out * predict(x, a.t).x0
        x = b.alpha * x0 + b.sigma * noise(i) if b.sigma > 0 else x0
        yield Step(i, a.t, x, x0)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "unipc_1": partial(unipc, order=1),
    "unipc_bh1": partial(unipc, variant="bh1"),
    "unipc_3": partial(unipc, order=3),
    "plms": plms,
    "plms_v": plms_v,
    "lms": lms,
    "lcm": lcm,
}


def find_sampler(name: str, eta: float = 0.0) -> Sampler:
    """The sampler of this name; `eta` in [0, 1] is DDIM's.

    Raises:
        ValueError: unknown name (with the nearest), or an eta that the sampler does not have.
    """
    if name not in SAMPLERS:
        near = get_close_matches(name, SAMPLERS, 3, 0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown sampler {name!r}; {hint}there are {', '.join(SAMPLERS)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is DDIM's randomness in [0, 1], got {eta}")
    if name == "ddim":
        return partial(ddim, eta=eta)
    if eta > 0:
        raise ValueError(f"eta {eta} is a setting of the sampler 'ddim', which {name!r} does not have; leave it at 0")
    return SAMPLERS[name]
