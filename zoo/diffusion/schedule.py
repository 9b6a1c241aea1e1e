"""Noise schedules: how much signal (alpha) and noise (sigma) a state x_t = alpha x0 + sigma noise holds at each time.

All schedules here are variance preserving (alpha^2 + sigma^2 = 1) with discrete times 0 .. steps - 1; time -1 is clean
data. Between the integers lambda = log(alpha / sigma) is interpolated linearly. Tables are float64 and live on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property

import torch
from torch import Tensor

Bounds = tuple[float, float]


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Betas that grow linearly (DDPM, arXiv 2006.11239)."""
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    """Betas whose square root grows linearly (latent diffusion, arXiv 2112.10752)."""
    return _linear(steps, math.sqrt(start), math.sqrt(end)) ** 2


def _cosine(steps: int, start: float, end: float) -> Tensor:
    """Signal power that falls as cos^2, `start` the small offset and `end` the largest beta (arXiv 2102.09672)."""
    u = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    power = torch.cos((u + start) / (1 + start) * math.pi / 2) ** 2
    return (1 - power[1:] / power[:-1]).clamp(max=end)


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    """Betas that follow a logistic curve over [-6, 6] (GeoDiff, arXiv 2203.02923)."""
    return torch.sigmoid(_linear(steps, -6.0, 6.0)) * (end - start) + start


# name -> (betas, default bounds, name in a diffusers scheduler config)
SCHEDULES: dict[str, tuple[Callable[[int, float, float], Tensor], Bounds, str]] = {
    "linear": (_linear, (1e-4, 0.02), "linear"),
    "scaled_linear": (_scaled_linear, (0.00085, 0.012), "scaled_linear"),
    "cosine": (_cosine, (0.008, 0.999), "squaredcos_cap_v2"),
    "sigmoid": (_sigmoid, (1e-4, 0.02), "sigmoid"),
}


