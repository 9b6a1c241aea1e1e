"""Samplers on a Gaussian mixture with its exact denoiser: deterministic ones converge with their order, stochastic ones
reproduce mean and variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from zoo.diffusion.samplers import SAMPLERS, find_sampler
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import make_grid

if TYPE_CHECKING:
    from tests.diffusion.conftest import Mixture


def no_noise(step: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def end_of(mixture: Mixture, sampler: str, x: Tensor, steps: int) -> Tensor:
    grid = make_grid(mixture.schedule, steps, "uniform_lambda", "sigma_min")
    for step in SAMPLERS[sampler](mixture.predict, x, grid, no_noise):
        x = step.x
    return x


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exact(mixture: Mixture, start: Tensor) -> Tensor:
    """Where the start leads, with an error some hundred times below the least one measured."""
    return end_of(mixture, "unipc", start, 1000)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        ("euler", 0.9),
        ("ddim", 0.9),
        ("heun", 1.8),
        ("dpmpp_2m", 1.8),
        ("unipc", 1.8),
        ("unipc_bh1", 1.8),
        ("plms", 1.8),
    ],
)
def test_error_falls_with_the_order(mixture: Mixture, start: Tensor, exact: Tensor, sampler: str, order: float) -> None:
    steps = [20, 40, 80, 160]
    errors = [(end_of(mixture, sampler, start, n) - exact).square().mean().sqrt() for n in steps]
    run = torch.tensor(steps).double().log()
    rise = torch.stack(errors).log()
    slope = ((run - run.mean()) * (rise - rise.mean())).sum() / (run - run.mean()).square().sum()
    assert -slope.item() >= order


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddpm", 0.0), ("euler_ancestral", 0.0), ("dpmpp_2m_sde", 0.0), ("ddim", 1.0)]
)
def test_stochastic_samplers_reproduce_mean_and_variance(mixture: Mixture, sampler: str, eta: float) -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(100_000, generator=random)
    grid = make_grid(mixture.schedule, 250, "uniform_lambda")
    for step in find_sampler(sampler, eta)(mixture.predict, x, grid, lambda i: torch.randn(x.shape, generator=random)):
        last = step.x
    assert last.mean().item() == pytest.approx(mixture.mean, rel=0.02)
    assert last.var().item() == pytest.approx(mixture.variance, rel=0.02)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc", "plms", "lms"])
def test_data_come_out_where_sampling_begins_in_all_but_pure_noise(
    mixture_of: Callable[[Schedule], Mixture], sampler: str, steps: int
) -> None:
    """The cosine schedule begins at sigma / alpha = 20,000, a leap from the next level: no slope reaches over it."""
    mixture = mixture_of(Schedule("cosine"))
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    grid = make_grid(mixture.schedule, steps, "trailing")
    for step in SAMPLERS[sampler](mixture.predict, x, grid, no_noise):
        x = step.x
    assert float(x.std()) == pytest.approx(mixture.variance**0.5, rel=0.12 if steps == 5 else 0.03)
    assert float(x.abs().max()) < 3
