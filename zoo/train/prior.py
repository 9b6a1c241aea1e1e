"""Training the three priors of DALL-E 2 (arXiv 2204.06125): captions to CLIP image embeddings, all of it cached.

Scenes and captions pass both frozen towers of a CLIP once, before training. What a prior makes is compared with what
CLIP sees in fresh scenes: how alike the two are, and whether they are more alike than those of different scenes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from zoo import tensors
from zoo.clip import Clip
from zoo.dalle2 import autoregressive_prior, one_step_prior
from zoo.dalle2.autoregressive_prior import (
    AutoregressiveConfig,
    AutoregressivePrior,
    AutoregressivePriorConfig,
    AutoregressiveTransformer,
)
from zoo.dalle2.one_step_prior import OneStepPrior, OneStepPriorConfig
from zoo.dalle2.part import FILE, PriorPart
from zoo.dalle2.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig, PriorTransformer
from zoo.dalle2.transformer import SequenceConfig
from zoo.data.captions import caption
from zoo.data.draw import render
from zoo.data.scenes import Split, random_scene
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.objective import loss as objective
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Sampling, TextFeatures
from zoo.train import TrainingError
from zoo.train.cache import Array, Scenes, filled, fingerprint, picked, root
from zoo.train.recipe import RecipeError, Table
from zoo.train.task import Batch, Image, Metrics, to_float, write_config
from zoo.train.text_to_image import CHUNK, LANGUAGES, TextRecipe, TextTask, precision

FRESH = 256  # scenes of each half that a prior is asked for, and among which its embedding is looked up
HALVES: tuple[tuple[str, Split], ...] = (("seen", "train"), ("dev", "dev"))


class PriorModel(Table):
    """The `[model]` table: the Transformer. What it reads and makes, the CLIP settles."""

    width: int = 256
    heads: int = 8
    layers: int = 6
    expansion: int = 3  # of the feed-forward


class AutoregressiveModel(PriorModel):
    """The `[model]` table of an autoregressive prior."""

    dimensions: int = 64  # principal components of an embedding
    buckets: int = 256  # of each
    levels: int = 32  # of the similarity of image and text


class PriorRecipe(TextRecipe):
    """What the priors' recipes share; `text_encoder` is the folder of a CLIP, of which both towers are used."""

    model: PriorModel = PriorModel()
    dropout: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty one, for guidance
    candidates: int = Field(2, ge=1)  # drawn for each image, of which the one most like its text is kept
    guidance: float = Field(1.0, ge=0)  # of the figures; 1 is off, which the paper found best


class DiffusionPriorRecipe(PriorRecipe):
    """The recipe of a diffusion prior."""

    schedule: Schedule = Schedule("cosine")
    gamma: float | None = Field(None, gt=0)  # of the min-SNR weighting; the paper weighs all times alike
    clamp: float | None = Field(None, gt=0)  # of clean estimates, in deviations
    sample_steps: int = Field(20, ge=1)  # of the figures


class AutoregressivePriorRecipe(PriorRecipe):
    """The recipe of an autoregressive prior."""

    model: AutoregressiveModel = AutoregressiveModel()
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top: float = Field(0.5, gt=0, le=1)  # share of the similarities, from above, that sampling draws from


class OneStepPriorRecipe(PriorRecipe):
    """The recipe of a prior of one step."""

    contrast: float = Field(0.2, ge=0)  # weight of the contrastive loss


@dataclass(frozen=True)
class Asked:
    """Fresh scenes: the features of their captions, and the embeddings [scenes, width] of their pictures."""

    text: TextFeatures
    embeddings: Tensor


PriorRecipeT = TypeVar("PriorRecipeT", bound=PriorRecipe)


