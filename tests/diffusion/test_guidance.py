"""Guidance by its formulas, per image, and with as few network calls as possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion.denoiser import Denoiser, Target
from zoo.diffusion.guidance import guided, rescaled, thresholded
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Sampling

GIVEN, NULL = Conditioning(vector=torch.full((3, 4), 2.0)), Conditioning(vector=torch.full((1, 4), -1.0))


class Listens(nn.Module):
    """Its answer depends on x and on the conditioning; counts its calls."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.learned, self.batches = learned, list[int]()

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.batches.append(len(x))
        assert conditioning.vector is not None
        raw = torch.sin(x * conditioning.vector[:, :1].view(-1, *[1] * (x.dim() - 1)))
        return torch.cat([raw, raw + 7], 1) if self.learned else raw


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 4, 4)])
def test_guidance_extrapolates_from_null(prediction: Target, shape: tuple[int, ...]) -> None:
    network = Listens()
    denoiser = Denoiser(network, Schedule(), prediction)
    x = torch.randn(shape)
    got = guided(denoiser, GIVEN, NULL, Sampling(guidance=3.0))(x, 500)
    assert network.batches == [6]  # both branches in one call
    torch.testing.assert_close(got.raw, torch.sin(-x) + 3 * (torch.sin(2 * x) - torch.sin(-x)))
    alpha, sigma = denoiser.levels(500, x)
    expected = {"x0": got.raw, "v": alpha * x - sigma * got.raw, "epsilon": (x - sigma * got.raw) / alpha}[prediction]
    torch.testing.assert_close(got.x0, expected)


def test_guidance_of_one_calls_the_condition_alone() -> None:
    network, x = Listens(), torch.randn(3, 6)
    got = guided(Denoiser(network, Schedule()), GIVEN, None, Sampling(guidance=1.0))(x, 500)
    assert network.batches == [3]
    torch.testing.assert_close(got.raw, torch.sin(2 * x))


def test_interval_in_sigma_over_alpha() -> None:
    network, x = Listens(), torch.randn(3, 6)
    schedule = Schedule()
    ratio = torch.exp(-schedule.lambdas)
    predict = guided(Denoiser(network, schedule), GIVEN, NULL, Sampling(guidance=3.0, interval=(0.28, 2.9)))
    for t in (0, 50, 200, 500, 999):
        predict(x, t)
        assert network.batches.pop() == (6 if 0.28 < ratio[t] <= 2.9 else 3)
    unbounded = guided(
        Denoiser(network, schedule.zero_terminal_snr(), "v"), GIVEN, NULL, Sampling(guidance=3.0, interval=(0.28, 2.9))
    )
    unbounded(x, 999)  # pure noise: sigma / alpha is infinite, outside any finite interval
    assert network.batches == [3]


def test_rescale_matches_the_deviation_of_the_condition_per_image() -> None:
    raw, given = torch.randn(3, 2, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1, 1), torch.randn(3, 2, 4, 4)
    full = rescaled(raw, given, 1.0)
    torch.testing.assert_close(full.flatten(1).std(1), given.flatten(1).std(1))
    torch.testing.assert_close(rescaled(raw, given, 0.7), 0.7 * full + 0.3 * raw)
    torch.testing.assert_close(rescaled(raw[:1], given[:1], 0.7), rescaled(raw, given, 0.7)[:1])
    x = torch.randn(3, 6)
    plain = guided(Denoiser(Listens(), Schedule()), GIVEN, NULL, Sampling(guidance=5.0))(x, 500)
    tamed = guided(Denoiser(Listens(), Schedule()), GIVEN, NULL, Sampling(guidance=5.0, rescale=0.7))(x, 500)
    torch.testing.assert_close(tamed.raw, rescaled(plain.raw, torch.sin(2 * x), 0.7))


def test_static_and_dynamic_threshold() -> None:
    x0 = torch.randn(3, 2, 8, 8) * torch.tensor([0.1, 2.0, 5.0]).view(3, 1, 1, 1)
    assert torch.equal(thresholded(x0, 1.0), x0.clamp(-1, 1))
    got = thresholded(x0, 0.9)
    assert torch.equal(got[0], x0[0])  # nothing above 1: left alone
    for image, result in zip(x0[1:], got[1:], strict=True):
        limit = image.abs().flatten().quantile(0.9)
        torch.testing.assert_close(result, image.clamp(-limit, limit) / limit)
    capped = thresholded(x0, 0.9, 2.0)  # as in DeepFloyd IF: no more than this is divided by
    assert torch.equal(capped[0], x0[0])
    torch.testing.assert_close(capped[2], x0[2].clamp(-2, 2) / 2)
    assert torch.equal(thresholded(x0, 0.9, 1.0), x0.clamp(-1, 1))
    assert torch.equal(thresholded(x0, 0.9, 1000.0), got)
    x = torch.randn(3, 6)
    clipped = guided(Denoiser(Listens(), Schedule()), GIVEN, NULL, Sampling(guidance=9.0, threshold=1.0))(x, 900)
    assert clipped.x0.abs().max() <= 1
    assert clipped.raw.abs().max() > 1  # only the clean estimate is clipped


