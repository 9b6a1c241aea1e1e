"""From a model's name to a pipeline: find its folder, read its config, load each part, put them together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch

from zoo import config as configs
from zoo import registry, weights
from zoo.config import ModelConfig, Role
from zoo.interface import Decoder, Generator, Sampling, TextEncoder
from zoo.pipeline import Pipeline


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    text_encoder: str | TextEncoder | None = None,
    generator: str | Generator | None = None,
    decoder: str | Decoder | None = None,
) -> Pipeline:
    """A pipeline for a shipped model's name, a model folder, or a hub id `owner/name`.

    device: "auto" takes an accelerator if there is one. dtype: float32 unless given; in lower precision a seed's
    picture is no longer promised to be the same in every batch. Each part may be replaced: by a variant that the model
    declares, by another model's part ("other-model/generator"), or by a part object.

    Raises:
        ValueError: no such model, part or device, damaged files, or parts that do not fit each other.
    """
    folder = registry.find(name_or_path)
    config = configs.read(folder)
    chosen: dict[Role, object] = {"text_encoder": text_encoder, "generator": generator, "decoder": decoder}
    labels: dict[Role, str] = {}
    parts: dict[Role, object] = {}
    for role, choice in chosen.items():
        parts[role] = _part(folder, config, role, choice) if choice is None or isinstance(choice, str) else choice
        if choice is None or isinstance(choice, str):
            labels[role] = choice if choice and "/" in choice else f"{config.name}/{choice or role}"
    pipeline = Pipeline(
        cast(TextEncoder, parts["text_encoder"]),  # Pipeline checks what they are
        cast(Generator, parts["generator"]),
        cast(Decoder, parts["decoder"]),
        name=config.name,
        defaults=Sampling(**config.defaults.model_dump()),
        size=config.resolution,
        labels=labels,
    )
    return pipeline.to(device, dtype)


def _part(folder: Path, config: ModelConfig, role: Role, choice: str | None) -> weights.Part:
    if choice is None or "/" not in choice:
        return weights.load_part(folder, config.part(role, choice))
    model, _, name = choice.rpartition("/")
    other = registry.find(model)
    return weights.load_part(other, configs.read(other).part(role, None if name == role else name))
