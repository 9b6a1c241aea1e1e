"""What the page offers in tests: two models with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA, Target
from zoo.app.models import Models
from zoo.pipeline import Pipeline


@pytest.fixture
def models(shelf: Path) -> Models:
    """The page's models: one by its name, one by its folder."""
    return Models(["tiny", str(shelf / "other")], device="cpu")


def write_lora(pipe: Pipeline, path: Path, seed: int = 0) -> Path:
    """A LoRA for the U-Net of a pipeline, loud enough to be seen."""
    torch.manual_seed(seed)
    lora = LoRA.build(pipe.adaptable()["unet"].module, [Target(pattern="*.to_[qkv]", rank=2)])
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, {"unet": lora})
    return path
