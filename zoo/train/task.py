"""What the training loop asks of a part: a model, batches, a loss, something to look at, and the weights to ship."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from zoo.train import TrainingError
from zoo.train.recipe import Recipe, RecipeT
from zoo.train.recompute import recompute

Batch: TypeAlias = dict[str, Tensor]
Metrics: TypeAlias = dict[str, Tensor]
Image: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"


class Task(ABC, Generic[RecipeT]):
    """One part as something to train. It holds data and frozen networks; the model that is trained is handed to it."""

    recipe_type: ClassVar[type[Recipe]]

    def __init__(self, recipe: RecipeT, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        wanted = recipe.channels_last if recipe.channels_last is not None else device.type == "cuda"
        self.layout: torch.memory_format = torch.channels_last if wanted else torch.contiguous_format

    @abstractmethod
    def build(self) -> nn.Module:
        """The model with its initial weights, in float32 on the CPU; the loop has seeded torch."""

    @abstractmethod
    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        """The batch of one step, on the CPU: a function of its arguments alone, so that a resumed run sees the same.

        It is called ahead of time in another thread, and must not touch torch's global random state.
        """

    def share(self, batch: Batch, rank: int, ranks: int) -> Batch:
        """The part of a batch that one of several processes trains on; they average their gradients.

        Raises:
            TrainingError: the processes would not get equally much.
        """
        for name, tensor in batch.items():
            if len(tensor) % ranks:
                raise TrainingError(f"{ranks} processes cannot share {len(tensor)} rows of {name!r} evenly")
        return {name: tensor[rank::ranks] for name, tensor in batch.items()}

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """The scalar to minimise and detached scalars to log; runs under autocast, torch seeded for this step.

        `progress` goes from 0 to 1 over the run. Random numbers for the batch come from `zoo.diffusion.draws`, so that
        processes which share it see those that one would.
        """

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """A picture uint8 [height, width, 3] and figures that show how good the averaged weights are."""
        return None, {}

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the finished part, with the averaged weights, into an empty folder."""

    def start(self, model: nn.Module, folder: Path) -> None:
        """Give the model the weights of an exported folder.

        Raises:
            TrainingError: this part cannot be started so.
            ValueError: the weights are of another model.
        """
        raise TrainingError(f"{self.recipe.part} cannot start from exported weights: remove init={folder}")

    def follow(self, average: nn.Module) -> None:
        """Told once, before the first step: the model of the running average of the weights, if the loss looks at it.

        It is moved after every step and must not be changed.
        """

    def pace(self, name: str) -> float:
        """What the recipe's learning rate is multiplied by for the model's parameter of this name."""
        return 1.0

    def recompute(self, model: nn.Module) -> int:
        """Have the blocks that gradients go through recomputed; returns how many there are."""
        return recompute(model)

    def compile(self, model: nn.Module) -> None:
        """Compile, in place, what `loss` calls.

        Raises:
            TrainingError: this part is not made to be compiled.
        """
        raise TrainingError(f"{self.recipe.part} is not made to be compiled: remove compile = true")


def write_config(folder: Path, said: Mapping[str, object]) -> None:
    """The config.json of an exported part: mostly the arguments with which its class loads it."""
    (folder / "config.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", "utf-8")


def grid(images: Tensor, columns: int) -> Image:
    """Images [batch, 3, height, width] in [-1, 1] as one picture, uint8 [rows*height, columns*width, 3]."""
    images = images.detach().float().cpu().clamp(-1, 1)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    rows, height, width = len(images) // columns, images.shape[2], images.shape[3]
    tiles = images.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    picture: Image = (tiles * 127.5 + 127.5).round().to(torch.uint8).reshape(rows * height, columns * width, 3).numpy()
    return picture


def to_float(images: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 [batch, height, width, 3] to float [batch, 3, height, width] in [-1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=layout)
