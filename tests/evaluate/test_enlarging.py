"""What is said of cascades, on enlargers whose quality is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.draw import render
from zoo.data.scenes import random_scene
from zoo.evaluate.enlarging import measure, speckle

N = 12


def true_pictures() -> Tensor:
    rng = np.random.default_rng(2_000_000)
    scenes = [random_scene(rng, split="dev" if i % 3 == 2 else "train") for i in range(N)]
    return torch.from_numpy(np.stack([render(scene, 64) for scene in scenes])).permute(0, 3, 1, 2).float() / 255


def test_the_truth_is_found_right() -> None:
    pictures, asked = true_pictures(), list[str]()

    def oracle(small: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        asked.extend(prompts)
        rows = [seed - 2_000_000 for seed in seeds]
        assert torch.allclose(F.avg_pool2d(pictures[rows], 2), small)
        return pictures[rows]

    found = measure(oracle, 2, n=N, batch=5)
    assert found["ok"] == 1
    assert found["colour_error"] == pytest.approx(0, abs=1e-4)
    assert found["psnr"] == float("inf")
    assert found["speckle"] < 1, "a drawing's own shading"
    assert len(asked) == found["scenes"] == N
    assert any(text.isascii() for text in asked)
    assert any(not text.isascii() for text in asked)


def test_a_shift_of_colour_and_blocks_are_told() -> None:
    def blocks(small: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return F.interpolate(small, scale_factor=2)

    def shifted(small: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return blocks(small, prompts, seeds) * 0.9

    plain, darker = measure(blocks, 2, n=N), measure(shifted, 2, n=N)
    assert plain["colour_error"] == pytest.approx(0, abs=1e-3), "repeated pixels have their own mean"
    assert darker["colour_error"] > 5
    assert darker["psnr"] < plain["psnr"] < 35


def test_grain_is_told_from_edges() -> None:
    pictures = true_pictures()
    moved = pictures.roll(1, 3)
    grainy = pictures + 10 / 255 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    assert speckle(moved, pictures).max() * 255 < 2, "outlines that are off by a pixel are no grain"
    # A mean of 25 pixels takes a twenty-fifth of the noise's variance with it.
    assert speckle(grainy, pictures) * 255 == pytest.approx(10 * (24 / 25) ** 0.5, rel=0.1)
    assert speckle(grainy, torch.rand(pictures.shape)).max() == 0, "nothing is flat"