@dataclass(frozen=True)
class Schedule:
    """A discrete noise schedule; its fields are plain data, so `Schedule(**json)` and `asdict(schedule)` are inverse.

    `start` and `end` are the schedule's bounds (betas; for cosine the offset and the largest beta), None for the
    published ones. With `zero_snr` the last time is pure noise, alpha = 0 exactly (arXiv 2305.08891), or almost:
    `floor` is what alpha^2 keeps there, for solvers that need a finite sigma / alpha.

    Raises:
        ValueError: unknown name, fewer than 2 steps, or bounds outside (0, 1).
    """

    name: str = "scaled_linear"
    steps: int = 1000
    start: float | None = None
    end: float | None = None
    zero_snr: bool = False
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            near = get_close_matches(self.name, SCHEDULES, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown noise schedule {self.name!r}; {hint}there are {', '.join(SCHEDULES)}")
        if self.steps < 2:
            raise ValueError(f"a noise schedule needs at least 2 steps, got {self.steps}")
        if not all(0 < bound < 1 for bound in self.bounds):
            raise ValueError(f"start and end of a noise schedule lie in (0, 1), got {self.bounds}")
        if not 0 <= self.floor < 1 or (self.floor and not self.zero_snr):
            raise ValueError(
                f"floor is what alpha^2 keeps at the end of a zero_snr schedule, in [0, 1), got {self.floor}"
            )

    @property
    def bounds(self) -> Bounds:
        """`start` and `end` as used."""
        start, end = SCHEDULES[self.name][1]
        return (start if self.start is None else self.start, end if self.end is None else self.end)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Signal power alpha^2 at the integer times, [steps] float64."""
        power = torch.cumprod(1 - SCHEDULES[self.name][0](self.steps, *self.bounds), 0)
        if self.zero_snr:  # shift sqrt(power) so that its end is 0, scale so that its beginning stays
            root = power.sqrt()
            power = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            power[-1] = self.floor
        return power

    @cached_property
    def lambdas(self) -> Tensor:
        """lambda = log(alpha / sigma) at the integer times, [steps] float64, falling; with `zero_snr` to -inf."""
        return (self.alphas_cumprod / (1 - self.alphas_cumprod)).log() / 2

    @cached_property
    def _finite_lambdas(self) -> Tensor:
        # To interpolate towards pure noise, lambda = -inf is replaced by going on as before.
        lambdas = self.lambdas.clone()
        if self.zero_snr and not self.floor:
            lambdas[-1] = 2 * lambdas[-2] - lambdas[-3] if self.steps > 2 else lambdas[-2] - 1
        return lambdas

    def lambda_at(self, t: Tensor | float) -> Tensor:
        """lambda at times t (any shape, in [0, steps - 1], or -1 for clean data), float64 on the CPU.

        Raises:
            ValueError: a time outside the schedule.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if not bool((((t >= 0) & (t <= self.steps - 1)) | (t == -1)).all()):
            raise ValueError(f"times lie in [0, {self.steps - 1}] (or are -1, clean data), got {t.tolist()}")
        low = t.floor().clamp(0, self.steps - 2)
        index = low.long()
        between = torch.lerp(self._finite_lambdas[index], self._finite_lambdas[index + 1], t - low)
        between = torch.where(t == self.steps - 1, self.lambdas[-1], between)
        return torch.where(t < 0, math.inf, between)

    def at(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """alpha and sigma, both in [0, 1], at times t (any shape, as in `lambda_at`), float64 on the CPU."""
        twice = 2 * self.lambda_at(t)
        return torch.sigmoid(twice).sqrt(), torch.sigmoid(-twice).sqrt()

    def time_at(self, lambda_: Tensor | float) -> Tensor:
        """The time at which lambda is reached (any shape), inverse of `lambda_at`; in [0, steps - 1], inf gives -1."""
        lambda_ = torch.as_tensor(lambda_, dtype=torch.float64, device="cpu")
        rising = -self._finite_lambdas
        high = torch.searchsorted(rising, -lambda_.contiguous()).clamp(1, self.steps - 1)
        share = (-lambda_ - rising[high - 1]) / (rising[high] - rising[high - 1])
        t = torch.where(lambda_ == -math.inf, self.steps - 1.0, high - 1 + share.clamp(0, 1))
        return torch.where(lambda_ == math.inf, -1.0, t)

    def zero_terminal_snr(self) -> Schedule:
        """The same schedule, rescaled so that its last time is pure noise (arXiv 2305.08891)."""
        return replace(self, zero_snr=True)

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Plain data, for JSON."""
        return asdict(self)

    def to_diffusers(self) -> dict[str, str | int | float | bool]:
        """The keys of a diffusers scheduler config that name this schedule.

        Raises:
            ValueError: a cosine schedule with bounds of its own, which diffusers cannot name.
        """
        published = self.name == "cosine"
        if published and self.bounds != SCHEDULES["cosine"][1]:
            raise ValueError(
                "a diffusers config holds only the cosine schedule with offset 0.008 and largest beta 0.999"
            )
        start, end = (1e-4, 0.02) if published else self.bounds
        return {
            "num_train_timesteps": self.steps,
            "beta_schedule": SCHEDULES[self.name][2],
            "beta_start": start,
            "beta_end": end,
            "rescale_betas_zero_snr": self.zero_snr,
        }

    @classmethod
    def from_diffusers(cls, config: Mapping[str, object]) -> Schedule:
        """The schedule a diffusers scheduler config (`scheduler_config.json`) names.

        Raises:
            ValueError: a schedule that has no counterpart here, or a table of trained betas.
        """
        if config.get("trained_betas") is not None:
            raise ValueError("scheduler configs with `trained_betas` (a table) are not supported, only named schedules")
        names = {theirs: ours for ours, (_, _, theirs) in SCHEDULES.items()}
        theirs = str(config.get("beta_schedule", "linear"))
        if theirs not in names:
            raise ValueError(f"unknown beta_schedule {theirs!r} in the scheduler config; known are {', '.join(names)}")
        name, zero_snr = names[theirs], bool(config.get("rescale_betas_zero_snr", False))
        steps = int(str(config.get("num_train_timesteps", 1000)))
        if name == "cosine":
            return cls(name, steps, zero_snr=zero_snr)
        start, end = float(str(config.get("beta_start", 1e-4))), float(str(config.get("beta_end", 0.02)))
        return cls(name, steps, start, end, zero_snr)
