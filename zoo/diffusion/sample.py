"""The one way to sample: every family, stage and kind of data goes through `sample`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import Predict, guided
from zoo.diffusion.noise import INITIAL
from zoo.diffusion.samplers import find_sampler
from zoo.diffusion.spacing import Grid, make_grid
from zoo.interface import Conditioning, Init, NoiseSource, Observer, Prediction, Sampling


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditioning: Conditioning,
    null: Conditioning | None,
    noise: NoiseSource,
    sampling: Sampling,
    shape: Sequence[int],
    *,
    stage: str = "sample",
    init: Init | None = None,
    observe: Observer | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """Sample data of `shape` [batch, ...] in float32 on the denoiser's device.

    null: what guidance leads away from (no text, or a negative prompt); None if guidance is 1.
    noise: initial noise and that of stochastic samplers; `stage` names this stage to it and to `observe`.
    init: start from given data (arXiv 2108.01073); with a mask, keep it where the mask is 0 (inpainting).
    observe: called after every step; returning True ends the sampling with the clean estimate of that step.
    grid: the points to visit, in place of those that `sampling.spacing` names.

    Raises:
        ValueError: unknown sampler or spacing, settings out of range, or shapes that do not fit.
    """
    device, shape = denoiser.device, tuple(shape)
    sampler = find_sampler(sampling.sampler, sampling.eta)
    grid = grid or make_grid(denoiser.schedule, sampling.steps, sampling.spacing)
    predict = guided(denoiser, conditioning, null, sampling)

    def draw(step: int) -> Tensor:
        return noise.draw(stage, step, shape).to(device)

    noised = draw(INITIAL)
    x = grid.scale * noised  # 1: all schedules preserve variance, states of unit-variance data have it at every time
    data, mask = _check(init, shape, device)
    if init is not None and data is not None:
        grid = grid.truncate(init.strength)
        alpha, sigma = float(grid.alpha[0]), float(grid.sigma[0])
        noised = alpha * data + sigma * noised
        if init.strength < 1:
            x = noised
        elif mask is not None:
            x = torch.lerp(noised, x, mask)
        if mask is not None:
            predict = keeping(predict, data, mask)

    for step in sampler(predict, x, grid, draw):
        x = step.x
        if observe is not None and observe(stage, step):
            x = step.x0
            break
    return x if data is None or mask is None else torch.lerp(data, x, mask)


def keeping(predict: Predict, data: Tensor, mask: Tensor) -> Predict:
    """`predict` with the clean estimate replaced by `data` where the mask is 0.

    Blending estimates instead of states keeps a multistep sampler's history true, and the states of the known region
    go the way from its noise to `data` by themselves.
    """

    def blended(x: Tensor, t: float, s: float | None = None) -> Prediction:
        prediction = predict(x, t, s)
        return replace(prediction, x0=torch.lerp(data, prediction.x0, mask))

    return blended


def _check(init: Init | None, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The init's data and mask, float32 on the device and of the given shape."""
    if init is None:
        return None, None
    if tuple(init.data.shape) not in (shape, (1, *shape[1:])):
        raise ValueError(f"init.data has shape {list(init.data.shape)}, but the sampled data has {list(shape)}")
    data = init.data.to(device, torch.float32).expand(shape)
    if init.mask is None:
        return data, None
    try:
        mask = init.mask.to(device, torch.float32).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"init.mask has shape {list(init.mask.shape)}, which does not stretch to the data's {list(shape)}; "
            "a mask for images is [batch, 1, height, width]"
        ) from None
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError("init.mask holds values outside [0, 1]; 1 is made anew, 0 is kept")
    return data, mask
