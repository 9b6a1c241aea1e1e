"""Muon: updates without a preferred direction, and AdamW where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.train.muon import RMS, orthogonal
from zoo.train.optimise import adamw, optimiser
from zoo.train.recipe import Optimiser

MUON = Optimiser(kind="muon", lr=1e-2, weight_decay=0.1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.GroupNorm(4, 24), nn.Conv2d(24, 32, 3), nn.Flatten(), nn.Linear(32, 24)
    )


def descend(model: nn.Module, steps: int, moving: torch.optim.Optimizer) -> list[float]:
    images = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    wanted = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(steps):
        loss = (model(images) - wanted).square().mean()
        moving.zero_grad()
        loss.backward()
        moving.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 20, 50), (2, 50, 20), (1, 32, 32)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0))
        * torch.tensor([5.0, 0.01, 1.0])[: shape[0], None, None]
    )
    made = orthogonal(matrices)
    values = torch.linalg.svdvals(made.float())
    assert made.dtype == torch.float32
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.65
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.cosine_similarity(made.flatten(1), (left @ right).flatten(1))
    assert (cosine > 0.9).all(), "near the nearest orthogonal matrix"


def test_no_gradient_no_direction() -> None:
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


def test_it_trains() -> None:
    model = net()
    losses = descend(model, 60, optimiser(MUON, model))
    assert losses[-1] < 0.1 * losses[0]


def test_only_hidden_matrices_move_orthogonally() -> None:
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = net()
    descend(model, 1, optimiser(MUON, model))
    descend(plain, 1, adamw(MUON, plain))
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - before[name]
        if name in ("2.weight", "4.weight"):
            values = torch.linalg.svdvals((moved + MUON.lr * MUON.weight_decay * before[name]).flatten(1))
            gradients = torch.linalg.svdvals(dict(model.named_parameters())[name].grad.flatten(1))  # type: ignore[union-attr]
            assert float(values[0] / values[11]) < 2 < float(gradients[0] / gradients[11]), name
            reach = MUON.lr * RMS * max(parameter.flatten(1).shape) ** 0.5
            assert float(values[0]) == pytest.approx(reach, rel=0.35), "as far as AdamW typically goes"
        else:
            theirs = dict(plain.named_parameters())[name].detach()
            assert torch.allclose(parameter.detach(), theirs, atol=1e-6), name


def test_embeddings_and_unused_parameters_are_left_to_adamw() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(40, 32), "idle": nn.Linear(32, 32), "used": nn.Linear(32, 32)})
    moving = optimiser(MUON, model)
    orthogonally = {id(p) for group in moving.param_groups if group["orthogonal"] for p in group["params"]}
    assert orthogonally == {id(model["idle"].weight), id(model["used"].weight)}  # type: ignore[union-attr]
    idle: Tensor = model["idle"].weight.detach().clone()  # type: ignore[union-attr, operator, assignment]
    model["used"](model["table"](torch.arange(5))).square().mean().backward()
    moving.step()
    assert torch.equal(model["idle"].weight, idle)  # type: ignore[union-attr, arg-type]
