"""Training a U-Net that is also told what goes where: a semantic map joined with the latents (arXiv 2112.10752).

It starts as a trained text-to-image U-Net whose first convolution gets channels for the map, zero at first, so that it
draws as before and learns from there. A share of the maps is left out, so that it still draws without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.data.maps import CLASSES, as_picture, draw_map
from zoo.diffusion import draws
from zoo.diffusion.ports import rows
from zoo.evaluate.foreground import SIDE
from zoo.evaluate.maps import MEASURES, means, measure, painted
from zoo.interface import Conditioning
from zoo.stable_diffusion.conditioning import map_channels
from zoo.stable_diffusion.parts import UNET
from zoo.train.cache import CHUNK, PROBED, Array, Scenes, filled, fingerprint, picked, root, scenes
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Image, grid, to_float
from zoo.train.text_to_image import AT_ONCE, JUDGED_SEED, said
from zoo.train.unet import UNetRecipe, UNetTask

STEM = "stem.weight"


class MapRecipe(UNetRecipe):
    """The recipe of a U-Net with a map; `model.in_channels` counts the latent's channels and one for each class."""

    map_dropout: float = Field(0.15, ge=0, le=1)  # share of maps left out, beside the share of captions
    shown: int = Field(16, ge=1)  # fresh scenes that the sample grid shows and judges, their maps beside them
    judged: int = 0  # no scenes without a map

    @model_validator(mode="after")
    def _judges_maps(self) -> Self:
        if self.judged or "prompts" in self.model_fields_set:
            raise ValueError("fresh maps are drawn and judged, `shown` of them: leave out judged and prompts")
        return self


class MapTask(UNetTask):
    """Batches with a map of every scene."""

    recipe_type = MapRecipe
    classes = CLASSES

    def __init__(self, recipe: MapRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.left_out = recipe.map_dropout
        self.maps = maps(scenes(recipe.data))
        self.painted = painted(recipe.shown, JUDGED_SEED)
        with torch.no_grad():
            self.painted_text = said(self.text.encode([one.prompt for one in self.painted]))

    def start(self, model: nn.Module, folder: Path) -> None:
        """From a U-Net with maps or without: channels that it lacks begin at zero."""
        weights = tensors.read(folder / UNET)
        if STEM in weights and weights[STEM].shape[1] < self.unet.in_channels:
            missing = self.unet.in_channels - weights[STEM].shape[1]
            weights[STEM] = F.pad(weights[STEM], (0, 0, 0, 0, 0, missing))
        tensors.assign(model.get_submodule("network"), weights, source=folder / UNET)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        return super().rows(rows, rng) | {"map": torch.from_numpy(picked(self.maps, rows))}

    def clean(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        x0, text = super().clean(batch)
        # Drawn on the CPU, as times and noise are: the same maps are left out wherever the run goes on.
        left_out = (draws.rand((len(x0), 1, 1, 1)) < self.left_out).to(x0.device)
        channels = self._channels(batch["map"]).masked_fill(left_out, 0)
        return x0, replace(text, concat=channels.contiguous(memory_format=self.layout))

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Fresh maps, each followed by its picture, and what the pictures keep of them."""
        shown, kept = [], []
        for start in range(0, len(self.painted), AT_ONCE):
            asked = self.painted[start : start + AT_ONCE]
            layouts = torch.stack([one.layout for one in asked])
            channels = self._channels(layouts.to(self.device))
            text = replace(rows(self.painted_text, range(start, start + len(asked))), concat=channels)
            made = self._draw(model, text, [one.seed for one in asked]).float().cpu()
            for one, picture in zip(asked, made, strict=True):
                kept.append(measure(one, (picture / 2 + 0.5).clamp(0, 1)))
                colours = np.array(as_picture(one.layout.numpy()).convert("RGB"))
                shown += [to_float(torch.from_numpy(colours)[None])[0], picture]
        figures = means(kept)
        return grid(torch.stack(shown), columns=8), {name.replace(" ", "_"): figures[name] for name in MEASURES}

    def _check(self) -> None:
        if self.recipe.data.size != SIDE:
            raise RecipeError(
                f"data.size = {self.recipe.data.size}, but maps are judged at {SIDE}: set data.size={SIDE}"
            )
        super()._check()

    def _channels(self, layouts: Tensor) -> Tensor:
        return map_channels(layouts, len(CLASSES), self.vae.downsampling)


def maps(pictures: Scenes) -> Array:
    """The maps of all scenes, uint8 [scenes, size, size]; drawn now unless an earlier run drew them."""
    size = pictures.images.shape[1]

    def drawn() -> Iterator[Array]:
        chunk = []
        for scene in pictures:
            chunk.append(draw_map(scene, size))
            if len(chunk) == CHUNK:
                yield np.stack(chunk)
                chunk = []
        if chunk:
            yield np.stack(chunk)

    # Named by what the first maps look like, so that maps drawn by other code are not taken for current ones.
    probe = [draw_map(scene, size).tobytes() for scene, _ in zip(pictures, range(PROBED), strict=False)]
    folder = root() / f"maps-{fingerprint(pictures.folder.name, *probe)}"
    return filled(folder, (len(pictures), size, size), drawn(), what="drawing maps", dtype=np.uint8)
