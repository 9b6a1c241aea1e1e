"""The one way to sample: img2img, inpainting, early stop, images independent of each other, threads, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from zoo.diffusion.noise import INITIAL, GivenNoise, ImageNoise
from zoo.diffusion.sample import sample
from zoo.diffusion.samplers import SAMPLERS
from zoo.interface import Conditioning, Init, Sampling, Step

if TYPE_CHECKING:
    from tests.diffusion.conftest import Mixture

NOTHING = Conditioning()
SHAPES = [(3, 8), (3, 2, 4, 4)]


def draw(
    mixture: Mixture, sampling: Sampling, seeds: list[int], shape: tuple[int, ...] = (2, 4, 4), **more: object
) -> Tensor:
    denoiser = mixture.denoiser("v")
    return sample(denoiser, NOTHING, None, ImageNoise(seeds), sampling, (len(seeds), *shape), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch_order_or_thread(mixture: Mixture, sampler: str) -> None:
    sampling = Sampling(steps=6, sampler=sampler)
    together = draw(mixture, sampling, [7, 8, 9])
    torch.testing.assert_close(draw(mixture, sampling, [9, 7, 8]), together[[2, 0, 1]], rtol=0, atol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda seed: draw(mixture, sampling, [seed]), [7, 8, 9, 7, 8, 9]))
    for i, image in enumerate(alone):
        torch.testing.assert_close(image[0], together[i % 3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_every_sampler_begins_at_pure_noise_and_ends_at_data(
    zero_snr_mixture: Mixture, sampler: str, steps: int
) -> None:
    """On a zero-terminal-SNR schedule: no infinity on the way, and with enough steps the mixture's two modes."""
    data = draw(zero_snr_mixture, Sampling(steps=steps, sampler=sampler), list(range(8)), (100,))
    assert data.isfinite().all()
    assert data.abs().max() < 4
    if steps == 25:
        assert data.mean().item() == pytest.approx(zero_snr_mixture.mean, abs=0.15)
        assert data.std().item() == pytest.approx(zero_snr_mixture.variance**0.5, abs=0.15)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting_keeps_the_known_region_exactly(
    mixture: Mixture, sampler: str, shape: tuple[int, ...], strength: float
) -> None:
    known = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(shape[0], 1, *shape[2:]) if len(shape) > 2 else torch.zeros(shape)
    mask[..., :2] = 1
    init, sampling = Init(known, strength, mask), Sampling(steps=6, sampler=sampler)
    got = draw(mixture, sampling, [1, 2, 3], shape[1:], init=init)
    kept = (mask == 0).expand(shape)
    assert torch.equal(got[kept], known[kept])
    assert (got[~kept] - known[~kept]).abs().min() > 0


