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
from zoo.evaluate.enlarging import measure

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
