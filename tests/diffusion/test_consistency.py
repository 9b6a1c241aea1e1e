"""Distilling a teacher whose paths are known exactly: data from a Gaussian whose mean is the condition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion import consistency
from zoo.diffusion.denoiser import Denoiser, target
from zoo.diffusion.guidance import guided
from zoo.diffusion.noise import INITIAL, ImageNoise
from zoo.diffusion.sample import sample
from zoo.diffusion.samplers import SAMPLERS
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid
from zoo.interface import Conditioning, Sampling
from zoo.train.optimise import Ema

SCHEDULE = Schedule("cosine")
RANGE = (1.0, 4.0)
DEVIATION = 0.5
NULL = Conditioning(vector=torch.zeros(1, 1))


class Exact(nn.Module):
    """The best answer for data from N(mean, DEVIATION^2). Guided away from mean 0: N(guidance * mean, ..)."""

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.vector is not None
        alpha, sigma = (level.to(x).view(-1, 1) for level in SCHEDULE.at(t))
        spread = alpha**2 * DEVIATION**2 + sigma**2
        x0 = conditioning.vector + alpha * DEVIATION**2 / spread * (x - alpha * conditioning.vector)
        return target("v", x0, (x - alpha * x0) / sigma, alpha, sigma)


class Table(nn.Module):
    """A student that can say the truth: at every time a share of the state and one of guidance * mean."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Embedding(SCHEDULE.steps, 2)
        nn.init.zeros_(self.shares.weight)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.vector is not None
        assert conditioning.guidance is not None
        of_state, of_mean = self.shares(t.long()).chunk(2, 1)
        return of_state * x + of_mean * conditioning.guidance[:, None] * conditioning.vector


def teacher() -> Denoiser:
    return Denoiser(Exact(), SCHEDULE, "v")


def student() -> Denoiser:
    return Denoiser(Table(), SCHEDULE, "x0", guidance_range=RANGE)


def endpoint(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """Where the path of the guided teacher through x at times t ends."""
    alpha, sigma = (level.to(x).view(-1, 1) for level in SCHEDULE.at(t))
    return mean + DEVIATION * (x - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2).sqrt()


def truth() -> Denoiser:
    """The student that distillation looks for."""
    network = Table()
    alpha, sigma = SCHEDULE.at(torch.arange(SCHEDULE.steps))
    of_state = DEVIATION / (alpha**2 * DEVIATION**2 + sigma**2).sqrt()
    network.shares.weight.data = torch.stack([of_state, 1 - alpha * of_state], 1).float()
    return Denoiser(network, SCHEDULE, "x0", guidance_range=RANGE)


def data(batch: int, generator: torch.Generator) -> tuple[Tensor, Conditioning]:
    mean = torch.randn(batch, 1, generator=generator)
    return mean + DEVIATION * torch.randn(batch, 3, generator=generator), Conditioning(vector=mean)


@pytest.fixture(scope="module", params=[0.001, None], ids=["huber", "squared"])
def distilled(request: pytest.FixtureRequest) -> Denoiser:
    """A student after as much training as the toy needs; its averaged weights, as they would ship."""
    model = student()
    ema, optimiser = Ema(model, 0.9), torch.optim.Adam(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(600):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 600)
        x0, text = data(512, generator)
        averaged = ema.model
        assert isinstance(averaged, Denoiser)
        value = consistency.loss(
            model, averaged, teacher(), x0, text, NULL, skip=100, huber=request.param, generator=generator
        )
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        ema.update(step)
    assert isinstance(ema.model, Denoiser)
    return ema.model


def test_one_step_goes_where_the_teacher_goes_in_many(distilled: Denoiser) -> None:
    noise, mean = ImageNoise(range(64)), torch.linspace(-1, 1, 64).view(-1, 1)
    text = Conditioning(vector=mean)
    for guidance in (1.0, 2.5, 4.0):
        settings = Sampling(10, "ddim", "trailing", guidance=guidance)
        wanted = sample(teacher(), text, NULL, noise, settings, (64, 3))
        found, before = (
            sample(model, text, None, noise, Sampling(1, "lcm", "lcm", guidance=guidance), (64, 3))
            for model in (distilled, student())
        )
        assert (found - wanted).abs().mean() < 0.01
        assert (before - wanted).abs().mean() > 0.3  # the untrained student is far away
        exact = endpoint(noise.draw("sample", INITIAL, (64, 3)), torch.full((64,), 999), guidance * mean)
        assert (found - exact).abs().mean() < 0.08  # the rest is what ten steps of DDIM leave


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_have_the_guided_distribution(distilled: Denoiser, steps: int) -> None:
    mean = torch.full((1000, 1), 0.5)
    settings = Sampling(steps, "lcm", "lcm", guidance=3.0)
    made = sample(distilled, Conditioning(vector=mean), None, ImageNoise(range(1000)), settings, (1000, 3))
    assert made.mean().item() == pytest.approx(1.5, abs=0.05)
    assert made.std().item() == pytest.approx(DEVIATION, rel=0.2)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("start", "end"), [(999, 979), (499, 399), (19, 0)])
