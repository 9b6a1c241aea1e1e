"""Phased distillation: a student goes in one step where its teacher goes in several, from stop to stop of a short grid.

The way from noise to data is cut into phases, as in phased consistency models (arXiv 2405.18407): a student need not
see the end of the way from its beginning, and so never guesses what goes where and how it looks at once. Within a phase
it is told where the teacher arrives, as in progressive distillation (arXiv 2202.00512), here by all of its steps. A
phase begins at noised data, or where the student's own steps lead (arXiv 2405.05224): from what it will meet when it
draws, the teacher shows it the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from zoo.diffusion import draws
from zoo.diffusion.consistency import distance
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import guided
from zoo.diffusion.samplers import find_sampler, transfer
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid, make_grid
from zoo.interface import Conditioning, Sampling


def phases(schedule: Schedule, sampling: Sampling, substeps: int) -> list[Grid]:
    """The teacher's way between each two stops of the student's `sampling`: `substeps` steps, evenly in time.

    Raises:
        ValueError: two stops are so near that a step of the teacher has no length.
    """
    stops = make_grid(schedule, sampling.steps, sampling.spacing).t.tolist()
    walks = []
    for start, stop in pairwise(stops):
        times = torch.linspace(start, stop, substeps + 1, dtype=torch.float64).round()
        if substeps < 1 or bool((times.diff() == 0).any()):
            raise ValueError(f"the phase from time {start:.0f} to {stop:.0f} has no room for {substeps} steps")
        walks.append(Grid.at(schedule, times))
    return walks


def noised(x0: Tensor, walk: Grid, generator: torch.Generator | None = None) -> Tensor:
    """x0 [batch, ...] as it is where the phase begins.

    generator: fixes the noise; the same on every device if it is a CPU generator. Of a batch that is
        `zoo.diffusion.draws.shared`, it is that of these samples.
    """
    noise = draws.randn(x0.shape, generator, x0.device).to(x0)
    return float(walk.alpha[0]) * x0 + float(walk.sigma[0]) * noise


@torch.no_grad()
def led(student: Denoiser, noise: Tensor, conditioning: Conditioning, walks: Sequence[Grid]) -> Tensor:
    """Where the student's own steps lead from pure noise [batch, ...], one through each phase of `walks`."""
    x = noise
    for walk in walks:
        begin, end = walk.points[0], walk.points[-1]
        x = transfer(x, student.predict(x, begin.t, conditioning).x0.to(x), begin, end)
    return x


def loss(
    student: Denoiser,
    teacher: Denoiser,
    x: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    walk: Grid,
    sampling: Sampling,
    *,
    huber: float | None = 0.001,
) -> Tensor:
    """Mean distance of what the student and the teacher say of x [batch, ...], the state where a phase begins.

    null: what the teacher is guided away from (one sample).
    walk: the teacher's way through the phase. What it says is the clean estimate that leads to its end in one step.
    sampling: the teacher's sampler, which must be deterministic, its guidance, and whatever tames that.
    huber: the width in which the pseudo-Huber distance is quadratic (arXiv 2310.14189); None is the squared error.
    """
    with torch.no_grad():
        predict = guided(teacher, conditioning, null, sampling)
        *_, last = find_sampler(sampling.sampler)(predict, x, walk, _no_noise)
        begin, end = walk.points[0], walk.points[-1]
        ratio = end.sigma / begin.sigma
        aim = (last.x - ratio * x) / (end.alpha - begin.alpha * ratio)  # what `transfer` takes there
    return distance((student.predict(x, begin.t, conditioning).x0 - aim).float(), huber)


def _no_noise(step: int) -> Tensor:
    raise ValueError("the teacher's sampler draws noise, so where it arrives is no answer: take ddim, dpmpp_2m ...")