def test_inpainting_lets_the_new_region_see_the_known_one(mixture: Mixture) -> None:
    """The network meets the known region noised to each step's level, not the states of an unconstrained run."""
    known, mask = torch.full((1, 8), 3.0), torch.tensor([[0.0] * 4 + [1.0] * 4])
    noise = ImageNoise([0])
    alpha, sigma = mixture.schedule.at(torch.tensor([999, 799, 599, 399, 199]))
    seen = list[Tensor]()

    def watch(stage: str, step: Step) -> None:
        seen.append(step.x[:, :4])

    sample(
        mixture.denoiser("v"), NOTHING, None, noise, Sampling(steps=5, sampler="dpmpp_2m"), (1, 8),
        init=Init(known, 1.0, mask), observe=watch,
    )  # fmt: skip
    start = noise.draw("sample", INITIAL, (1, 8))[:, :4]
    for x, a, s in zip(seen[:-1], alpha[1:], sigma[1:], strict=True):  # the last is clean
        torch.testing.assert_close(x, (a * 3.0 + s * start).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_less_strength_stays_nearer_to_the_start(mixture: Mixture, shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3)).sign()
    distances = [
        (draw(mixture, Sampling(steps=20), [1, 2, 3], shape[1:], init=Init(start, strength)) - start)
        .abs()
        .mean()
        .item()
        for strength in (0.05, 0.3, 0.6, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_full_strength_forgets_the_start(mixture: Mixture) -> None:
    sampling = Sampling(steps=5)
    start = Init(torch.full((1, 2, 4, 4), 5.0), 1.0)
    assert torch.equal(draw(mixture, sampling, [1], init=start), draw(mixture, sampling, [1]))


def test_img2img_walks_the_end_of_the_grid(mixture: Mixture) -> None:
    times = list[float]()
    draw(
        mixture, Sampling(steps=10), [1], init=Init(torch.zeros(1, 2, 4, 4), 0.3),
        observe=lambda stage, step: times.append(step.t),
    )  # fmt: skip
    assert times == [299, 199, 99]


def test_observer_sees_every_step_and_may_stop(mixture: Mixture) -> None:
    seen = list[tuple[str, Step]]()

    def watch(stage: str, step: Step) -> bool:
        seen.append((stage, step))
        return step.index == 3

    got = draw(mixture, Sampling(steps=8), [1], stage="base", observe=watch)
    assert [(stage, step.index) for stage, step in seen] == [("base", i) for i in range(4)]
    assert torch.equal(got, seen[-1][1].x0)


def test_stage_and_steps_name_the_noise(mixture: Mixture) -> None:
    class Records(ImageNoise):
        asked: list[tuple[str, int]] = []  # noqa: RUF012

        def draw(self, stage: str, step: int, shape: object) -> Tensor:
            self.asked.append((stage, step))
            return super().draw(stage, step, shape)  # type: ignore[arg-type]

    sample(mixture.denoiser("v"), NOTHING, None, Records([0]), Sampling(steps=3, sampler="ddpm"), (1, 4), stage="base")
    assert Records.asked == [("base", -1), ("base", 0), ("base", 1)]  # none on the step to clean data


def test_given_noise_is_where_it_begins(mixture: Mixture) -> None:
    noise = torch.randn(1, 6)
    first, second = (
        sample(mixture.denoiser("v"), NOTHING, None, source, Sampling(steps=4), (1, 6))
        for source in (GivenNoise(noise), GivenNoise({("sample", -1): noise}))
    )
    assert torch.equal(first, second)


def test_gradients_are_not_recorded(mixture: Mixture) -> None:
    start = torch.zeros(1, 4, requires_grad=True)
    got = sample(
        mixture.denoiser("v"), NOTHING, None, ImageNoise([0]), Sampling(steps=2), (1, 4), init=Init(start, 0.5)
    )
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dpmpp_2n"}, "unknown sampler 'dpmpp_2n'; did you mean 'dpmpp_2m'"),
        ({"sampler": "zzz"}, "unknown sampler 'zzz'; there are ddpm"),
        ({"steps": 0}, "at least 1 step"),
        ({"eta": 0.5}, "a setting of the sampler 'ddim'"),
        ({"sampler": "ddim", "eta": 2.0}, r"eta is DDIM's randomness in \[0, 1\]"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
    ],
)
def test_settings_that_do_not_exist(mixture: Mixture, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(mixture, Sampling(**settings), [0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (Init(torch.zeros(1, 3)), r"init.data has shape \[1, 3\], but the sampled data has \[1, 2, 4, 4\]"),
        (Init(torch.zeros(1, 2, 4, 4), 0.0), "strength"),
        (Init(torch.zeros(1, 2, 4, 4), mask=torch.zeros(1, 1, 5, 5)), "does not stretch"),
        (Init(torch.zeros(1, 2, 4, 4), mask=torch.full((1, 1, 4, 4), 2.0)), r"outside \[0, 1\]"),
    ],
)
def test_inits_that_do_not_fit(mixture: Mixture, init: Init, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(mixture, Sampling(steps=2), [0], init=init)
