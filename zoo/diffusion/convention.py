"""Where published schedulers stop on a noise schedule: their conventions as grids of times.

Four of them cover the schedulers that `zoo.diffusion.published` reads:

    strided   DDIM, PNDM: whole times, and every step goes T // steps down, wherever the next one begins
    chain     DDPM, unCLIP: whole times, every step goes to the next
    sigma     Euler, Heun, LMS: times that need not be whole; state and starting noise are counted in sigma / alpha
    solver    DPM-Solver++, UniPC: times spread over one step more, the last of which is left out
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.diffusion.denoiser import Times
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid, make_grid
from zoo.interface import Sampling

SPACING = "published"  # as `Sampling.spacing`: where the checkpoint's own scheduler would stop

NOISY = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm")  # samplers that add noise whatever eta is

Kind = Literal["strided", "chain", "sigma", "solver"]
Spread = Literal["leading", "linspace", "trailing"]
Levels = Literal["spaced", "karras", "exponential", "beta"]


@dataclass(frozen=True)
class Convention:
    """Where a published scheduler stops on a noise schedule; plain data, so that a model's config can hold it.

    levels: "spaced" takes the noise levels at the times; the others spread the levels by a rule of their own, between
        the first and last spaced ones ("sigma") or over the whole schedule ("solver").
    to_data: the last step goes to clean data, else to the schedule's least noise.
    least_lambda: noisier times are left out.
    restart: the published PLMS, begun midway, takes its second call for a repeated one, which leaves out a step.
    """

    kind: Kind
    spread: Spread = "leading"
    offset: int = 0
    levels: Levels = "spaced"
    to_data: bool = True
    least_lambda: float | None = None
    restart: bool = False

    @property
    def times(self) -> Times:
        """How the network is told of times between the whole ones."""
        if self.kind != "solver" or self.levels == "spaced":
            return "exact"
        return "rounded" if self.levels == "karras" else "floored"

    def grid(self, schedule: Schedule, steps: int) -> Grid:
        """The points that the published scheduler visits in `steps` steps.

        Raises:
            ValueError: fewer than 1 step, or more than the schedule has room for.
        """
        if steps < 1:
            raise ValueError(f"sampling takes at least 1 step, got {steps}")
        times = self._times(schedule, steps)
        if len(times) != steps or times[0] > schedule.steps - 1 or times[-1] < 0 or (np.diff(times) >= 0).any():
            raise ValueError(
                f"the published spacing ({self.spread}, offset {self.offset}) has no room for {steps} steps among the "
                f"{schedule.steps} times it was trained at: take fewer, or another spacing"
            )
        end = -1.0 if self.to_data else 0.0
        if self.levels != "spaced":
            return self._finish(schedule, _between(schedule, self._levels(schedule, times), end))
        return self._finish(schedule, Grid.at(schedule, [*times.tolist(), end]))

    def _times(self, schedule: Schedule, steps: int) -> NDArray[np.float64]:
        """The falling times at which steps begin."""
        last = schedule.steps
        if self.least_lambda is not None:
            last = int((schedule.lambdas >= self.least_lambda).sum())
        inner = self.kind == "solver"  # one place more, the cleanest of which is left out
        if self.spread == "trailing":
            times = np.round(last - np.arange(steps) * (schedule.steps / steps)) - 1
            return times[times >= 0]
        places = steps + inner
        if self.spread == "leading":
            times = np.arange(places, dtype=np.float64) * (last // places) + self.offset
        else:
            times = np.linspace(0, last - 1, places)
            times = times if self.kind == "sigma" else np.round(times)
        return times[inner:][::-1]

    def _levels(self, schedule: Schedule, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Falling sigma / alpha of the points where steps begin."""
        span = times[[0, -1]] if self.kind == "sigma" else np.array([schedule.steps - 1.0, 0.0])
        most, least = np.exp(-schedule.lambda_at(torch.from_numpy(span.copy())).numpy())
        share = np.linspace(0, 1, len(times))
        if self.levels == "karras":  # arXiv 2206.00364
            return np.asarray((most ** (1 / 7) + share * (least ** (1 / 7) - most ** (1 / 7))) ** 7)
        if self.levels == "exponential":
            return np.exp(np.linspace(math.log(most), math.log(least), len(times)))
        from scipy import stats

        return np.asarray(least + stats.beta.ppf(1 - share, 0.6, 0.6) * (most - least))  # arXiv 2407.12173

    def _finish(self, schedule: Schedule, grid: Grid) -> Grid:
        grid = PublishedGrid(grid.t, grid.alpha, grid.sigma, grid.lambda_, restart=self.restart)
        if self.kind == "strided":
            down = grid.t[:-1] - schedule.steps // grid.steps
            down = torch.where(down < 0, grid.t[-1], down)
            return replace(grid, landing=Grid(down, *schedule.at(down), schedule.lambda_at(down)).points)
        if self.kind == "sigma" and self.spread != "leading":  # unit noise stands for the greatest sigma, not alpha's
            return replace(grid, scale=float(grid.sigma[0]))
        return grid


@dataclass(frozen=True)
class PublishedGrid(Grid):
    """A grid that is begun midway as published schedulers are."""

    restart: bool = False

    def truncate(self, strength: float) -> Grid:
        """The last steps, counted as diffusers does: rounded down.

        Raises:
            ValueError: strength outside (0, 1].
        """
        super().truncate(strength)  # which checks
        kept = min(max(1, int(self.steps * strength)), self.steps)
        first = self.steps - kept
        begins = list(range(first, self.steps))
        if self.restart and first >= 2:
            begins = [first - 1, *range(first + 1, self.steps)]
        lands = self.landing or self.points[1:]
        chosen = torch.tensor([*begins, self.steps])
        levels = (level[chosen] for level in (self.t, self.alpha, self.sigma, self.lambda_))
        return Grid(*levels, landing=tuple(lands[i] for i in begins))


def grid_of(convention: Convention | None, schedule: Schedule, sampling: Sampling) -> Grid:
    """The times that a part visits: those of the spacing "published" where it has a convention, or of `make_grid`.

    Schedulers of the strided kind may end at the least noise instead of clean data. Samplers that they are not, and
    which add noise in every step, would leave that of the last one in the picture, and go to clean data.
    """
    if convention is None or sampling.spacing != SPACING:
        return make_grid(schedule, sampling.steps, sampling.spacing)
    if convention.kind == "strided" and sampling.sampler in NOISY:
        convention = replace(convention, to_data=True)
    return convention.grid(schedule, sampling.steps)


def _between(schedule: Schedule, levels: NDArray[np.float64], end: float) -> Grid:
    """The grid of given sigma / alpha, followed by the end."""
    lambda_ = torch.cat([torch.from_numpy(-np.log(levels)), schedule.lambda_at(end)[None]])
    sigma, alpha = torch.sigmoid(-2 * lambda_).sqrt(), torch.sigmoid(2 * lambda_).sqrt()
    return Grid(schedule.time_at(lambda_), alpha, sigma, lambda_)
