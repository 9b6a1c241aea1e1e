"""Phased distillation: a student goes in one step where its teacher goes in several, from stop to stop of a short grid.

The way from noise to data is cut into phases, as in phased consistency models (arXiv 2405.18407): a student need not
see the end of the way from its beginning, and so never guesses what goes where and how it looks at once. Within a phase
it is told where the teacher arrives, as in progressive distillation (arXiv 2202.00512), here by all of its steps.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from zoo.diffusion import draws
from zoo.diffusion.consistency import distance
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import guided
from zoo.diffusion.samplers import find_sampler
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


def loss(
    student: Denoiser,
    teacher: Denoiser,
    x0: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    walk: Grid,
    sampling: Sampling,
    *,
    huber: float | None = 0.001,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean distance of what the student and the teacher say of x0 [batch, ...], noised to where a phase begins.

    null: what the teacher is guided away from (one sample).
    walk: the teacher's way through the phase. What it says is the clean estimate that leads to its end in one step.
    sampling: the teacher's sampler, which must be deterministic, its guidance, and whatever tames that.
    huber: the width in which the pseudo-Huber distance is quadratic (arXiv 2310.14189); None is the squared error.
    generator: fixes the noise; the same on every device if it is a CPU generator. Of a batch that is
        `zoo.diffusion.draws.shared`, it is that of these samples.
    """
    noise = draws.randn(x0.shape, generator, x0.device).to(x0)
    alpha, sigma = float(walk.alpha[0]), float(walk.sigma[0])
    x = alpha * x0 + sigma * noise
    with torch.no_grad():
        predict = guided(teacher, conditioning, null, sampling)
        *_, last = find_sampler(sampling.sampler)(predict, x, walk, _no_noise)
        ratio = float(walk.sigma[-1]) / sigma
        aim = (last.x - ratio * x) / (float(walk.alpha[-1]) - alpha * ratio)
    return distance((student.predict(x, float(walk.t[0]), conditioning).x0 - aim).float(), huber)


def _no_noise(step: int) -> Tensor:
    raise ValueError("the teacher's sampler draws noise, so where it arrives is no answer: take ddim, dpmpp_2m ...")
