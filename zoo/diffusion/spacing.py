"""Where on a schedule a sampler stops: the grid of steps + 1 points from noise to (almost) clean data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zoo.diffusion.schedule import Schedule

End = Literal["zero", "sigma_min"]
DISTILLED = 50  # times that a latent consistency model is distilled at, of which the spacing 'lcm' takes some
SPACING = re.compile(r"(\w+)(?:\+(\d+)|\*(\d+(?:\.\d+)?))?")  # a name, and an offset or a factor


class Point(NamedTuple):
    """One point of a grid, as plain numbers. alpha = 0 has lambda -inf; sigma = 0 has lambda inf and time -1."""

    t: float
    alpha: float
    sigma: float
    lambda_: float


@dataclass(frozen=True)
class Grid:
    """The points a sampler visits, noisiest first: times and levels, each [steps + 1] float64 on the CPU.

    landing: where each step ends, for conventions in which that is not where the next begins. scale: what the unit
    noise is multiplied by that sampling starts from.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lambda_: Tensor
    landing: tuple[Point, ...] | None = field(default=None, kw_only=True)
    scale: float = field(default=1.0, kw_only=True)

    @classmethod
    def at(cls, schedule: Schedule, times: Sequence[float] | Tensor) -> Grid:
        """A grid of one's own: falling times in [0, schedule.steps - 1], the end included (-1 is clean data).

        This is how any convention of another library is followed to the letter, e.g. `[*scheduler.timesteps, -1]`.

        Raises:
            ValueError: fewer than two times, times that rise, or a start at clean data.
        """
        t = torch.as_tensor(times, dtype=torch.float64, device="cpu")
        if t.dim() != 1 or len(t) < 2 or bool((t.diff() > 0).any()) or t[0] < 0:
            raise ValueError(f"a grid is at least two times that fall, beginning with a noisy one; got {t.tolist()}")
        return cls(t, *schedule.at(t), schedule.lambda_at(t))

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    @property
    def points(self) -> tuple[Point, ...]:
        """All points as plain numbers."""
        levels = (self.t, self.alpha, self.sigma, self.lambda_)
        return tuple(Point(*values) for values in zip(*(level.tolist() for level in levels), strict=True))

    def pairs(self) -> Iterator[tuple[int, Point, Point]]:
        """(index, where the step begins, where it ends) of every step."""
        points = self.points
        yield from zip(range(self.steps), points[:-1], self.landing or points[1:], strict=True)

    def truncate(self, strength: float) -> Grid:
        """The last `strength` in (0, 1] of the steps (at least one), for starting from a given x0 (arXiv 2108.01073).

        Raises:
            ValueError: strength outside (0, 1].
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength is the share of the steps to walk, in (0, 1], got {strength}")
        kept = max(1, round(self.steps * strength))
        return Grid(*(level[-kept - 1 :] for level in (self.t, self.alpha, self.sigma, self.lambda_)))


def _leading(schedule: Schedule, steps: int) -> list[float]:
    """Multiples of a whole stride, from 0 up; as published Stable Diffusion 1, which adds an offset of 1."""
    stride = schedule.steps // steps
    return [float(i * stride) for i in reversed(range(steps))]


def _linspace(schedule: Schedule, steps: int) -> list[float]:
    """Evenly from the last time to the first, both included, rounded; one step begins at the last."""
    return torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().tolist()


def _trailing(schedule: Schedule, steps: int) -> list[float]:
    """Evenly down from the last time, the remainder left at the clean end (arXiv 2305.08891)."""
    return [float(round(schedule.steps * (1 - i / steps)) - 1) for i in range(steps)]


def _lcm(schedule: Schedule, steps: int) -> list[float]:
    """Taken from the times a latent consistency model was distilled at (arXiv 2310.04378)."""
    if schedule.steps < DISTILLED:
        raise ValueError(f"spacing 'lcm' needs a schedule of at least {DISTILLED} times, this one has {schedule.steps}")
    stride = schedule.steps // DISTILLED
    return [float((DISTILLED - i * DISTILLED // steps) * stride - 1) for i in range(steps)]


def _karras(schedule: Schedule, steps: int) -> list[float]:
    """Evenly in (sigma / alpha)^(1/7) over the schedule's whole range (arXiv 2206.00364)."""
    # The ends are put in as they are, so that rounding does not move them.
    most, least = schedule.lambdas[-1].item(), schedule.lambdas[0].item()
    roots = torch.linspace(math.exp(-most / 7), math.exp(-least / 7), steps, dtype=torch.float64)[1:-1]
    return [most, *(-7 * roots.log()).tolist(), least][:steps]


