"""Each phase of a teacher's way in one step: where the student arrives, and what it learns from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.test_consistency import DEVIATION, NULL, SCHEDULE, data, teacher
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.guidance import guided
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.phases import led, loss, noised, phases
from zoo.diffusion.sample import sample
from zoo.diffusion.samplers import SAMPLERS
from zoo.diffusion.spacing import Grid, make_grid
from zoo.interface import Conditioning, Sampling

FEW = Sampling(steps=4, sampler="ddim", spacing="trailing*2")
LED = Sampling(sampler="dpmpp_2m", guidance=3.0)
WALKS = phases(SCHEDULE, FEW, 5)


def _no_noise(step: int) -> Tensor:
    raise AssertionError("drawn by no deterministic sampler")


class Walked(nn.Module):
    """The student that phased distillation looks for: it walks its teacher's way to the end of the phase itself."""

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        (walk,) = (walk for walk in WALKS if walk.t[0] == t[0])
        *_, last = SAMPLERS["dpmpp_2m"](guided(teacher(), conditioning, NULL, LED), x, walk, _no_noise)
        (alpha, end_alpha), (sigma, end_sigma) = walk.alpha[[0, -1]].tolist(), walk.sigma[[0, -1]].tolist()
        return (last.x - end_sigma / sigma * x) / (end_alpha - alpha * end_sigma / sigma)


class Lines(nn.Module):
    """A student that can say the truth: in every phase a share of the state and one of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Embedding(SCHEDULE.steps, 2)
        nn.init.zeros_(self.shares.weight)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.vector is not None
        of_state, of_mean = self.shares(t.long()).chunk(2, 1)
        return of_state * x + of_mean * conditioning.vector


def drawn(denoiser: Denoiser, sampling: Sampling, grid: Grid | None = None) -> Tensor:
    conditioning = Conditioning(vector=torch.linspace(-1, 1, 64)[:, None])
    return sample(denoiser, conditioning, NULL, ImageNoise(range(64)), sampling, (64, 3), grid=grid)


def test_phases_join_where_the_student_stops() -> None:
    stops = make_grid(SCHEDULE, 4, "trailing*2").t
    assert [walk.t[0] for walk in WALKS] == stops[:-1].tolist()
    assert [walk.t[-1] for walk in WALKS] == stops[1:].tolist()
    assert all(walk.steps == 5 and bool((walk.t.diff() < 0).all()) for walk in WALKS)


def test_who_has_learned_it_arrives_where_the_teacher_does() -> None:
    """The teacher begins each phase without a memory of the last one, so its way is that of the four walks."""
    student = Denoiser(Walked(), SCHEDULE, "x0")
    x = torch.cat([ImageNoise([seed]).draw("sample", -1, (1, 3)) for seed in range(64)])
    conditioning = Conditioning(vector=torch.linspace(-1, 1, 64)[:, None])
    predict = guided(teacher(), conditioning, NULL, LED)
    for walk in WALKS:
        *_, last = SAMPLERS["dpmpp_2m"](predict, x, walk, _no_noise)
        x = last.x
    torch.testing.assert_close(drawn(student, FEW), x, atol=1e-4, rtol=1e-4)


def test_the_loss_is_zero_for_the_truth_alone() -> None:
    x0, text = data(256, torch.Generator().manual_seed(0))
    for walk in WALKS:
        said = [
            loss(student, teacher(), noised(x0, walk, torch.Generator().manual_seed(1)), text, NULL, walk, LED).item()
            for student in (Denoiser(Walked(), SCHEDULE, "x0"), teacher())
        ]
        assert said[0] < 1e-5 < 0.05 < said[1]


@pytest.mark.parametrize("begins", ["data", "own"])
def test_a_student_learns_to_draw_in_four_steps_what_its_teacher_draws_in_many(begins: str) -> None:
    student = Denoiser(Lines(), SCHEDULE, "x0")
    source = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.05)
    for step in range(800):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 800)
        phase = step % 4
        x0, text = data(64, source)
        own = led(student, torch.randn(x0.shape, generator=source), text, WALKS[:phase])
        x = own if begins == "own" else noised(x0, WALKS[phase], source)
        value = loss(student, teacher(), x, text, NULL, WALKS[phase], LED)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
    many = drawn(teacher(), Sampling(steps=100, sampler="dpmpp_2m", guidance=3.0))
    few = drawn(student, FEW)
    untaught = drawn(teacher(), Sampling(steps=4, spacing="trailing*2", sampler="ddim", guidance=3.0))
    assert (few - many).abs().mean() < 0.1 * DEVIATION
    assert (few - many).abs().mean() < 0.3 * (untaught - many).abs().mean()


def test_where_the_students_steps_lead_is_where_they_lead_when_it_draws() -> None:
    student = Denoiser(Walked(), SCHEDULE, "x0")
    conditioning = Conditioning(vector=torch.linspace(-1, 1, 64)[:, None])
    noise = torch.cat([ImageNoise([seed]).draw("sample", -1, (1, 3)) for seed in range(64)])
    torch.testing.assert_close(led(student, noise, conditioning, WALKS), drawn(student, FEW), atol=1e-5, rtol=1e-5)
    assert led(student, noise, conditioning, WALKS[:0]).equal(noise)


def test_errors() -> None:
    x0, text = data(2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="the teacher's sampler draws noise"):
        loss(teacher(), teacher(), x0, text, NULL, WALKS[1], Sampling(sampler="ddpm", guidance=3.0))
    with pytest.raises(ValueError, match="phase from time 999 to 899 has no room for 200 steps"):
        phases(SCHEDULE, Sampling(steps=10), 200)
