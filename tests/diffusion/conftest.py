"""A world in which the best denoiser is known exactly: data from a mixture of two Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion.denoiser import Denoiser, Target, Variance, target
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Prediction


@dataclass(frozen=True)
class Mixture:
    """Every element of the data is drawn alike: from N(-0.8, 0.3^2) with weight 0.4, else from N(1, 0.4^2)."""

    schedule: Schedule
    weights: tuple[float, float] = (0.4, 0.6)
    means: tuple[float, float] = (-0.8, 1.0)
    deviations: tuple[float, float] = (0.3, 0.4)

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def variance(self) -> float:
        squares = (w * (m**2 + d**2) for w, m, d in zip(self.weights, self.means, self.deviations, strict=True))
        return sum(squares) - self.mean**2

    def x0(self, x: Tensor, t: Tensor | float) -> Tensor:
        """E[x0 | x at time t], by Bayes' rule."""
        alpha, sigma = (level.to(x).view(-1, *[1] * (x.dim() - 1)) for level in self.schedule.at(t))
        logits, estimates = [], []
        for weight, mean, deviation in zip(self.weights, self.means, self.deviations, strict=True):
            spread = alpha**2 * deviation**2 + sigma**2
            logits.append(-((x - alpha * mean) ** 2) / (2 * spread) + torch.log(weight / spread.sqrt()))
            estimates.append(mean + alpha * deviation**2 / spread * (x - alpha * mean))
        return (torch.stack(logits).softmax(0) * torch.stack(estimates)).sum(0)

    def predict(self, x: Tensor, t: float, s: float | None = None) -> Prediction:
        x0 = self.x0(x, t)
        return Prediction(x0, x0)

    def denoiser(self, prediction: Target = "epsilon", variance: Variance = "fixed_small") -> Denoiser:
        return Denoiser(ExactNetwork(self, prediction), self.schedule, prediction, variance)


class ExactNetwork(nn.Module):
    """A network that always gives the mixture's best answer."""

    def __init__(self, mixture: Mixture, prediction: Target) -> None:
        super().__init__()
        self.mixture, self.prediction = mixture, prediction

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        alpha, sigma = (level.to(x).view(-1, *[1] * (x.dim() - 1)) for level in self.mixture.schedule.at(t))
        x0 = self.mixture.x0(x, t)
        return target(self.prediction, x0, (x - alpha * x0) / sigma, alpha, sigma)


@pytest.fixture(scope="session")
def mixture_of() -> Callable[[Schedule], Mixture]:
    return Mixture


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    return Mixture(Schedule("scaled_linear"))


@pytest.fixture(scope="session")
def zero_snr_mixture() -> Mixture:
    return Mixture(Schedule("scaled_linear").zero_terminal_snr())
