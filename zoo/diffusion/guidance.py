"""From a denoiser and two conditionings to one prediction: guidance, and what is done to tame it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.ports import check_batch, join, per_sample
from zoo.interface import Conditioning, Prediction, Sampling


class Predict(Protocol):
    """The clean estimate for the state x [batch, ...] at time t."""

    def __call__(self, x: Tensor, t: float, s: float | None = None) -> Prediction:
        """`s` is the time the step goes to; only a learned or large variance asks for it."""
        ...


def guided(denoiser: Denoiser, conditioning: Conditioning, null: Conditioning | None, sampling: Sampling) -> Predict:
    """Classifier-free guidance away from `null` (arXiv 2207.12598), rescaled, within an interval, thresholded.

    raw = raw_null + guidance (raw_cond - raw_null): guidance 1 is off. `null` is no text or a negative prompt. Both
    branches are one call of the network with twice the batch; without guidance, or outside the interval, only the
    conditional one is called. A learned variance is that of the conditional branch.

    A denoiser with a `guidance_range` is told the guidance instead, 1 outside the interval, in one call of the network
    with the batch as it is (arXiv 2310.04378); what it leads away from was settled when it was distilled, so `null` is
    not looked at.

    Raises:
        ValueError: settings out of range, or guidance without `null`.
    """
    check_settings(sampling)
    told = denoiser.guidance_range is not None
    if denoiser.guidance_range is not None:
        _check_told(sampling, *denoiser.guidance_range)
    both = None
    if sampling.guidance != 1 and not told:
        if null is None:
            raise ValueError(f"guidance {sampling.guidance} needs a null conditioning to guide away from, got None")
        both = join(conditioning, null)
    low, high = sampling.interval or (-math.inf, math.inf)

    def predict(x: Tensor, t: float, s: float | None = None) -> Prediction:
        acts = low < math.exp(min(-denoiser.schedule.lambda_at(t).item(), 700.0)) <= high
        if both is None or not acts:
            scale = torch.full((len(x),), sampling.guidance if acts else 1.0, device=x.device) if told else None
            asked = replace(conditioning, guidance=scale)
            check_batch(asked, len(x))
            prediction = denoiser.predict(x, t, asked, s)
        else:
            check_batch(both, 2 * len(x))
            raw, values = denoiser(torch.cat([x, x]), t, both)
            given, away = raw.chunk(2)
            raw = away + sampling.guidance * (given - away)
            if sampling.rescale > 0:
                raw = rescaled(raw, given, sampling.rescale)
            prediction = denoiser.interpret(raw, None if values is None else values[: len(x)], x, t, s)
        if sampling.threshold is None:
            return prediction
        return replace(prediction, x0=thresholded(prediction.x0, sampling.threshold, sampling.cap))

    return predict


def check_settings(sampling: Sampling) -> None:
    """What any denoiser can be sampled with.

    Raises:
        ValueError: guidance, rescale, interval, threshold or cap out of range.
    """
    if not math.isfinite(sampling.guidance):
        raise ValueError(f"guidance is a finite number (1 is off), got {sampling.guidance}")
    if not 0 <= sampling.rescale <= 1:
        raise ValueError(f"guidance rescale is a share in [0, 1], got {sampling.rescale}")
    if sampling.interval is not None:
        check_interval(sampling.interval)
    if sampling.threshold is not None and not 0 < sampling.threshold <= 1:
        raise ValueError(f"threshold is a quantile in (0, 1] (1 clips) or None, got {sampling.threshold}")
    if sampling.cap is not None and not sampling.cap >= 1:
        raise ValueError(f"dynamic thresholding divides by 1 at least, so cap cannot be {sampling.cap}")


def check_interval(interval: tuple[float, float]) -> None:
    """Raises ValueError unless low < high."""
    if not interval[0] < interval[1]:
        raise ValueError(f"the guidance interval is (low, high) with low < high in sigma / alpha, got {interval}")


def rescaled(raw: Tensor, given: Tensor, share: float) -> Tensor:
    """`raw` with each image's standard deviation brought a `share` of the way to that of `given` (arXiv 2305.08891).

    Both [batch, ...]; `share` in [0, 1], 0 leaves `raw` as it is.
    """
    ratio = given.flatten(1).std(1) / raw.flatten(1).std(1).clamp(min=1e-12)
    return raw * per_sample(share * ratio + 1 - share, raw)


def thresholded(x0: Tensor, quantile: float, cap: float | None = None) -> Tensor:
    """x0 within [-1, 1]: clipped at quantile 1; below 1 each image is clipped at that quantile of its |x0|, if that is
    above 1, and divided by it (arXiv 2205.11487). It is clipped at `cap` at the latest, as published networks are."""
    if quantile == 1:
        return x0.clamp(-1, 1)
    # One image at a time: torch.quantile takes at most 16 million values.
    limits = torch.stack([image.abs().flatten().float().quantile(quantile) for image in x0])
    limit = per_sample(limits.to(x0), x0).clamp(min=1, max=cap)
    return torch.minimum(torch.maximum(x0, -limit), limit) / limit


def _check_told(sampling: Sampling, low: float, high: float) -> None:
    asked = f"this network was distilled for guidance from {low:g} to {high:g}"
    if not low <= sampling.guidance <= high:
        raise ValueError(f"{asked}, got {sampling.guidance:g}")
    if sampling.interval is not None and not low <= 1 <= high:
        raise ValueError(f"{asked}, so it cannot be turned off outside an interval; leave interval at None")
    if sampling.rescale > 0:
        raise ValueError(
            f"guidance rescale {sampling.rescale:g} compares two branches, but a network that was distilled for "
            "guidance has one; leave it at 0"
        )
