from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoo.train.optimise import Ema, adamw, learning_rate
from zoo.train.recipe import Optimiser


@pytest.mark.parametrize(
    ("decay", "progress", "share"),
    [
        ("constant", 0.9, 1.0),
        ("linear", 0.25, 0.775),
        ("cosine", 0.5, 0.55),
        ("cosine", 1.0, 0.1),
        ("linear", 2.0, 0.1),
    ],
)
def test_decay_runs_from_the_rate_to_its_final_share(decay: str, progress: float, share: float) -> None:
    settings = Optimiser.model_validate({"lr": 2.0, "warmup": 0, "decay": decay, "final": 0.1})
    assert learning_rate(settings, 100, progress) == pytest.approx(2.0 * share)


def test_warmup_rises_linearly_from_above_zero() -> None:
    settings = Optimiser(lr=1.0, warmup=4, decay="constant")
    assert [learning_rate(settings, step, 0.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_only_matrices_decay_and_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2).requires_grad_(False))
    groups = adamw(Optimiser(weight_decay=0.5), model).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.5), (3, 0.0)]


def test_average_follows_its_formula() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.5)
    expected = torch.ones(2)
    for step in range(30):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
            model.running_mean.fill_(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * math.sin(step)
    averaged = ema.model
    assert torch.allclose(averaged.weight, expected, atol=1e-6)
    assert torch.equal(averaged.running_mean, torch.full((2,), 29.0))  # buffers are copied, not averaged
    assert not any(p.requires_grad for p in averaged.parameters())
