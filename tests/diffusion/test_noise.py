"""Noise belongs to the image: not to the batch, the order or the thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from zoo.diffusion.noise import INITIAL, GivenNoise, ImageNoise

SHAPE = (4, 8, 8)


def test_alone_in_a_batch_and_in_another_order() -> None:
    together = ImageNoise([1, 2, 3]).draw("base", 4, (3, *SHAPE))
    turned = ImageNoise([3, 1, 2]).draw("base", 4, (3, *SHAPE))
    assert torch.equal(turned, together[[2, 0, 1]])
    for i, seed in enumerate([1, 2, 3]):
        assert torch.equal(ImageNoise([seed]).draw("base", 4, (1, *SHAPE))[0], together[i])


def test_streams_differ_in_seed_stage_and_step() -> None:
    def draw(seed: int, stage: str, step: int) -> torch.Tensor:
        return ImageNoise([seed]).draw(stage, step, (1, 100))

    drawn = [
        draw(0, "a", 0),
        draw(1, "a", 0),
        draw(0, "b", 0),
        draw(0, "a", 1),
        draw(0, "a", INITIAL),
        draw(-1, "a", 0),
    ]
    correlation = torch.corrcoef(torch.cat(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 0.4


def test_standard_normal_in_float32_on_the_cpu() -> None:
    noise = ImageNoise(range(50)).draw("base", INITIAL, (50, 2000))
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_threads_draw_the_same() -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda i: ImageNoise([i % 4]).draw("base", 0, (1, *SHAPE)), range(32)))
    for i, noise in enumerate(drawn):
        assert torch.equal(noise, drawn[i % 4])


def test_given_initial_noise_then_the_streams() -> None:
    given, then = torch.randn(2, 3), ImageNoise([5, 6])
    source = GivenNoise(given, then)
    assert torch.equal(source.draw("base", INITIAL, (2, 3)), given)
    assert torch.equal(source.draw("base", 0, (2, 3)), then.draw("base", 0, (2, 3)))
    only_base = GivenNoise(given, then, stage="base")
    assert torch.equal(only_base.draw("up", INITIAL, (2, 9)), then.draw("up", INITIAL, (2, 9)))


def test_recorded_stream() -> None:
    recorded = {("base", INITIAL): torch.zeros(1, 2), ("base", 0): torch.ones(1, 2)}
    source = GivenNoise(recorded)
    assert source.draw("base", 0, (1, 2)).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="no noise was given for step 1 of stage 'base'"):
        source.draw("base", 1, (1, 2))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 3\], but stage 'base' needs \[2, 4\]"):
        GivenNoise(torch.randn(2, 3)).draw("base", INITIAL, (2, 4))
    with pytest.raises(ValueError, match="noise for 3 images was asked for, but there are 2 seeds"):
        ImageNoise([1, 2]).draw("base", INITIAL, (3, 4))