class PriorTask(TextTask[PriorRecipeT]):
    """Batches of CLIP image embeddings, text tokens and CLIP text embeddings."""

    config_type: ClassVar[type[SequenceConfig]] = PriorConfig
    pooled = True
    fixed: ClassVar[dict[str, object]] = {}  # fields of the network's config that make it this prior's

    def __init__(self, recipe: PriorRecipeT, device: torch.device) -> None:
        try:
            self.clip = Clip.load(recipe.text_encoder).to(device)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        super().__init__(recipe, device)
        with torch.no_grad():
            empty = self.text.null(1)
            self.null = Conditioning(tokens=empty.tokens.float(), vector=_pooled(empty).float())
            self.embeddings = embeddings(self.scenes, self.clip, device)
            self.asked = {half: self._ask(split) for half, split in HALVES}

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        """The batch of these scenes, each with one of its captions."""
        return {"embeddings": torch.from_numpy(picked(self.embeddings, rows))} | super().rows(rows, rng)

    def clean(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """The embeddings and the text of a batch, as networks take them."""
        text = Conditioning(tokens=batch["tokens"].float(), vector=batch["vectors"].float())
        return batch["embeddings"].float(), text

    @property
    def shape(self) -> dict[str, object]:
        """The network's config: what it reads and makes is settled by CLIP, the rest by the recipe."""
        spec = self.text.produces
        read = {"embedding": spec.pooled, "text_width": spec.width, "length": spec.length}
        return read | self.recipe.model.model_dump() | self.fixed

    @property
    def settled(self) -> dict[str, object]:
        """What every part's config says."""
        spaces = {"text": self.text.produces, "image_space": self.clip.image_space}
        return spaces | {"network": self.shape, "candidates": self.recipe.candidates}

    @property
    def sampling(self) -> Sampling:
        """How the embeddings that are looked at are drawn."""
        return Sampling(guidance=self.recipe.guidance)

    @abstractmethod
    def part(self, model: nn.Module) -> PriorPart:
        """The part of a pipeline that the model is."""

    @abstractmethod
    def network(self, model: nn.Module) -> nn.Module:
        """The network that the model is, or holds."""

    def start(self, model: nn.Module, folder: Path) -> None:
        tensors.assign(self.network(model), tensors.read(folder / FILE), source=folder / FILE)

    def compile(self, model: nn.Module) -> None:
        self.network(model).compile()

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Of fresh scenes, seen and of the dev half, asked for by a caption that says everything: the cosine of the
        embedding that is made and the true one, and how often no other scene's is nearer."""
        part, figures = self.part(model), {}
        # In full precision: cosines of different scenes lie closer together than bfloat16 can tell.
        with torch.autocast(self.device.type, enabled=False):
            for half, asked in self.asked.items():
                count = len(asked.embeddings)
                null = self.text.null(count)
                made = part.generate(asked.text, null, ImageNoise(range(count)), self.sampling).data.float()
                likeness = made @ asked.embeddings.T
                figures[f"cosine_{half}"] = float(likeness.diagonal().mean())
                nearest = likeness.argmax(1) == torch.arange(count, device=likeness.device)
                figures[f"retrieval_{half}"] = float(nearest.float().mean())
        return None, figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """prior/model.safetensors in half precision; config.json has the arguments for the part's `load`."""
        arguments, _ = self.part(model).save(folder, torch.float16)
        write_config(folder, arguments)

    def measured(self) -> Tensor:
        """All image embeddings, float32 on the CPU."""
        return torch.from_numpy(np.array(self.embeddings)).float()

    def _ask(self, split: Split) -> Asked:
        """Scenes that no cache holds, each with a caption that says everything, in English and Chinese by turns."""
        said, seen = [], []
        for index in range(FRESH):
            rng = np.random.default_rng([self.recipe.seed, 2**40, split == "dev", index])
            scene = random_scene(rng, split=split)
            said.append(caption(scene, LANGUAGES[index % 2], rng, full=True))
            seen.append(torch.from_numpy(render(scene, self.recipe.data.size)))
        pictures = to_float(torch.stack(seen)) / 2 + 0.5
        texts = [self.text.encode(said[start : start + CHUNK]) for start in range(0, FRESH, CHUNK)]
        text = TextFeatures(
            torch.cat([t.tokens for t in texts]), None, torch.cat([_pooled(t) for t in texts]), texts[0].space
        )
        return Asked(text, self.clip.embed_images(pictures.to(self.device)).float())

    def _check(self) -> None:
        if self.text.produces.pooled is None:
            raise RecipeError(f"text_encoder = {self.recipe.text_encoder} makes no CLIP text embedding: give a CLIP")
        try:
            self.config_type.model_validate(self.shape)
        except ValidationError as error:
            raise RecipeError(f"[model] cannot be: {'; '.join(e['msg'] for e in error.errors())}") from None


class DiffusionPriorTask(PriorTask[DiffusionPriorRecipe]):
    """Noise is to be told from standardised embeddings."""

    recipe_type = DiffusionPriorRecipe

    def build(self) -> nn.Module:
        network = PriorTransformer(PriorConfig.model_validate(self.shape))
        network.measure(self.measured())
        return Denoiser(network, self.recipe.schedule, "x0")

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        denoiser, (given, text) = cast(Denoiser, model), self.clean(batch)
        value = objective(
            denoiser,
            cast(PriorTransformer, denoiser.network).standardise(given),
            text,
            null=self.null,
            dropout=self.recipe.dropout,
            gamma=self.recipe.gamma,
            generator=torch.default_generator,  # the CPU's, which the loop has seeded for this step
        )
        return value, {}

    @property
    def sampling(self) -> Sampling:
        return Sampling(steps=self.recipe.sample_steps, guidance=self.recipe.guidance)

    def network(self, model: nn.Module) -> nn.Module:
        return cast(Denoiser, model).network

    def part(self, model: nn.Module) -> DiffusionPrior:
        said = self.settled | {"schedule": self.recipe.schedule, "clamp": self.recipe.clamp}
        network = cast(PriorTransformer, self.network(model))
        return DiffusionPrior.of(network, DiffusionPriorConfig.model_validate(said))


class AutoregressivePriorTask(PriorTask[AutoregressivePriorRecipe]):
    """Each code of an embedding is to be told from those before it."""

    recipe_type = AutoregressivePriorRecipe
    config_type = AutoregressiveConfig

    def build(self) -> nn.Module:
        network = AutoregressiveTransformer(AutoregressiveConfig.model_validate(self.shape))
        try:
            # Of every scene one caption: similarities differ between languages, and between full and partial captions.
            rng, count = np.random.default_rng([self.recipe.seed, 2**41]), self.recipe.captions
            rows = np.arange(len(self.embeddings)) * count + rng.integers(count, size=len(self.embeddings))
            texts = torch.from_numpy(picked(self.vectors, rows)).float()
            network.quantiser.measure(self.measured(), texts)
        except ValueError as error:
            raise TrainingError(f"{error} (data.scenes, model.dimensions)") from None
        return network

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        given, text = self.clean(batch)
        network, dropout = cast(AutoregressiveTransformer, model), self.recipe.dropout
        source = torch.default_generator
        return autoregressive_prior.loss(network, given, text, null=self.null, dropout=dropout, generator=source), {}

    def network(self, model: nn.Module) -> nn.Module:
        return model

    def part(self, model: nn.Module) -> AutoregressivePrior:
        recipe = self.recipe
        said = self.settled | {"temperature": recipe.temperature, "top_p": recipe.top_p, "top": recipe.top}
        network = cast(AutoregressiveTransformer, model)
        return AutoregressivePrior(network, AutoregressivePriorConfig.model_validate(said))


class OneStepPriorTask(PriorTask[OneStepPriorRecipe]):
    """Embeddings are to be told from text and noise that says nothing of them."""

    recipe_type = OneStepPriorRecipe
    fixed: ClassVar[dict[str, object]] = {"timed": False}

    def build(self) -> nn.Module:
        network = PriorTransformer(PriorConfig.model_validate(self.shape))
        network.measure(self.measured())
        return network

    def share(self, batch: Batch, rank: int, ranks: int) -> Batch:
        raise TrainingError(
            "a one-step prior contrasts every text of a batch with every embedding: train it in one process, with "
            "accumulate = 1"
        )

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        given, text = self.clean(batch)
        error, contrast = one_step_prior.loss(
            cast(PriorTransformer, model),
            given,
            text,
            scale=self.clip.model.logit_scale.exp(),
            weight=self.recipe.contrast,
            null=self.null,
            dropout=self.recipe.dropout,
            generator=torch.default_generator,
        )
        return error + contrast, {"error": error.detach(), "contrast": contrast.detach()}

    def network(self, model: nn.Module) -> nn.Module:
        return model

    def part(self, model: nn.Module) -> OneStepPrior:
        return OneStepPrior(cast(PriorTransformer, model), OneStepPriorConfig.model_validate(self.settled))


@torch.no_grad()
def embeddings(pictures: Scenes, clip: Clip, device: torch.device) -> Array:
    """The CLIP embeddings of all pictures, unit vectors: float16 [scenes, width]."""

    def embedded() -> Iterator[Array]:
        for start in range(0, len(pictures), CHUNK):
            images = to_float(torch.from_numpy(np.array(pictures.images[start : start + CHUNK])).to(device))
            yield clip.embed_images(images / 2 + 0.5).half().cpu().numpy()

    shape = (len(pictures), clip.model.config.projection_dim)
    folder = root() / f"embeddings-{fingerprint(pictures.folder.name, clip.image_space, precision())}"
    return filled(folder, shape, embedded(), what="embedding pictures")


def _pooled(text: TextFeatures) -> Tensor:
    assert text.pooled is not None  # a CLIP has it: see `PriorTask._check`
    return text.pooled
