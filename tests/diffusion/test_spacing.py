"""Grids: the golden numbers of the published spacings, how they end, and what cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid, make_grid

SD = Schedule("scaled_linear")


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("leading", list(range(900, -1, -100))),
        ("leading+1", list(range(901, 0, -100))),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", list(range(999, 98, -100))),
        ("trailing*1", list(range(999, 98, -100))),
    ],
)
def test_golden_times(spacing: str, times: list[int]) -> None:
    grid = make_grid(SD, 10, spacing)
    assert grid.t.tolist() == [*times, -1]
    torch.testing.assert_close(grid.alpha[:-1] ** 2, SD.alphas_cumprod[times])
    assert (grid.alpha[-1], grid.sigma[-1], grid.lambda_[-1]) == (1, 0, math.inf)


def test_golden_karras_levels() -> None:
    grid = make_grid(SD, 10, "karras")
    golden = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    torch.testing.assert_close(
        (grid.sigma / grid.alpha)[:-1], torch.tensor(golden, dtype=torch.float64), rtol=1e-4, atol=6e-5
    )
    assert (grid.t[0], grid.t[9], grid.t[10]) == (999, 0, -1)


def test_uniform_lambda_is_uniform() -> None:
    grid = make_grid(SD, 8, "uniform_lambda", "sigma_min")
    h = grid.lambda_.diff()
    torch.testing.assert_close(h, h[:1].expand(8))
    assert (grid.t[0], grid.t[-1]) == (999, 0)


def test_a_factor_multiplies_noise_levels() -> None:
    plain, noisier = (make_grid(Schedule("cosine"), 10, spacing) for spacing in ("trailing", "trailing*2.5"))
    assert noisier.t[0] == plain.t[0] == 999
    factors = (plain.lambda_ - noisier.lambda_)[1:-1].exp()
    torch.testing.assert_close(factors, torch.full((9,), 2.5, dtype=torch.float64), rtol=0.02, atol=0)
    assert torch.equal(noisier.t, noisier.t.round())
    assert noisier.t[-1] == -1
    assert make_grid(Schedule("cosine"), 10, "trailing*2.5", "sigma_min").t[-1] == 0


SPACINGS = [
    "leading",
    "leading+1",
    "linspace",
    "trailing",
    "trailing*0.8",
    "lcm",
    "lcm*0.5",
    "karras",
    "uniform_lambda",
]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_every_grid_falls_and_ends_as_asked(spacing: str, steps: int, end: str) -> None:
    grid = make_grid(SD, steps, spacing, end)  # type: ignore[arg-type]
    assert grid.steps == steps == len(list(grid.pairs()))
    assert (grid.t.diff() <= 0).all()
    assert (grid.t.diff()[:-1] < 0).all()
    assert grid.t[-1] == (-1 if end == "zero" else 0)
    torch.testing.assert_close(grid.alpha**2 + grid.sigma**2, torch.ones(steps + 1, dtype=torch.float64))
    torch.testing.assert_close(SD.lambda_at(grid.t), grid.lambda_)


@pytest.mark.parametrize(("strength", "kept"), [(1.0, 10), (0.5, 5), (0.3, 3), (0.01, 1)])
def test_truncation_keeps_the_end(strength: float, kept: int) -> None:
    grid = make_grid(SD, 10, "trailing")
    cut = grid.truncate(strength)
    assert cut.steps == kept
    assert cut.t.tolist() == grid.t.tolist()[-kept - 1 :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SD, 0, "trailing"), "at least 1 step, got 0"),
        ((SD, 1001, "trailing"), "only 1000 whole times, got 1001"),
        ((SD, 51, "lcm"), "only 50 whole times"),
        ((SD, 1000, "linspace", "sigma_min"), "only 999 whole times"),
        ((Schedule(steps=40), 4, "lcm"), "at least 50 times, this one has 40"),
        ((SD, 10, "trailling"), "did you mean 'trailing'"),
        ((SD, 10, "karras+1"), "unknown spacing 'karras\\+1'"),
        ((SD, 10, "karras*2"), "unknown spacing 'karras\\*2'"),
        ((SD, 10, "trailing*0"), "unknown spacing 'trailing\\*0'"),
        ((SD, 10, "trailing*2*2"), "unknown spacing 'trailing\\*2\\*2'"),
        ((SD, 900, "trailing*2"), "has fewer than 900 whole times; take fewer, or a milder factor"),
        ((SD, 1000, "leading+1"), "begins at 1000, past 999"),
        ((SD, 10, "trailing", "clean"), "ends at one of zero, sigma_min"),
        ((SD.zero_terminal_snr(), 10, "karras"), "use 'trailing'"),
    ],
)
def test_errors(arguments: tuple[Schedule, int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(*arguments)


@pytest.mark.parametrize("times", [[5.0], [5.0, 6.0], [-1.0, -1.0]])
def test_own_times_must_fall(times: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two times that fall"):
        Grid.at(SD, times)


@pytest.mark.parametrize("strength", [0.0, 1.1])
def test_impossible_strength(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        make_grid(SD, 10).truncate(strength)
