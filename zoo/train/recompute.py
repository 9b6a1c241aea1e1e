"""Activations that are computed again in the backward pass, not kept for it (arXiv 1604.06174).

Of a block only what goes in is kept, so that memory grows with the number of blocks, not of their layers; each block is
computed once more, a third of a step at most. The results are the same.
"""

from __future__ import annotations

from contextvars import copy_context
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from zoo.dalle2.transformer import CausalBlock
from zoo.nn.attention import ImageAttention
from zoo.nn.resnet import ResidualBlock
from zoo.nn.text import TextAttention
from zoo.nn.transformer import TransformerBlock

BLOCKS = (
    ResidualBlock,
    TransformerBlock,
    ImageAttention,
    TextAttention,
    CausalBlock,
    GradientCheckpointingLayer,  # of transformers' networks
)


def recompute(network: nn.Module) -> int:
    """Have the blocks of a network recomputed whenever gradients are taken; returns how many there are."""
    found = [module for module in network.modules() if isinstance(module, BLOCKS)]
    for module in found:
        # A method bound to its module, so that a copy of the network calls its own.
        module.forward = MethodType(_recomputed, module)  # type: ignore[method-assign]
    return len(found)


def _recomputed(module: nn.Module, *inputs: object, **named: object) -> Tensor:
    forward = type(module).forward
    if not torch.is_grad_enabled():
        return cast(Tensor, forward(module, *inputs, **named))
    # Which adapters act is said by the context, and the backward pass may run in another thread, or after it has ended.
    context = copy_context()

    def run(*again: object) -> Tensor:
        return cast(Tensor, context.copy().run(forward, module, *again, **named))

    return checkpoint(run, *inputs, use_reentrant=False)
