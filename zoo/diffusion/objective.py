"""The training objective: one loss for every denoiser, whatever it predicts and whatever its data are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser, Target, clean, target
from zoo.diffusion.ports import choose, join, per_sample
from zoo.interface import Conditioning

Raw: TypeAlias = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Teacher:
    """Whose raw output is learned in place of the truth: the network, without gradient, and what it is told.

    raw: x_t [batch, ...], times [batch] and conditioning to the raw output [batch, ...] of a network that predicts what
        the learning one does.
    null: what its conditioning is replaced by where the other's is.
    guidance: the scale of the guided predictions that are compared (arXiv 2207.12598), in place of those of the two
        branches; then nothing is dropped. An error that both branches share counts as before, what they differ by
        counts `guidance` times, as it does when pictures are drawn. 1 compares the branches.
    """

    raw: Raw
    conditioning: Conditioning
    null: Conditioning | None = None
    guidance: float = 1.0


def loss(
    denoiser: Denoiser,
    x0: Tensor,
    conditioning: Conditioning,
    *,
    null: Conditioning | None = None,
    dropout: float = 0.1,
    gamma: float | None = 5.0,
    floor: float = 0.0,
    vlb_weight: float = 0.001,
    teacher: Teacher | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean weighted squared error of the network's raw output for x0 [batch, ...] at random times, a scalar in float32.

    null: what replaces the conditioning of a share `dropout` of the samples (one sample, or one per sample; ports it
        leaves empty are never dropped); None drops nothing.
    gamma: min-SNR weighting (arXiv 2303.09556); None weighs every time alike.
    floor: least weight on x0 beside it, "truncated SNR" (arXiv 2202.00512) with 1: min-SNR alone hardly trains the
        noisiest times, in which a caption decides what goes where.
    vlb_weight: weight of the variational bound that trains a learned variance (arXiv 2102.09672); unused without one.
    teacher: its raw output is learned in place of the noise, x0 or v that made x_t.
    generator: fixes times, noise and dropout; the same on every device if it is a CPU generator. Of a batch that is
        `zoo.diffusion.draws.shared`, they are those of these samples.

    Raises:
        ValueError: dropout outside [0, 1], gamma not above 0, a floor that is negative, above gamma, without
            one or of epsilon, or guidance of a teacher without `null` for both.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a share in [0, 1], got {dropout}")
    if gamma is not None and not gamma > 0:
        raise ValueError(f"gamma of the min-SNR weighting is above 0 (or None for uniform weights), got {gamma}")
    if floor < 0 or floor > (gamma or 0):
        raise ValueError(f"floor of the weighting is in [0, gamma], and needs a gamma; got {floor}, gamma {gamma}")
    if floor and denoiser.prediction == "epsilon":
        raise ValueError(
            f"floor {floor:g} weights the clean estimate, of which the epsilon of the noisiest times says nothing: "
            "leave it at 0, or let the network predict v or x0"
        )
    guided = teacher if teacher is not None and teacher.guidance != 1 else None
    if guided is not None and (null is None or guided.null is None):
        raise ValueError("guided predictions are compared: give both networks a null conditioning")
    batch, schedule = x0.shape[0], denoiser.schedule
    # Times are drawn and their weights found on the CPU in float64: a few numbers, and no wait for an accelerator.
    t = draws.randint(schedule.steps, (batch,), generator, x0.device).cpu()
    noise = draws.randn(x0.shape, generator, x0.device).to(x0)
    if null is not None and dropout > 0 and guided is None:
        drop = draws.rand((batch,), generator, x0.device) < dropout
        conditioning = choose(drop, null, conditioning)
        if teacher is not None and teacher.null is not None:
            teacher = replace(teacher, conditioning=choose(drop, teacher.null, teacher.conditioning))

    alpha, sigma = denoiser.levels(t, x0)
    x = alpha * x0 + sigma * noise
    wanted = target(denoiser.prediction, x0, noise, alpha, sigma)
    if guided is not None:
        values = None
        raw = _guided(lambda *said: denoiser(*said)[0], x, t, conditioning, null, guided.guidance)
        with torch.no_grad():
            wanted = _guided(guided.raw, x, t, guided.conditioning, guided.null, guided.guidance)
    else:
        raw, values = denoiser(x, t, conditioning)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher.raw(x, t, teacher.conditioning)
    errors = (raw.float() - wanted.float()).square().flatten(1).mean(1)
    if gamma is not None:
        errors = errors * weights(denoiser, t, gamma, floor).to(errors)
    if values is not None:
        estimate = clean(denoiser.prediction, raw.detach(), x, alpha, sigma)
        log_variance = denoiser.log_variance(values, x, t)
        assert log_variance is not None  # a denoiser that gives values has learned them
        bound = variational_bound(denoiser, x0, x, estimate, log_variance, t)
        errors = errors + vlb_weight * schedule.steps * bound.to(errors)
    mean: Tensor = errors.mean()
    return mean


def _guided(raw: Raw, x: Tensor, t: Tensor, said: Conditioning, null: Conditioning | None, guidance: float) -> Tensor:
    """The guided prediction, both of its branches in one call."""
    assert null is not None
    towards, away = raw(torch.cat([x, x]), torch.cat([t, t]), join(said, null)).chunk(2)
    return away + guidance * (towards - away)


def weights(denoiser: Denoiser, t: Tensor, gamma: float, floor: float = 0.0) -> Tensor:
    """Min-SNR weights of the squared error of the raw output at integer times t [batch], float64 (arXiv 2303.09556).

    max(floor, min(SNR, gamma)) is the weight on x0; an error in epsilon or v is one in x0 times SNR or SNR + 1. At pure
    noise the weight is 1, so that a zero-terminal-SNR network is trained there at all.
    """
    snr = torch.exp(2 * denoiser.schedule.lambda_at(t))
    on_x0 = snr.clamp(floor, gamma)
    per: dict[Target, Tensor | float] = {"x0": 1.0, "epsilon": snr, "v": snr + 1}
    return torch.where(snr > 0, on_x0 / per[denoiser.prediction], 1.0)


def variational_bound(
    denoiser: Denoiser, x0: Tensor, x: Tensor, estimate: Tensor, log_variance: Tensor, t: Tensor
) -> Tensor:
    """Terms of the variational bound for the step t -> t - 1, in bits per element, [batch] (arXiv 2102.09672, L_vlb).

    The divergence between the true posterior of x_{t-1} and the reverse step; for t = 0, where the posterior is a
    point, the negative log density of x0 itself. Give `estimate` detached: the bound shall train the variance alone.
    """
    (alpha, sigma), (alpha_s, sigma_s) = denoiser.schedule.at(t), denoiser.schedule.at(t.double() - 1)
    # Both means share the part in x, so they differ by the weight on x0 times the error of the estimate.
    weight = per_sample((alpha_s * (1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2)).to(x), x)
    true_log = per_sample(denoiser.log_variance_bounds(t)[0].to(x), x)
    distance = (weight * (x0 - estimate)).square() * torch.exp(-log_variance)
    divergence = 0.5 * (log_variance - true_log + torch.exp(true_log - log_variance) + distance - 1)
    density = 0.5 * (log_variance + math.log(2 * math.pi) + distance)
    first = per_sample((t == 0).to(x.device), x)
    return torch.where(first, density, divergence).flatten(1).mean(1) / math.log(2)