def _uniform_lambda(schedule: Schedule, steps: int) -> list[float]:
    """Evenly in lambda over the schedule's whole range (arXiv 2206.00927)."""
    return torch.linspace(schedule.lambdas[-1].item(), schedule.lambdas[0].item(), steps, dtype=torch.float64).tolist()


Spacing = Callable[[Schedule, int], list[float]]
# name -> the points of `steps` steps without their end: whole times, or lambdas with times between allowed
DISCRETE: dict[str, Spacing] = {"leading": _leading, "linspace": _linspace, "trailing": _trailing, "lcm": _lcm}
CONTINUOUS: dict[str, Spacing] = {"karras": _karras, "uniform_lambda": _uniform_lambda}


def make_grid(schedule: Schedule, steps: int, spacing: str = "trailing", end: End = "zero") -> Grid:
    """A grid of `steps` steps.

    spacing: leading, linspace, trailing or lcm (whole times), karras or uniform_lambda (times between allowed). The
        whole times may be followed by an offset added to each, "leading+1", or by a factor on each noise level,
        sigma / alpha, but the first, rounded to whole times: "trailing*2" stops more where it is still noisy.
    end: "zero" goes to clean data, "sigma_min" stops at the schedule's least noise (time 0). A spacing that reaches
        time 0 by itself then gets one point more; leading without an offset ends with an empty step, as published.

    Raises:
        ValueError: unknown spacing or end, steps < 1, more whole times than the schedule has, or a continuous spacing
            of a schedule that begins with pure noise (infinite sigma / alpha).
    """
    known, form = DISCRETE | CONTINUOUS, SPACING.fullmatch(spacing)
    name, offset, factor = form.groups() if form else (spacing, None, None)
    if name not in known or ((offset or factor) and name not in DISCRETE) or (factor and float(factor) == 0):
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near and near[0] != name else ""
        raise ValueError(
            f"unknown spacing {spacing!r}; {hint}there are {', '.join(known)}, offsets as in 'leading+1' and factors "
            "as in 'trailing*2'"
        )
    if end not in get_args(End):
        raise ValueError(f"a grid ends at one of {', '.join(get_args(End))}, got {end!r}")
    if steps < 1:
        raise ValueError(f"sampling takes at least 1 step, got {steps}")
    if name in CONTINUOUS:
        if schedule.zero_snr:
            raise ValueError(f"spacing {name!r} needs a finite first noise level; use 'trailing' for zero terminal SNR")
        if end == "sigma_min":
            lambdas = CONTINUOUS[name](schedule, steps + 1)
        else:
            lambdas = [*CONTINUOUS[name](schedule, steps), math.inf]
        lambda_ = torch.tensor(lambdas, dtype=torch.float64)
        sigma, alpha = torch.sigmoid(-2 * lambda_).sqrt(), torch.sigmoid(2 * lambda_).sqrt()
        return Grid(schedule.time_at(lambda_), alpha, sigma, lambda_)
    both_ends = name == "linspace" and end == "sigma_min"
    most = DISTILLED if name == "lcm" else schedule.steps - both_ends
    if steps > most:
        raise ValueError(f"spacing {name!r} has only {most} whole times, got {steps} steps; take fewer")
    if both_ends:
        times = _linspace(schedule, steps + 1)
    else:
        times = [*DISCRETE[name](schedule, steps), 0.0 if end == "sigma_min" else -1.0]
    times = [t + int(offset or 0) for t in times[:-1]] + times[-1:]
    if times[0] > schedule.steps - 1:
        raise ValueError(f"spacing {spacing!r} with {steps} steps begins at {times[0]:.0f}, past {schedule.steps - 1}")
    if factor:
        times = [times[0], *_multiplied(schedule, times[1:-1], float(factor)), times[-1]]
        if len(set(times)) < len(times):
            raise ValueError(f"spacing {spacing!r} has fewer than {steps} whole times; take fewer, or a milder factor")
    return Grid.at(schedule, times)


def _multiplied(schedule: Schedule, times: Sequence[float], factor: float) -> list[float]:
    """The whole times at which the noise levels of `times` are `factor` times as high (arXiv 2301.11093)."""
    return schedule.time_at(schedule.lambda_at(torch.tensor(times)) - math.log(factor)).round().tolist()