def test_the_teachers_step_is_the_samplers(guidance: float, start: int, end: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, text = data(8, generator)
    predict = guided(teacher(), text, NULL, Sampling(guidance=guidance))
    wanted = next(SAMPLERS["ddim"](predict, x, Grid.at(SCHEDULE, [start, end]), lambda step: x)).x
    times = (torch.full((8,), float(t)) for t in (start, end))
    found = consistency.step(teacher(), x, *times, text, NULL, torch.full((8,), guidance))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_each_sample_of_a_step_has_its_own_guidance() -> None:
    """Also where some of them need no second prediction."""
    x, text = data(3, torch.Generator().manual_seed(1))
    times = [torch.full((3,), float(t)) for t in (499, 479)]
    scales = torch.tensor([2.0, 1.0, 4.0])
    found = consistency.step(teacher(), x, *times, text, NULL, scales)
    for index, scale in enumerate(scales):
        alone = consistency.step(teacher(), x, *times, text, NULL, scale.expand(3))
        torch.testing.assert_close(found[index], alone[index])


def test_at_time_zero_a_state_is_its_own_estimate() -> None:
    x, text = data(4, torch.Generator().manual_seed(2))
    told = replace(text, guidance=torch.full((4,), 2.0))
    assert torch.equal(consistency.estimate(student(), x, torch.zeros(4), told), x)
    torch.testing.assert_close(
        consistency.estimate(truth(), x, torch.full((4,), 500.0), told),
        endpoint(x, torch.full((4,), 500), 2 * text.vector),
        atol=1e-4,
        rtol=1e-4,
    )  # type: ignore[operator]


def test_only_what_is_true_on_all_paths_has_no_loss() -> None:
    """The truth's loss is the teacher's error of a step, which grows with the step; a wrong student's is large."""
    x0, text = data(4096, torch.Generator().manual_seed(3))

    def loss(model: Denoiser, skip: int) -> float:
        fixed = torch.Generator().manual_seed(4)
        return consistency.loss(model, model, teacher(), x0, text, NULL, skip=skip, huber=None, generator=fixed).item()

    assert loss(truth(), 20) < 1e-3
    assert loss(truth(), 20) < loss(truth(), 100) < loss(truth(), 400)
    wrong = truth()
    assert isinstance(wrong.network, Table)
    with torch.no_grad():
        wrong.network.shares.weight[:, 1] = 0  # blind to the condition
    assert loss(wrong, 20) > 10 * loss(truth(), 20)


def test_the_teacher_is_guided_within_its_interval_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    step = consistency.step

    def watched(teacher: Denoiser, x: Tensor, t: Tensor, end: Tensor, *rest: object) -> Tensor:
        seen.append((t, rest[-1]))  # type: ignore[arg-type]
        return step(teacher, x, t, end, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(consistency, "step", watched)
    for interval in (None, (0.5, 5.0)):
        generator = torch.Generator().manual_seed(1)
        x0, said = data(64, generator)
        consistency.loss(student(), truth(), teacher(), x0, said, NULL, interval=interval, generator=generator)
    (times, everywhere), (same, within) = seen
    assert torch.equal(times, same)
    alpha, sigma = SCHEDULE.at(times)
    inside = (sigma / alpha >= 0.5) & (sigma / alpha <= 5)
    assert 8 < inside.sum() < 56
    assert torch.equal(within, torch.where(inside, everywhere, 1.0))


def test_only_the_student_learns() -> None:
    model, aim = student(), student()
    x0, text = data(64, torch.Generator().manual_seed(5))
    consistency.loss(model, aim, teacher(), x0, text, NULL).backward()
    assert isinstance(model.network, Table)
    assert isinstance(aim.network, Table)
    assert model.network.shares.weight.grad is not None
    assert aim.network.shares.weight.grad is None


@pytest.mark.parametrize(
    ("taught", "teaches", "skip", "message"),
    [
        (teacher(), teacher(), 20, "takes none as an input: give the lowest and the highest"),
        (student(), student(), 20, "it is itself distilled"),
        (Denoiser(Table(), Schedule("linear"), "x0", guidance_range=RANGE), teacher(), 20, "schedule"),
        (student(), teacher(), 30, "skip=30, times 20 apart"),
        (student(), teacher(), 0, "skip=0"),
    ],
)
def test_errors(taught: Denoiser, teaches: Denoiser, skip: int, message: str) -> None:
    x0, text = data(4, torch.Generator().manual_seed(6))
    with pytest.raises(ValueError, match=message):
        consistency.loss(taught, taught, teaches, x0, text, NULL, skip=skip)


def test_guidance_outside_what_the_student_takes_is_refused() -> None:
    x0, text = data(4, torch.Generator().manual_seed(6))
    with pytest.raises(ValueError, match=r"guidance=\(1.0, 99.0\) of the teacher"):
        consistency.loss(student(), student(), teacher(), x0, text, NULL, guidance=(1.0, 99.0))


def test_a_student_that_takes_no_guidance_learns_what_it_is_given() -> None:
    """Then the guided teacher's own end is what is aimed at, whatever the student is told."""
    x0, text = data(512, torch.Generator().manual_seed(6))

    def loss(guidance: float) -> float:
        fixed = torch.Generator().manual_seed(4)
        same = {"guidance": (guidance, guidance), "huber": None, "generator": fixed}
        return consistency.loss(teacher(), teacher(), teacher(), x0, text, NULL, **same).item()  # type: ignore[arg-type]

    assert loss(1.0) < loss(3.0) < loss(6.0)
