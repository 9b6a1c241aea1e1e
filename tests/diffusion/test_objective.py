"""The training loss: weights by formula, dropout per sample, determinism, and the bound that trains a variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion import objective
from zoo.diffusion.denoiser import Denoiser, Target
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning


class Recorder(nn.Module):
    """Answers zeros (times `channels`), remembers what it was asked."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.calls: list[tuple[Tensor, Tensor, Conditioning]] = []

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append((x, t, conditioning))
        return torch.zeros_like(x).repeat(1, self.channels, *[1] * (x.dim() - 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_min_snr_weights_follow_the_paper(prediction: Target) -> None:
    denoiser = Denoiser(Recorder(), Schedule("cosine"), prediction)
    t = torch.tensor([0, 100, 500, 900, 998])
    power = denoiser.schedule.alphas_cumprod[t]
    snr = power / (1 - power)
    capped = torch.minimum(snr, torch.tensor(5.0))
    expected = {"x0": capped, "epsilon": capped / snr, "v": capped / (snr + 1)}[prediction]
    torch.testing.assert_close(objective.weights(denoiser, t, 5.0), expected)


def test_weight_at_pure_noise_is_one() -> None:
    denoiser = Denoiser(Recorder(), Schedule("linear").zero_terminal_snr(), "v")
    assert objective.weights(denoiser, torch.tensor([999]), 5.0).tolist() == [1.0]


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_a_floor_lifts_the_noisy_times_alone(prediction: Target) -> None:
    denoiser = Denoiser(Recorder(), Schedule("cosine"), prediction)
    t = torch.arange(1000)
    snr = torch.exp(2 * denoiser.schedule.lambda_at(t))
    per = {"x0": torch.ones_like(snr), "epsilon": snr, "v": snr + 1}[prediction]
    lifted, plain = objective.weights(denoiser, t, 5.0, 1.0), objective.weights(denoiser, t, 5.0)
    torch.testing.assert_close(lifted[snr < 1], (1 / per)[snr < 1])
    torch.testing.assert_close(lifted[snr >= 1], plain[snr >= 1])


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 4, 4)])
def test_loss_is_the_weighted_error_against_the_target(
    prediction: Target, gamma: float | None, shape: tuple[int, ...]
) -> None:
    network = Recorder()
    denoiser = Denoiser(network, Schedule(), prediction)
    x0 = torch.randn(shape, generator=seeded(1))
    got = objective.loss(denoiser, x0, Conditioning(), gamma=gamma, generator=seeded())
    x, t, _ = network.calls[0]
    alpha, sigma = denoiser.levels(t, x0)
    noise = (x - alpha * x0) / sigma
    wanted = {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0}[prediction]
    weight = 1.0 if gamma is None else objective.weights(denoiser, t, gamma)
    expected = (weight * wanted.square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-5)


def test_a_teacher_stands_in_for_the_truth() -> None:
    network, asked = Recorder(), []

    def raw(x: Tensor, t: Tensor, told: Conditioning) -> Tensor:
        asked.append((x, t, told))
        return x + t.view(-1, 1)

    x0, null = torch.randn(50, 3), Conditioning(vector=torch.zeros(1, 2))
    given, other = Conditioning(vector=torch.ones(50, 2)), Conditioning(vector=torch.full((50, 2), 2.0))
    teacher = objective.Teacher(raw, other, Conditioning(vector=torch.full((1, 2), -1.0)))
    got = objective.loss(
        Denoiser(network, Schedule()),
        x0,
        given,
        null=null,
        dropout=0.5,
        gamma=None,
        teacher=teacher,
        generator=seeded(),
    )
    (x, t, mine), (its, times, told) = network.calls[0], asked[0]
    assert torch.equal(x, its)
    assert torch.equal(t, times)
    assert got == pytest.approx((x + t.view(-1, 1)).square().mean().item(), rel=1e-5), "of a network that says 0"
    assert mine.vector is not None
    assert told.vector is not None
    assert torch.equal(mine.vector == 0, told.vector == -1), "nothing is said to both at once"
    assert set(told.vector.unique().tolist()) == {-1.0, 2.0}


