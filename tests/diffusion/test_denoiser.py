"""What a network's output means: three targets, four variances, and the ends of the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion.denoiser import Denoiser, Target, Variance, clean, target
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning


class Given(nn.Module):
    """Gives what it was given, and remembers its inputs."""

    def __init__(self, output: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.output = nn.Parameter(output.to(dtype), requires_grad=False)
        self.seen: tuple[Tensor, Tensor, Conditioning] | None = None

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.seen = (x, t, conditioning)
        return self.output


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 2)])
def test_target_and_clean_estimate_are_inverse(prediction: Target, shape: tuple[int, ...]) -> None:
    x0, noise = torch.randn(2, *shape, dtype=torch.float64)
    t = torch.tensor([0, 10, 500, 999])
    denoiser = Denoiser(nn.Identity(), Schedule(), prediction)
    alpha, sigma = denoiser.levels(t, x0)
    raw = target(prediction, x0, noise, alpha, sigma)
    predicted = Denoiser(Given(raw, torch.float64), Schedule(), prediction).predict(
        alpha * x0 + sigma * noise, t, Conditioning()
    )
    torch.testing.assert_close(predicted.x0, x0)
    torch.testing.assert_close(predicted.raw, raw)
    assert predicted.log_variance is None


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("t", [999.0, -1.0])
def test_finite_at_pure_noise_and_at_clean_data(prediction: Target, t: float) -> None:
    x = torch.randn(2, 3)
    schedule = Schedule().zero_terminal_snr()
    x0 = Denoiser(Given(torch.randn(2, 3)), schedule, prediction).predict(x, t, Conditioning()).x0
    assert x0.isfinite().all()
    if t == -1 and prediction != "x0":
        torch.testing.assert_close(x0, x)  # a clean state is its own estimate


def test_v_at_pure_noise_is_minus_x0() -> None:
    x0 = torch.randn(2, 3)
    assert torch.equal(clean("v", -x0, torch.randn(2, 3), torch.zeros(1), torch.ones(1)), x0)


@pytest.mark.parametrize("s", [None, 400.0, -1.0])
def test_learned_range_runs_between_the_two_fixed_variances(s: float | None) -> None:
    schedule, t = Schedule("linear"), 500
    raw = torch.cat([torch.zeros(1, 3), torch.tensor([[-1.0, 0.0, 1.0]])], 1)
    got = Denoiser(Given(raw), schedule, "epsilon", "learned_range").predict(torch.zeros(1, 3), t, Conditioning(), s)
    power_s = 1.0 if s == -1 else schedule.alphas_cumprod[499 if s is None else int(s)].item()
    power = schedule.alphas_cumprod[t].item()
    large = math.log(1 - power / power_s)
    if s == -1:  # to clean data: the published stand-in is the posterior of the step 1 -> 0
        first, second = schedule.alphas_cumprod[:2].tolist()
        small = math.log((1 - first) / (1 - second) * (1 - second / first))
    else:
        small = math.log((1 - power_s) / (1 - power)) + large
    assert got.log_variance is not None
    torch.testing.assert_close(got.log_variance, torch.tensor([[small, (small + large) / 2, large]]))


def test_other_variances() -> None:
    x, raw = torch.zeros(1, 2), torch.tensor([[0.0, 0.0, -3.0, 4.0]])

    def log_variance(variance: Variance, output: Tensor) -> Tensor | None:
        return Denoiser(Given(output), Schedule(), "v", variance).predict(x, 500, Conditioning()).log_variance

    assert log_variance("fixed_small", raw[:, :2]) is None
    learned, large = log_variance("learned", raw), log_variance("fixed_large", raw[:, :2])
    assert learned is not None
    assert large is not None
    assert learned.tolist() == [[-3, 4]]
    beta = 1 - Schedule().alphas_cumprod[500] / Schedule().alphas_cumprod[499]
    torch.testing.assert_close(large.flatten(), beta.log().float().view(1))


def test_half_precision_networks_get_full_precision_times_and_give_float32() -> None:
    network = Given(torch.zeros(2, 3), torch.bfloat16)
    conditioning = Conditioning(
        tokens=torch.zeros(2, 1, 4), mask=torch.ones(2, 1, dtype=torch.bool), augmentation=torch.tensor([0.1, 0.2])
    )
    raw, _ = Denoiser(network, Schedule())(torch.zeros(2, 3), 999, conditioning)
    assert network.seen is not None
    x, t, seen = network.seen
    assert (raw.dtype, x.dtype) == (torch.float32, torch.bfloat16)
    assert (t.dtype, t.tolist()) == (torch.float32, [999, 999])
    assert seen.tokens is not None
    assert seen.mask is not None
    assert seen.augmentation is not None
    assert (seen.tokens.dtype, seen.mask.dtype, seen.augmentation.dtype) == (torch.bfloat16, torch.bool, torch.float32)


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown prediction 'noise'; expected one of epsilon, x0, v"):
        Denoiser(nn.Identity(), Schedule(), "noise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown variance"):
        Denoiser(nn.Identity(), Schedule(), "v", "small")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \[1, 2\], expected \[1, 4\]"):
        Denoiser(Given(torch.zeros(1, 2)), Schedule(), "v", "learned").predict(torch.zeros(1, 2), 5, Conditioning())
