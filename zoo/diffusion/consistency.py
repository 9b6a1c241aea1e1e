"""Consistency distillation: a student learns to say in one call where its teacher's sampling would end.

Latent consistency models (arXiv 2310.04378), after consistency models (arXiv 2303.01469). All states on one path of the
guided teacher end at the same clean data. So what the student says of a state must be what its own running average,
the target, says of the state that the teacher reaches from there by one step; at time 0 both say the state itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser, clean
from zoo.diffusion.guidance import check_interval
from zoo.diffusion.ports import join, per_sample, rows
from zoo.diffusion.samplers import boundary
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import DISTILLED, make_grid
from zoo.interface import Conditioning


def loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    x0: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    *,
    skip: int = 20,
    guidance: tuple[float, float] | None = None,
    interval: tuple[float, float] | None = None,
    huber: float | None = 0.001,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean distance of student and target for x0 [batch, ...] at random times and guidance, a scalar in float32.

    student, target: may take guidance as an input; they are then told what the teacher is guided with.
    teacher: takes none; it is guided away from `null` (one sample, or one per sample).
    guidance: the scales that it is guided with, drawn evenly; None is the student's `guidance_range`.
    skip: how far in time the teacher's step goes; more means fewer steps to learn across, and larger errors of each.
    interval: the noise levels, sigma / alpha, at which the teacher is guided (arXiv 2404.07724); None is all of them.
    huber: the width in which the pseudo-Huber distance is quadratic (arXiv 2310.14189); None is the squared error.
    generator: fixes times, noise and guidance; the same on every device if it is a CPU generator. Of a batch that is
        `zoo.diffusion.draws.shared`, they are those of these samples.

    Raises:
        ValueError: a teacher with guidance as an input, no guidance or one outside the student's range, schedules that
            differ, an interval that is none, or a skip that does not lead from one time of the grid to another.
    """
    low, high = _check(student, teacher, skip, guidance)
    if interval is not None:
        check_interval(interval)
    batch, place = x0.shape[0], x0.device
    times = make_grid(teacher.schedule, DISTILLED, "lcm").t[:-1]
    t = times[draws.randint(DISTILLED, (batch,), generator, place).cpu()]
    end = (t - skip).clamp(min=0)
    noise = draws.randn(x0.shape, generator, place).to(x0)
    scale = low + (high - low) * draws.rand((batch,), generator, place).to(place)
    told = conditioning if student.guidance_range is None else replace(conditioning, guidance=scale)

    alpha, sigma = student.levels(t, x0)
    x = alpha * x0 + sigma * noise
    with torch.no_grad():
        acted = scale if interval is None else torch.where(_within(interval, sigma / alpha), scale, 1.0)
        reached = step(teacher, x, t, end, conditioning, null, acted)
        aim = estimate(target, reached, end, told).float()
    return distance(estimate(student, x, t, told).float() - aim, huber)


def distance(difference: Tensor, huber: float | None) -> Tensor:
    """Mean pseudo-Huber distance (arXiv 2310.14189), quadratic within the width `huber`; None is the squared error."""
    if huber is None:
        return difference.square().mean()
    return ((difference.square() + huber**2).sqrt() - huber).mean()


def estimate(denoiser: Denoiser, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """The clean data at the end of the paths of the states x [batch, ...] at times t [batch], as sampler 'lcm' asks."""
    skip, out = (per_sample(share.to(x), x) for share in boundary(t))
    return skip * x + out * denoiser.predict(x, t, conditioning).x0


def step(
    teacher: Denoiser,
    x: Tensor,
    t: Tensor,
    end: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    guidance: Tensor,
) -> Tensor:
    """One step of DDIM (arXiv 2010.02502) from times t to `end` [batch], each sample with its own guidance [batch]."""
    batch, led = len(x), (guidance != 1).nonzero().squeeze(1)  # the others need no second prediction
    everyone = torch.arange(batch, device=led.device)
    text = rows(join(conditioning, null), torch.cat([everyone, batch + led]))
    samples = torch.cat([everyone, led])
    made, _ = teacher(x[samples], t[samples.to(t.device)], text)
    raw, away = made[:batch], made[batch:]
    raw[led] += (per_sample(guidance.to(x), x)[led] - 1) * (raw[led] - away)
    (alpha, sigma), (alpha_end, sigma_end) = teacher.levels(t, x), teacher.levels(end, x)
    ratio = sigma_end / sigma
    return ratio * x + (alpha_end - alpha * ratio) * clean(teacher.prediction, raw, x, alpha, sigma)


def check_skip(schedule: Schedule, skip: int) -> None:
    """A step of this length leads from one time of the distillation's grid to another.

    Raises:
        ValueError: it does not.
    """
    stride = schedule.steps // DISTILLED
    if skip < 1 or stride < 1 or skip % stride:
        raise ValueError(
            f"the teacher's step goes from one of {DISTILLED} times to another: skip={skip}, times {stride} apart"
        )


def _within(interval: tuple[float, float], level: Tensor) -> Tensor:
    """Whether each sample's noise level, broadcast over its data, lies in an interval: bool [batch]."""
    flat = level.flatten()
    return (flat > interval[0]) & (flat <= interval[1])


def _check(
    student: Denoiser, teacher: Denoiser, skip: int, guidance: tuple[float, float] | None
) -> tuple[float, float]:
    if teacher.guidance_range is not None:
        raise ValueError(f"the teacher takes guidance as an input, of {teacher.guidance_range}: it is itself distilled")
    low, high = guidance or student.guidance_range or (1.0, 0.0)
    least, most = student.guidance_range or (low, high)
    if not least <= low <= high <= most:
        raise ValueError(
            f"guidance={guidance} of the teacher, where the student takes {student.guidance_range or 'none'} as an "
            "input: give the lowest and the highest scale, within those"
        )
    if student.schedule != teacher.schedule:
        raise ValueError(f"the student's schedule is {student.schedule}, the teacher's {teacher.schedule}")
    check_skip(teacher.schedule, skip)
    return low, high