def test_a_teachers_guided_predictions_are_compared() -> None:
    def told(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.vector is not None
        return 10 * conditioning.vector[:, :1].expand_as(x)

    class Told(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            return told(x, t, conditioning)

    x0, null = torch.randn(5, 3), Conditioning(vector=torch.zeros(1, 1))
    said, other = Conditioning(vector=torch.ones(5, 1)), Conditioning(vector=torch.full((5, 1), 2.0))

    def loss(teacher: objective.Teacher, null: Conditioning | None = null) -> float:
        return objective.loss(
            Denoiser(Told(), Schedule()), x0, said, null=null, dropout=0.5, gamma=None, teacher=teacher
        ).item()

    # The student says 0 and 10, which guidance of 3 makes 30; the teacher -10 and 20, which it makes 80.
    away = Conditioning(vector=torch.full((1, 1), -1.0))
    assert loss(objective.Teacher(told, other, away, guidance=3.0)) == pytest.approx(50**2)
    for missing in (loss, lambda teacher: loss(teacher, None)):
        with pytest.raises(ValueError, match="give both networks a null conditioning"):
            missing(objective.Teacher(told, other, away if missing is not loss else None, guidance=3.0))


def test_same_generator_same_loss() -> None:
    x0 = torch.randn(4, 5)
    losses = [
        objective.loss(Denoiser(Recorder(), Schedule(), "v"), x0, Conditioning(), generator=seeded(seed)).item()
        for seed in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_times_cover_the_schedule_uniformly() -> None:
    network = Recorder()
    objective.loss(Denoiser(network, Schedule()), torch.zeros(20000, 1), Conditioning(), generator=seeded())
    t = network.calls[0][1]
    assert (t.min(), t.max()) == (0, 999)
    assert torch.histc(t, 10).div(2000).sub(1).abs().max() < 0.1


def test_dropout_replaces_whole_samples_by_the_null() -> None:
    network = Recorder()
    n = 4000
    tokens, vector, concat = torch.ones(n, 2, 3), torch.ones(n, 4), torch.ones(n, 1, 1, 1)
    null = Conditioning(tokens=torch.full((1, 2, 3), -1.0), vector=torch.full((1, 4), -1.0))
    given = Conditioning(tokens=tokens, vector=vector, concat=concat)
    objective.loss(
        Denoiser(network, Schedule()), torch.zeros(n, 1, 1, 1), given, null=null, dropout=0.2, generator=seeded()
    )
    seen = network.calls[0][2]
    assert seen.tokens is not None
    assert seen.vector is not None
    assert seen.concat is not None
    dropped = seen.tokens[:, 0, 0] < 0
    assert (seen.tokens == torch.where(dropped, -1.0, 1.0).view(-1, 1, 1)).all()
    assert (seen.vector == torch.where(dropped, -1.0, 1.0).view(-1, 1)).all()
    assert abs(dropped.float().mean().item() - 0.2) < 0.02
    assert (seen.concat == 1).all()  # a port that the null leaves empty is never dropped


def test_bound_is_the_divergence_from_the_posterior() -> None:
    """The divergence is 0 for the true posterior and grows with an error of its variance or its mean."""
    schedule = Schedule("linear")
    denoiser = Denoiser(Recorder(2), schedule, "epsilon", "learned")
    t = torch.tensor([500])
    x0, x = torch.zeros(1, 4), torch.zeros(1, 4)
    true_log = denoiser.log_variance_bounds(t)[0].float().item()

    def bound(log_variance: float, error: float = 0.0) -> float:
        values = torch.full((1, 4), log_variance)
        return objective.variational_bound(denoiser, x0, x, x0 + error, values, t).item()

    assert abs(bound(true_log)) < 1e-5  # same mean, same variance: no divergence
    assert bound(true_log + 1) == pytest.approx(0.5 * (1 + math.exp(-1) - 1) / math.log(2), rel=1e-3)
    assert bound(true_log, 0.1) > bound(true_log)


def test_hybrid_loss_gives_gradients_to_both_halves() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.range = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            return torch.cat([self.mean(x), self.range(x)], 1)

    def gradients(vlb_weight: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        network = Linear()
        denoiser = Denoiser(network, Schedule("cosine"), "epsilon", "learned_range")
        objective.loss(
            denoiser, torch.ones(64, 3), Conditioning(), vlb_weight=vlb_weight, generator=seeded()
        ).backward()
        assert network.mean.weight.grad is not None
        assert network.range.weight.grad is not None
        return network.mean.weight.grad, network.range.weight.grad

    (mean, variance), (mean_alone, variance_alone) = gradients(0.001), gradients(0.0)
    torch.testing.assert_close(mean, mean_alone)
    assert variance.abs().max() > 0
    assert variance_alone.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.5}, "dropout"),
        ({"gamma": 0.0}, "gamma"),
        ({"floor": 6.0}, "floor"),
        ({"gamma": None, "floor": 1.0}, "floor"),
        ({"floor": 1.0}, "floor 1 weights the clean estimate, of which the epsilon"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective.loss(Denoiser(Recorder(), Schedule()), torch.zeros(1, 1), Conditioning(), **arguments)  # type: ignore[arg-type]


def test_null_of_another_shape_is_refused() -> None:
    given, null = Conditioning(tokens=torch.ones(2, 3, 4)), Conditioning(tokens=torch.ones(1, 5, 4))
    with pytest.raises(ValueError, match="tokens of the null conditioning has shape"):
        objective.loss(Denoiser(Recorder(), Schedule()), torch.zeros(2, 1), given, null=null)
