"""The optimiser, its learning rate over a run, and the averaged copy of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from zoo.train.muon import muon
from zoo.train.recipe import Optimiser


def learning_rate(settings: Optimiser, step: int, progress: float) -> float:
    """The rate of step `step` (from 0) at `progress` in [0, 1]: a linear warm-up counted in steps, then the decay."""
    progress = min(max(progress, 0.0), 1.0)
    shares = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 + 0.5 * math.cos(math.pi * progress)}
    rise = min(1.0, (step + 1) / (settings.warmup + 1))
    return settings.lr * rise * (settings.final + (1 - settings.final) * shares[settings.decay])


def optimiser(
    settings: Optimiser, model: nn.Module, pace: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """The optimiser that a recipe asks for, over the trained parameters.

    `pace` gives for a parameter's name what its learning rate is multiplied by; Muon has one rate for all.
    """
    if settings.kind == "muon":
        return muon(settings.lr, settings.betas, settings.weight_decay, model)
    return adamw(settings, model, pace)


def adamw(settings: Optimiser, model: nn.Module, pace: Callable[[str], float] = lambda name: 1.0) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over the trained parameters; only matrices and kernels decay."""
    trained = [(pace(name), p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for mine, p in trained if mine == share and (p.ndim >= 2) == decays],
            "weight_decay": settings.weight_decay if decays else 0.0,
            "pace": share,
        }
        for share in sorted({share for share, _ in trained})
        for decays in (True, False)
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, fused=True)


class Ema:
    """An exponential moving average of a model's weights, as a model of its own that is never trained.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the average forgets its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the trained weights, after step `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged = cast(list[Tensor], [mine for mine, _ in self._pairs])
        torch._foreach_lerp_(averaged, [theirs.detach() for _, theirs in self._pairs], weight)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
