"""The stages of a cascade with their networks, as a part's config names them and as its folder holds them.

A stage's weights lie in a folder of its own name. Every family that enlarges pictures reads and writes them here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

import torch
from pydantic import BaseModel, ConfigDict, model_validator

from zoo import tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, StageConfig
from zoo.efficient_unet import EfficientUNet, EfficientUNetConfig

NetworkConfig: TypeAlias = EfficientUNetConfig | AdmUNetConfig


class StagesConfig(BaseModel):
    """Stages in their order, each with its network; there may be none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[StageConfig, ...] = ()
    networks: tuple[NetworkConfig, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> StagesConfig:
        if len(self.stages) != len(self.networks):
            raise ValueError(f"{len(self.stages)} stages and {len(self.networks)} networks: one for each is needed")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError(f"the stages need names of their own, got {[stage.name for stage in self.stages]}")
        for stage, network in zip(self.stages, self.networks, strict=True):
            width = None if stage.text is None else stage.text.width
            if network.context_width != width:
                raise ValueError(f"stage {stage.name!r} reads text {width} wide, its network {network.context_width}")
        return self

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> StagesConfig:
        """What these stages are."""
        networks = tuple(cast(EfficientUNet | AdmUNet, stage.denoiser.network).config for stage in stages)
        return cls(stages=tuple(stage.config for stage in stages), networks=networks)

    @property
    def multiple(self) -> int:
        """What height and width of the last stage's pictures must be multiples of, so that each can make its own."""
        multiple, later = 1, 1
        for stage, network in zip(reversed(self.stages), reversed(self.networks), strict=True):
            multiple = math.lcm(multiple, later * network.downsampling, later * stage.factor)
            later *= stage.factor
        return multiple


def load_stages(folder: Path, config: StagesConfig) -> list[Stage]:
    """The stages of a part's folder.

    Raises:
        ValueError: the tensors do not fit, or a file is damaged.
    """
    stages = []
    for stage, shape in zip(config.stages, config.networks, strict=True):
        path = folder / weights(stage.name)
        network = tensors.load(partial(_network, shape), path)
        stages.append(Stage(network, stage))
    return stages


def save_stages(folder: Path, stages: Sequence[Stage], dtype: torch.dtype | None = None) -> list[Path]:
    """Write what `load_stages` reads, tensors as `dtype`; returns the files, relative to `folder`."""
    files = []
    for stage in stages:
        files.append(weights(stage.config.name))
        tensors.write(folder / files[-1], stage.denoiser.network.state_dict(), dtype)
    return files


def weights(name: str) -> Path:
    """Where the weights of the stage of this name lie."""
    return Path(name) / "model.safetensors"


def _network(config: NetworkConfig) -> EfficientUNet | AdmUNet:
    return AdmUNet(config) if isinstance(config, AdmUNetConfig) else EfficientUNet(config)
