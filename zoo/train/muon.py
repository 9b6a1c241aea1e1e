"""Muon: momentum whose update is made orthogonal, for matrices and kernels; AdamW for all other parameters.

A matrix's momentum is replaced by the nearest matrix with equal singular values (Jordan et al. 2024, arXiv 2502.16982),
so that rare directions move as far as frequent ones. Kernels [out, in, height, width] count as matrices [out, in *
height * width]. torch has a Muon too, but for matrices alone, and these networks are mostly kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.train.precision import bf16_is_fast

QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c of x -> a x + b x^3 + c x^5, which draws [0, 1] towards 1 fastest
ROUNDS = 5
RMS = 0.2  # root mean square of AdamW's typical update, to which Muon's is scaled: one learning rate serves both


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal` true move by Muon, the others by AdamW with `betas`."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            (self._orthogonal if group["orthogonal"] else self._adamw)(group, moving)

    def _orthogonal(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            ahead = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov's
            shapes.setdefault(tuple(ahead.shape), []).append((parameter, ahead))
        for (rows, columns), alike in shapes.items():
            updates = orthogonal(torch.stack([ahead for _, ahead in alike]))
            for (parameter, _), update in zip(alike, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * RMS * max(rows, columns) ** 0.5)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        low, high = group["betas"]
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - low)
            state["exp_avg_sq"].mul_(high).addcmul_(gradient, gradient, value=1 - high)
            taken = float(state["step"])  # on the CPU, so that a GPU is not waited for
            spread = (state["exp_avg_sq"] / (1 - high**taken)).sqrt_().add_(group["eps"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - low**taken))


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [n, rows, columns] with their singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if bf16_is_fast(x.device.type):  # up to three times as fast there, and the iteration forgives rounding
        x = x.bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices)


def muon(lr: float, betas: tuple[float, float], weight_decay: float, model: nn.Module) -> Muon:
    """Muon for the hidden matrices and kernels of a model, a CLIP's table of positions among them; AdamW for vectors,
    and for what touches data on either side: embeddings of words, and kernels from or to few channels."""
    trained = [p for p in model.parameters() if p.requires_grad]
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}

    def hidden(parameter: Tensor) -> bool:
        return parameter.ndim >= 2 and parameter not in tables and min(parameter.shape[0], parameter.shape[1]) > 16

    groups = [
        {"params": [p for p in trained if hidden(p)], "weight_decay": weight_decay, "orthogonal": True},
        {"params": [p for p in trained if not hidden(p) and p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Muon([group for group in groups if group["params"]], lr, betas)
