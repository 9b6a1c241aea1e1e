"""DDIM inversion where the best denoiser is known exactly, and the arc between two noises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.diffusion.conftest import Mixture
from zoo.diffusion.inversion import invert, slerp
from zoo.diffusion.noise import GivenNoise
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Sampling, Step

DDIM = Sampling(steps=20, sampler="ddim")
NOTHING = Conditioning()


def drawn(mixture: Mixture, count: int = 4096) -> Tensor:
    source = torch.Generator().manual_seed(0)
    first = torch.rand(count, 1, generator=source) < mixture.weights[0]
    noise = torch.randn(count, 1, generator=source)
    values = [m + d * noise for m, d in zip(mixture.means, mixture.deviations, strict=True)]
    return torch.where(first, *values)


def round_trip(mixture: Mixture, sampling: Sampling, refinements: int) -> tuple[Tensor, Tensor]:
    """The noise of data, and how far from the data is what is made of it."""
    denoiser, data = mixture.denoiser("v"), drawn(mixture)
    noise = invert(denoiser, NOTHING, None, data, sampling, refinements=refinements)
    again = sample(denoiser, NOTHING, None, GivenNoise(noise), sampling, data.shape)
    return noise, (again - data).abs()


@pytest.mark.parametrize("terminal", [False, True])
def test_data_come_back_from_their_noise(terminal: bool) -> None:
    schedule = Schedule("scaled_linear")
    mixture = Mixture(schedule.zero_terminal_snr() if terminal else schedule)
    plain, refined = (float(round_trip(mixture, DDIM, refinements)[1].mean()) for refinements in (0, 3))
    assert plain > 10 * refined
    assert refined < 4e-3
    assert float(round_trip(mixture, replace(DDIM, steps=100), 3)[1].mean()) < 1e-5


def test_more_steps_bring_them_nearer(mixture: Mixture) -> None:
    few, many = (float(round_trip(mixture, replace(DDIM, steps=steps), 0)[1].mean()) for steps in (10, 160))
    assert few > 8 * many


def test_the_noise_is_noise(mixture: Mixture) -> None:
    """Two lumps of data come from one Gaussian; of the two, the greater data come from the greater noise."""
    noise, _ = round_trip(mixture, replace(DDIM, steps=400), 3)
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    order = drawn(mixture).flatten().argsort()
    assert bool((noise.flatten()[order].diff() > -1e-4).all())
    assert float((noise > 1).float().mean()) == pytest.approx(0.1587, abs=0.015)


def test_every_step_is_shown_from_data_to_noise(mixture: Mixture) -> None:
    seen: list[Step] = []
    data = drawn(mixture, 3)

    def observe(stage: str, step: Step) -> None:
        seen.append(step)

    noise = invert(mixture.denoiser(), NOTHING, None, data, replace(DDIM, steps=4), observe=observe)
    assert [step.index for step in seen] == [3, 2, 1, 0]
    assert [step.t for step in seen] == [249, 499, 749, 999]
    assert torch.equal(seen[-1].x, noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "euler"}, "only the sampler 'ddim' with eta 0"),
        ({"eta": 0.5}, "with eta 0.5"),
        ({"threshold": 1.0}, "threshold 1 forgets"),
        ({"guidance": 2.0}, "needs a null conditioning"),
    ],
)
def test_what_cannot_be_gone_back(mixture: Mixture, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(mixture.denoiser(), NOTHING, None, torch.zeros(1, 1), replace(DDIM, **change))  # type: ignore[arg-type]


def test_one_step_from_pure_noise_cannot_be_gone_back(zero_snr_mixture: Mixture) -> None:
    for mixture in (zero_snr_mixture, Mixture(Schedule("cosine"))):  # the second begins in all but pure noise
        with pytest.raises(ValueError, match="take more steps"):
            invert(mixture.denoiser("v"), NOTHING, None, torch.zeros(1, 1), replace(DDIM, steps=1))
    with pytest.raises(ValueError, match="counted from 0"):
        invert(zero_snr_mixture.denoiser("v"), NOTHING, None, torch.zeros(1, 1), DDIM, refinements=-1)


def test_the_arc_between_noises() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, 50, 50, generator=source)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    assert float(middle.std()) == pytest.approx(1, abs=0.02), "half of each, added, would have 0.71"
    torch.testing.assert_close(slerp(a, b, torch.tensor([0.5, 1.0])), torch.stack([middle[0], b[1]]))


def test_the_arc_between_unit_vectors() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    angle = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64) * torch.pi / 2
    turned = slerp(a.expand(4, -1), b.expand(4, -1), angle / (torch.pi / 2))
    torch.testing.assert_close(turned, torch.stack([angle.cos(), angle.sin()], 1).float())
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 1e-7]]), dim=1)
    assert torch.isfinite(slerp(a, near, 0.3)).all()
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    with pytest.raises(ValueError, match="no arc"):
        slerp(a, -a, 0.5)
