"""A denoiser: a network, the noise schedule it was trained on, and what its output means.

The network is any module called as `network(x, t, conditioning)` with x [batch, ...] and t [batch] float32 times. Its
output has the shape of x; with a learned variance, twice as many channels (dimension 1), the second half of which is
the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zoo.diffusion.ports import cast, per_sample
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Prediction

Target = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
Times = Literal["exact", "rounded", "floored"]
ROUNDING: dict[Times, Callable[[Tensor], Tensor]] = {
    "exact": torch.clone,
    "rounded": torch.round,
    "floored": torch.floor,
}


def target(kind: Target, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of this kind should say about alpha x0 + sigma noise [batch, ...]; v is that of arXiv 2202.00512.

    x0 and noise [batch, ...]; alpha and sigma broadcastable to them, as `Denoiser.levels` gives them.
    """
    if kind == "epsilon":
        return noise
    return x0 if kind == "x0" else alpha * noise - sigma * x0


def clean(kind: Target, raw: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The x0 [batch, ...] that a raw output of this kind means for the state x, both [batch, ...].

    Noise tells nothing about x0 where alpha = 0: there the estimate from epsilon is 0, the mean of centred data.
    """
    if kind == "x0":
        return raw
    if kind == "v":
        return alpha * x - sigma * raw
    return torch.where(alpha > 0, (x - sigma * raw) / torch.where(alpha > 0, alpha, 1.0), 0.0)


class Denoiser(nn.Module):
    """`network` + `schedule` + what the network predicts + where the variance of its reverse step comes from.

    variance: "fixed_small" the posterior's, "fixed_large" beta (both arXiv 2006.11239), "learned" the network gives the
    log variance, "learned_range" it gives in [-1, 1] the place between the logarithms of the two (arXiv 2102.09672).
    guidance_range: the guidance scales of a network that was distilled to act them out by itself, told by its port
        `Conditioning.guidance` (arXiv 2310.04378); None for one that has no such port.
    times: how the network is told times that lie between the whole ones it was trained at. The levels that its output
        is read with are exact in any case.

    Raises:
        ValueError: an unknown prediction or variance, or a range that is none.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Target = "epsilon",
        variance: Variance = "fixed_small",
        guidance_range: tuple[float, float] | None = None,
        times: Times = "exact",
    ) -> None:
        super().__init__()
        named = (("prediction", prediction, Target), ("variance", variance, Variance), ("times", times, Times))
        for what, name, known in named:
            if name not in get_args(known):
                raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(get_args(known))}")
        if guidance_range is not None and not guidance_range[0] <= guidance_range[1]:
            raise ValueError(f"the guidance range is (lowest, highest), got {guidance_range}")
        self.network, self.schedule, self.prediction, self.variance = network, schedule, prediction, variance
        self.guidance_range, self.times = guidance_range, times

    @property
    def learns_variance(self) -> bool:
        return self.variance in ("learned", "learned_range")

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU if it has no parameters."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(self, x: Tensor, t: Tensor | float, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """The network's output in the type of x [batch, ...]: (raw prediction, variance values or None).

        The network runs in the type of its own weights, but its times stay float32: bfloat16 has no 999.

        Raises:
            ValueError: the output does not have the shape that the denoiser's settings say.
        """
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        times = ROUNDING[self.times](torch.as_tensor(t, dtype=torch.float32))
        times = _placed(times, x.device, torch.float32).expand(x.shape[0])
        output = self.network(x.to(dtype), times, cast(conditioning, x.device, dtype)).to(x.dtype)
        shape = list(x.shape)
        if self.learns_variance:
            shape[1] *= 2
        if list(output.shape) != shape:
            raise ValueError(
                f"the network's output has shape {list(output.shape)}, expected {shape} for input {list(x.shape)} "
                f"and variance {self.variance!r}"
            )
        if not self.learns_variance:
            return output, None
        raw, values = output.chunk(2, dim=1)
        return raw, values

    def predict(self, x: Tensor, t: Tensor | float, conditioning: Conditioning, s: float | None = None) -> Prediction:
        """The clean estimate for x [batch, ...] at times t ([batch] or one number), and how sure the step t -> s is.

        `s` is the time a sampler goes to, by default the one before t; only the log variance depends on it.
        """
        raw, values = self(x, t, conditioning)
        return self.interpret(raw, values, x, t, s)

    def interpret(
        self, raw: Tensor, values: Tensor | None, x: Tensor, t: Tensor | float, s: float | None = None
    ) -> Prediction:
        """What the output (raw, values) of `forward` means; raw, values and x are [batch, ...]."""
        alpha, sigma = self.levels(t, x)
        x0 = clean(self.prediction, raw, x, alpha, sigma)
        return Prediction(x0, raw, self.log_variance(values, x, t, s))

    def levels(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t ([batch] or one number), in the type of x and broadcastable to it."""
        alpha, sigma = (per_sample(_placed(level, x.device, x.dtype), x) for level in self.schedule.at(t))
        return alpha, sigma

    def log_variance(
        self, values: Tensor | None, x: Tensor, t: Tensor | float, s: float | None = None
    ) -> Tensor | None:
        """log variance of the reverse step t -> s, broadcastable to x; None for the posterior's own ("fixed_small")."""
        if self.variance in ("learned", "fixed_small"):
            return values
        bounds = self.log_variance_bounds(t, s)
        small, large = (per_sample(_placed(bound, x.device, x.dtype), x) for bound in bounds)
        return large if values is None else torch.lerp(small, large, (values + 1) / 2)

    def log_variance_bounds(self, t: Tensor | float, s: float | None = None) -> tuple[Tensor, Tensor]:
        """log of the posterior variance and of beta for the step t -> s (default the time before t).

        Both in the shape of t, float64 on the CPU; for one number, a scalar.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        end = t.ceil() - 1 if s is None else torch.full_like(t, s)
        large = _betas(self.schedule, t, end)
        # The posterior of a step to clean data has no variance; as published, the one step 1 -> 0 stands in.
        start, end = torch.where(end < 0, 1.0, t), end.clamp(min=0)
        small = _betas(self.schedule, start, end) * (self.schedule.at(end)[1] / self.schedule.at(start)[1]) ** 2
        return small.log(), large.log()


def _placed(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers on a device. A single one is filled in: to copy it would wait for all that the device has yet to do."""
    if values.dim() or values.device == device:
        return values.to(device, dtype)
    return torch.full((), values.to(dtype).item(), device=device, dtype=dtype)


def _betas(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    # 1 - (alpha_t / alpha_s)^2, the variance that going from s to t adds
    return 1 - (schedule.at(t)[0] / schedule.at(s)[0]) ** 2
