"""Training DALL-E 2's decoder (arXiv 2204.06125): small pictures from the CLIP embeddings of the true ones.

Pictures and captions pass both frozen towers of a CLIP once, before training. Embeddings are dropped to a learned one
and captions to the empty one, each by itself, so that guidance may lead away from either. The U-Net is of the kind of
Imagen's base, and may start from a trained one, which knows how to draw and has yet to learn what it is told. What the
averaged weights decode of fresh scenes, told their embeddings alone, is looked at by the checker, and by CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.adm import AdmUNetConfig
from zoo.cascade import shrunk
from zoo.clip import Clip
from zoo.dalle2.decoder import FILE, UnclipConfig, UnclipDecoder, UnclipNetwork
from zoo.data.draw import render
from zoo.data.scenes import Scene, random_scene
from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser, Variance
from zoo.diffusion.noise import ImageNoise
from zoo.evaluate.checker import judge
from zoo.evaluate.foreground import SIDE
from zoo.imagen.parts import BASE
from zoo.interface import Conditioning, Representation, Sampling, TextFeatures
from zoo.train.cache import Array, picked, scenes
from zoo.train.prior import HALVES, embeddings
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Image, Metrics, Task, grid, to_float, write_config
from zoo.train.text_to_image import AT_ONCE, UNREAD, Denoising, TextRecipe, TextTask, check_sampling

SHOWN = 16  # fresh scenes of the sample grid, each beside what is decoded of it


class UnclipRecipe(Denoising, TextRecipe):
    """The recipe of a decoder; `text_encoder` is the folder of a CLIP, of which both towers are used."""

    text_encoder: Path = Path("runs/clip/final")
    model: AdmUNetConfig = AdmUNetConfig()  # `context_width` is that of the tokens it attends to
    factor: int = Field(2, ge=1)  # how much smaller than the drawn scenes its pictures are, per side
    variance: Variance = "fixed_small"  # "learned_range" as published
    reads: bool = True  # captions; otherwise the embedding alone
    image_tokens: int = Field(4, ge=1)  # that are made of an embedding
    dropout: float = Field(0.1, ge=0, le=1)  # share of embeddings replaced by the learned one
    caption_dropout: float = Field(0.5, ge=0, le=1)  # share of captions replaced by the empty one
    noise: float = Field(0.0, ge=0)  # most noise on embeddings beside a caption, in their deviations; priors err, too
    sampling: Sampling = Sampling(steps=20, guidance=3.0, threshold=1.0)  # of the sample grid, and by default
    judged: int = Field(32, ge=SHOWN // 2)  # fresh scenes, seen and of the dev half each

    @property
    def unet(self) -> AdmUNetConfig:
        """The shape of the U-Net: `model` with the ports and outputs that it needs here."""
        outputs = 6 if self.variance in ("learned", "learned_range") else 3
        return self.model.model_copy(update={"vector": True, "out_channels": outputs})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.context_width is None:
            raise ValueError("model.context_width, the width of the tokens that the U-Net attends to, is missing")
        if self.noise and not self.reads:
            raise ValueError("noise is for embeddings beside captions, and reads = false: leave it out")
        if self.data.size % SIDE:
            raise ValueError(f"data.size = {self.data.size}, but the checker judges pictures of multiples of {SIDE}")
        if self.data.size % (self.factor * self.model.downsampling):
            raise ValueError(
                f"data.size = {self.data.size} made {self.factor} times smaller is no multiple of "
                f"{self.model.downsampling}, by which the U-Net shrinks a picture"
            )
        return self


@dataclass(frozen=True)
class Fresh:
    """Scenes that no cache holds: their pictures [scenes, 3, size, size] in [0, 1], and what CLIP sees in them."""

    scenes: list[Scene]
    pictures: Tensor
    seen: Representation


class UnclipTask(TextTask[UnclipRecipe]):
    """Noise is to be told from small pictures, by their embeddings. The trained model is a `Denoiser`."""

    recipe_type = UnclipRecipe
    pooled = True

    def __init__(self, recipe: UnclipRecipe, device: torch.device) -> None:
        try:
            self.clip = Clip.load(recipe.text_encoder).to(device)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        if recipe.reads:
            super().__init__(recipe, device)
        else:  # there is no text to encode
            Task.__init__(self, recipe, device)
            self._check()
            self.scenes = scenes(recipe.data)
        with torch.no_grad():
            self.embeddings = embeddings(self.scenes, self.clip, device)
            self.empty = self.text.null(1) if recipe.reads else UNREAD
            self.fresh = {half: self._scenes(split == "dev") for half, split in HALVES}

    def build(self) -> nn.Module:
        network = UnclipNetwork(self.config.network)
        network.measure(torch.from_numpy(np.array(self.embeddings)).float())
        return Denoiser(network, self.config.schedule, self.config.prediction, self.config.variance)

    def start(self, model: nn.Module, folder: Path) -> None:
        """From a decoder; or from Imagen's base, of which the U-Net is taken and the projection then learned anew."""
        network = cast(UnclipNetwork, model.get_submodule("network"))
        if (folder / FILE).is_file() or not (folder / BASE).is_file():
            tensors.assign(network, tensors.read(folder / FILE), source=folder / FILE)
        else:  # what the base pools from all of its text, this U-Net is told as a vector
            tensors.assign(network.unet, tensors.read(folder / BASE), source=folder / BASE, ignore=[r"pool\..*"])

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        """The batch of these scenes, each with its embedding and, if captions are read, one of those."""
        batch = {
            "images": torch.from_numpy(picked(self.scenes.images, rows)),
            "embeddings": torch.from_numpy(picked(self.embeddings, rows)),
        }
        return batch | (super().rows(rows, rng) if self.recipe.reads else {})

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        denoiser = cast(Denoiser, model)
        x0 = shrunk(to_float(batch["images"]), self.recipe.factor).contiguous(memory_format=self.layout)
        given = self.told(cast(UnclipNetwork, denoiser.network), batch)
        return self.recipe.loss(denoiser, x0, given, Conditioning()), {}

    def told(self, network: UnclipNetwork, batch: Batch) -> Conditioning:
        """The embeddings and captions of a batch as the network is fed them in training: some of each are dropped."""
        vector, count = batch["embeddings"].float(), len(batch["embeddings"])
        # From the CPU's generator, as times and noise are: the same wherever the run goes on.
        dropped = (draws.rand((count,)) < self.recipe.dropout).to(vector.device)
        if not self.recipe.reads:
            return Conditioning(vector=torch.where(dropped[:, None], network.null(), vector))
        assert self.empty.pooled is not None  # checked
        unsaid = (draws.rand((count,)) < self.recipe.caption_dropout).to(vector.device)
        if self.recipe.noise:  # then what the embedding does not say for certain is read from the caption
            level = self.recipe.noise * draws.rand((count, 1)).to(vector.device) * ~unsaid[:, None]
            vector = vector + level * network.std * draws.randn(tuple(vector.shape)).to(vector)
        vector = torch.where(dropped[:, None], network.null(), vector)
        tokens = torch.where(unsaid[:, None, None], self.empty.tokens.float(), batch["tokens"].float())
        pooled = torch.where(unsaid[:, None], self.empty.pooled.float(), batch["vectors"].float())
        return Conditioning(tokens=tokens, vector=torch.cat([vector, pooled], dim=1))

    @property
    def config(self) -> UnclipConfig:
        """The decoder's config: the ends are settled by CLIP, the rest by the recipe."""
        recipe, unet = self.recipe, self.recipe.unet
        text = self.text.produces if recipe.reads else None
        side = recipe.data.size // recipe.factor
        projection = {
            "embedding_width": self.clip.produces.shape[0],
            "context_width": None if text is None else text.width,
            "time_width": unet.embedding_width,
            "text_channels": unet.context_width,
            "tokens": recipe.image_tokens,
        }
        return UnclipConfig.model_validate(
            {
                "network": {"unet": unet, "projection": projection},
                "schedule": recipe.schedule,
                "prediction": recipe.prediction,
                "variance": recipe.variance,
                "image_space": self.clip.image_space,
                "text": text,
                "resolution": (side, side),
                "sampling": recipe.sampling,
            }
        )

    def part(self, model: nn.Module) -> UnclipDecoder:
        """The part of a pipeline that the model is."""
        return UnclipDecoder.of(cast(UnclipNetwork, cast(Denoiser, model).network), self.config)

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Fresh scenes beside what is decoded of their embeddings without a caption; how many of those the checker
        finds to be their scene; and the cosine between what CLIP sees in the two."""
        decoder, shown, figures = self.part(model), list[Tensor](), dict[str, float]()
        for half, fresh in self.fresh.items():
            right, cosines = list[bool](), list[Tensor]()
            for rows in torch.arange(len(fresh.scenes)).split(AT_ONCE):
                seen = Representation(fresh.seen.data[rows], fresh.seen.kind, fresh.seen.space)
                nothing = self._nothing(len(rows))
                made = decoder.decode(seen, nothing, nothing, ImageNoise(rows.tolist()))
                large = F.interpolate(made, scale_factor=self.recipe.factor, mode="bicubic").clamp(0, 1).float()
                cosines.append((self.clip.encode(large).data.float() * seen.data).sum(1))
                true = [fresh.scenes[i] for i in rows]
                right += [judge(one, scene.describe()).ok for one, scene in zip(large.cpu(), true, strict=True)]
                if not int(rows[0]):
                    pairs = fresh.pictures[: SHOWN // 2], large[: SHOWN // 2].cpu()
                    shown.append(torch.stack(pairs, 1).flatten(0, 1))
            figures[f"ok_{half}"] = sum(right) / len(right)
            figures[f"cosine_{half}"] = float(torch.cat(cosines).mean())
        return grid(torch.cat(shown) * 2 - 1, columns=8), figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """decoder/model.safetensors in half precision; config.json has the arguments for `UnclipDecoder.load`."""
        arguments, _ = self.part(model).save(folder, torch.float16)
        write_config(folder, arguments)

    def _nothing(self, n: int) -> TextFeatures:
        """`n` empty captions."""
        tokens, pooled = self.empty.tokens, self.empty.pooled
        pooled = None if pooled is None else pooled.expand(n, -1)
        return TextFeatures(tokens.expand(n, -1, -1), None, pooled, self.empty.space)

    def _scenes(self, dev: bool) -> Fresh:
        rngs = [np.random.default_rng([self.recipe.seed, 2**40, dev, index]) for index in range(self.recipe.judged)]
        chosen = [random_scene(rng, split="dev" if dev else "train") for rng in rngs]
        drawn = np.stack([render(scene, self.recipe.data.size) for scene in chosen])
        pictures = to_float(torch.from_numpy(drawn)) / 2 + 0.5
        seen = self.clip.encode(pictures)
        return Fresh(chosen, pictures, Representation(seen.data.float(), seen.kind, seen.space))

    def _check(self) -> None:
        check_sampling(self.recipe.sampling, self.recipe.schedule)
        if self.recipe.reads and self.text.produces.pooled is None:
            raise RecipeError(f"text_encoder = {self.recipe.text_encoder} makes no CLIP text embedding: give a CLIP")
        try:
            _ = self.config
        except ValidationError as error:
            raise RecipeError(f"[model] cannot be: {'; '.join(e['msg'] for e in error.errors())}") from None