def test_learned_variance_is_that_of_the_condition() -> None:
    x = torch.randn(3, 6)
    denoiser = Denoiser(Listens(learned=True), Schedule(), "epsilon", "learned")
    got = guided(denoiser, GIVEN, NULL, Sampling(guidance=3.0, rescale=0.5, threshold=0.9))(x, 500)
    assert got.log_variance is not None
    torch.testing.assert_close(got.log_variance, torch.sin(2 * x) + 7)


class Told(nn.Module):
    """Its answer is the guidance it was told; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = list[int]()

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.batches.append(len(x))
        assert conditioning.guidance is not None
        assert conditioning.guidance.dtype == torch.float32
        return conditioning.guidance.view(-1, 1).expand_as(x)


def told(network: nn.Module) -> Denoiser:
    return Denoiser(network, Schedule(), "x0", guidance_range=(1.0, 7.0))


@pytest.mark.parametrize("null", [NULL, None])
def test_a_network_that_takes_guidance_is_told_it_in_one_call(null: Conditioning | None) -> None:
    network, x = Told(), torch.randn(3, 6)
    got = guided(told(network), GIVEN, null, Sampling(guidance=5.5))(x, 500)
    assert network.batches == [3]  # no second branch
    assert got.x0.unique().tolist() == [5.5]
    assert guided(told(network), GIVEN, None, Sampling(guidance=1.0))(x, 500).x0.unique().tolist() == [1.0]
    assert guided(told(network), GIVEN, null, Sampling(guidance=5.5, threshold=1.0))(x, 9).x0.unique().tolist() == [1.0]


def test_outside_the_interval_it_is_told_that_guidance_is_off() -> None:
    predict = guided(told(Told()), GIVEN, None, Sampling(guidance=3.0, interval=(0.28, 2.9)))
    ratio = torch.exp(-Schedule().lambdas)
    for t in (0, 200, 500, 999):
        assert predict(torch.randn(3, 6), t).x0.unique().tolist() == [3.0 if 0.28 < ratio[t] <= 2.9 else 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 7.5}, "distilled for guidance from 1 to 7, got 7.5"),
        ({"guidance": 0.0}, "distilled for guidance from 1 to 7, got 0"),
        ({"guidance": 3.0, "rescale": 0.7}, "leave it at 0"),
    ],
)
def test_settings_that_a_distilled_network_does_not_have(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(told(Told()), GIVEN, NULL, Sampling(**settings))  # type: ignore[arg-type]


def test_an_interval_needs_a_range_that_reaches_one() -> None:
    denoiser = Denoiser(Told(), Schedule(), "x0", guidance_range=(2.0, 7.0))
    with pytest.raises(ValueError, match="leave interval at None"):
        guided(denoiser, GIVEN, NULL, Sampling(guidance=3.0, interval=(0.28, 2.9)))
    with pytest.raises(ValueError, match="lowest, highest"):
        Denoiser(Told(), Schedule(), guidance_range=(7.0, 2.0))


def test_ports_that_null_leaves_empty_are_shared() -> None:
    class Sees(nn.Module):
        def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            assert conditioning.concat is not None
            assert conditioning.mask is not None
            assert conditioning.mask.tolist() == [[True, False]] * 3 + [[True, True]] * 3
            return x + conditioning.concat

    given = Conditioning(
        tokens=torch.ones(3, 2, 4), mask=torch.tensor([[True, False]] * 3), concat=torch.ones(3, 1, 2, 2)
    )
    null = Conditioning(tokens=torch.zeros(1, 2, 4))  # no mask: attends to all
    x = torch.zeros(3, 1, 2, 2)
    assert guided(Denoiser(Sees(), Schedule()), given, null, Sampling(guidance=2.0))(x, 5).raw.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "null", "message"),
    [
        ({"guidance": float("nan")}, NULL, "finite number"),
        ({"guidance": 3.0}, None, "needs a null conditioning"),
        ({"guidance": 3.0}, Conditioning(vector=torch.zeros(2, 4)), r"shape \[2, 4\], expected \[3, 4\]"),
        ({"guidance": 3.0}, Conditioning(tokens=torch.zeros(3, 2, 4)), "null conditioning has tokens"),
        ({"rescale": 1.2}, NULL, "rescale"),
        ({"interval": (2.0, 1.0)}, NULL, "interval"),
        ({"threshold": 0.0}, NULL, "threshold"),
        ({"threshold": 0.9, "cap": 0.5}, NULL, "cap cannot be 0.5"),
    ],
)
def test_errors(settings: dict[str, float], null: Conditioning | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(Denoiser(Listens(), Schedule()), GIVEN, null, replace(Sampling(), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_batch_that_does_not_fit_is_refused(guidance: float) -> None:
    with pytest.raises(ValueError, match=r"conditioning.vector holds"):
        guided(Denoiser(Listens(), Schedule()), GIVEN, NULL, Sampling(guidance=guidance))(torch.zeros(2, 4), 5)
