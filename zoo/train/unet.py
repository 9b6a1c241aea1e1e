"""Training the text-conditional U-Net on cached latents and cached text (arXiv 2112.10752).

Images and captions pass the frozen VAE and text encoder once, before training, and stay on disk in half precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from zoo import tensors
from zoo.data.captions import Language, caption
from zoo.diffusion.denoiser import Denoiser, Target
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.objective import loss as objective
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.evaluate.checker import judge
from zoo.evaluate.foreground import SIDE
from zoo.evaluate.tasks import MEAN_OF, cases
from zoo.interface import Conditioning, Sampling
from zoo.stable_diffusion.parts import UNET, GeneratorConfig, LatentGenerator, VaeDecoder
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE
from zoo.text.clip import ClipTextEncoder
from zoo.train import vae as autoencoder
from zoo.train.cache import Array, SceneData, Scenes, filled, fingerprint, picked, root, scenes
from zoo.train.recipe import Recipe, RecipeError
from zoo.train.task import Batch, Image, Metrics, Task, grid, to_float

CHUNK = 25  # pictures or captions encoded at once: few stay in the cache, and go twice as fast as 200
AT_ONCE = 32  # pictures drawn at once for the checker
JUDGED_SEED = 1  # other scenes than those that a finished model is scored on
LANGUAGES: tuple[Language, ...] = ("en", "zh")
PROBED = 500  # captions that tell whether a cache is what today's code would say
PROMPTS = (
    "a large pink butterfly on a cream background, cartoon",
    "粉色的蝴蝶,小精靈,卡通",
    "a red circle to the left of a blue square on a white background",
    "three small green stars on a night background",
    "白色背景上的一只大的黑色的猫",
    "一辆蓝色的汽车在一棵粉色的树的左边",
    "a yellow house above a purple car on a mint background, sketch",
    "四条红色的鱼",
)


class LatentRecipe(Recipe):
    """The recipe of a latent generator: `vae` and `text_encoder` are the folders of the frozen parts."""

    vae: Path = Path("runs/vae/final")
    text_encoder: Path = Path("runs/clip/final")
    data: SceneData = SceneData()
    captions: int = Field(2, ge=1)  # cached for each scene, in English and Chinese by turns
    full: float = Field(0.3, ge=0, le=1)  # share of captions that say everything; prompts mostly say little
    guidance: float = Field(4.0, ge=0)  # of the sample grid
    prompts: tuple[str, ...] = PROMPTS  # of the sample grid
    judged: int = Field(4, ge=0)  # scenes a task, seen and of the dev half, that the checker judges beside it


class UNetRecipe(LatentRecipe):
    """The recipe of a latent generator that learns from pictures alone."""

    model: UNetConfig = UNetConfig()
    schedule: Schedule = Schedule("cosine")
    prediction: Target = "v"
    dropout: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty one, for guidance
    gamma: float | None = Field(5.0, gt=0)  # of the min-SNR weighting
    floor: float = Field(0.0, ge=0)  # least weight on x0, below which min-SNR does not fall


LatentRecipeT = TypeVar("LatentRecipeT", bound=LatentRecipe)


class LatentTask(Task[LatentRecipeT]):
    """Batches of latents and text tokens; the trained model is a `Denoiser` of a U-Net of the shape `unet`."""

    classes: ClassVar[tuple[str, ...]] = ()  # of a semantic map that joins the latents

    def __init__(self, recipe: LatentRecipeT, device: torch.device, unet: UNetConfig) -> None:
        super().__init__(recipe, device)
        self.unet = unet
        try:
            self.vae = autoencoder.load(recipe.vae).to(device)
            self.text = ClipTextEncoder.load(recipe.text_encoder).to(device)
            with torch.no_grad():
                self.null = self.text.null(1).tokens.float()
                self.shown = self.text.encode(recipe.prompts).tokens.float()
                self.asked = [case for case in cases(recipe.judged, JUDGED_SEED, "dev") if case.task in MEAN_OF]
                self.asked_text = self.text.encode([case.prompt for case in self.asked] or [""]).tokens.float()
        except ValueError as error:  # a folder without them, or a prompt that is too long
            raise RecipeError(str(error)) from None
        self.space = VaeDecoder(self.vae).needs.space
        self._check()
        pictures = scenes(recipe.data)
        # In the precision of training, which rounds what it is given in the same way.
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.autocast == "bf16"):
            self.latents = latents(pictures, self.vae, self.space, device)
            self.tokens = tokens(pictures, self.text, recipe.captions, recipe.full)

    def start(self, model: nn.Module, folder: Path) -> None:
        weights = tensors.read(folder / UNET)
        tensors.assign(model.get_submodule("network"), weights, source=folder / UNET)

    def compile(self, model: nn.Module) -> None:
        model.get_submodule("network").compile()

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        return self.rows(rng.integers(len(self.latents), size=self.recipe.batch), rng)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        """The batch of these scenes, each with one of its captions."""
        which = rows * self.recipe.captions + rng.integers(self.recipe.captions, size=self.recipe.batch)
        return {
            "latents": torch.from_numpy(picked(self.latents, rows)),
            "tokens": torch.from_numpy(picked(self.tokens, which)),
        }

    def clean(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """The latents and the text of a batch, as networks take them."""
        x0 = batch["latents"].float().contiguous(memory_format=self.layout)
        return x0, Conditioning(tokens=batch["tokens"].float())

    @property
    def sampling(self) -> Sampling:
        """How the sample grid is drawn."""
        return Sampling(guidance=self.recipe.guidance)

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Pictures of the recipe's prompts, two of each; and how many of those the checker asked for were right."""
        denoiser = cast(Denoiser, model)
        shown = self._draw(denoiser, self.shown.repeat_interleave(2, 0), [0, 1] * len(self.shown))
        right: dict[str, list[bool]] = {}
        for start in range(0, len(self.asked), AT_ONCE):
            asked = self.asked[start : start + AT_ONCE]
            pictures = self._draw(denoiser, self.asked_text[start : start + AT_ONCE], [case.seed for case in asked])
            for case, picture in zip(asked, (pictures.float().cpu() / 2 + 0.5).clamp(0, 1), strict=True):
                right.setdefault(f"{case.split}_{case.language}", []).append(judge(picture, case.scene).ok)
        return grid(shown, columns=8), {name: sum(oks) / len(oks) for name, oks in right.items()}

    def _draw(self, denoiser: Denoiser, tokens: Tensor, seeds: list[int], concat: Tensor | None = None) -> Tensor:
        """Guided pictures [batch, 3, height, width] in [-1, 1] of encoded prompts [batch, length, width]."""
        text, empty = Conditioning(tokens=tokens, concat=concat), Conditioning(tokens=self.null.expand_as(tokens))
        shape = (len(tokens), *self.latents.shape[1:])
        made = sample(denoiser, text, empty, ImageNoise(seeds), self.sampling, shape)
        return self.vae.decode(self.vae.from_diffusion(made))

    def export(self, model: nn.Module, folder: Path) -> None:
        """unet/model.safetensors in half precision; config.json has the arguments for `LatentGenerator.load`."""
        size, denoiser = self.recipe.data.size, cast(Denoiser, model)
        network = cast(UNet, denoiser.network)
        config = GeneratorConfig(
            unet=network.config,
            schedule=denoiser.schedule,
            text=self.text.produces,
            latent_space=self.space,
            factor=self.vae.downsampling,
            resolution=(size, size),
            prediction=denoiser.prediction,
            guidance_range=denoiser.guidance_range,
            classes=self.classes,
        )
        generator = LatentGenerator.of(network, config)
        arguments, _ = generator.save(folder, torch.float16)
        said = json.dumps(arguments, indent=1, ensure_ascii=False)
        (folder / "config.json").write_text(said + "\n", encoding="utf-8")

    def _check(self) -> None:
        """The network fits the data and the parts on either side of it."""
        if self.recipe.judged and self.recipe.data.size % SIDE:
            raise RecipeError(f"the checker judges pictures whose size is a multiple of {SIDE}: set judged=0")
        size, shrinking = self.recipe.data.size, self.vae.downsampling * self.unet.downsampling
        if size % shrinking:
            raise RecipeError(
                f"data.size = {size} is no multiple of {shrinking}, by which VAE and U-Net together shrink a picture"
            )


class UNetTask(LatentTask[UNetRecipe]):
    """Noise is to be told from latents."""

    recipe_type = UNetRecipe

    def __init__(self, recipe: UNetRecipe, device: torch.device) -> None:
        super().__init__(recipe, device, recipe.model)

    def build(self) -> nn.Module:
        return Denoiser(UNet(self.unet), self.recipe.schedule, self.recipe.prediction)

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        recipe = self.recipe
        x0, text = self.clean(batch)
        # The CPU's generator, which the loop has seeded for this step: the same noise wherever the run goes on.
        value = objective(
            cast(Denoiser, model),
            x0,
            text,
            null=Conditioning(tokens=self.null),
            dropout=recipe.dropout,
            gamma=recipe.gamma,
            floor=recipe.floor,
            generator=torch.default_generator,
        )
        return value, {}

    def _check(self) -> None:
        z, width = self.vae.config.latent_channels, self.text.produces.width
        for key, value, wanted in (
            ("model.in_channels", self.unet.in_channels, z + len(self.classes)),
            ("model.out_channels", self.unet.out_channels, z),
            ("model.context_width", self.unet.context_width, width),
        ):
            if value != wanted:
                raise RecipeError(f"{key} = {value}, but the frozen parts need {wanted}: set {key}={wanted}")
        super()._check()


def latents(pictures: Scenes, vae: VAE, space: str, device: torch.device) -> Array:
    """The posterior means of all pictures in the units of diffusion: float16 [scenes, channels, height, width]."""

    def encoded() -> Iterator[Array]:
        for start in range(0, len(pictures), CHUNK):
            images = to_float(torch.from_numpy(np.array(pictures.images[start : start + CHUNK])).to(device))
            yield vae.to_diffusion(vae.encode(images).mean).half().cpu().numpy()

    size = pictures.images.shape[1] // vae.downsampling
    shape = (len(pictures), vae.config.latent_channels, size, size)
    folder = root() / f"latents-{fingerprint(pictures.folder.name, space, precision())}"
    return filled(folder, shape, encoded(), what="encoding pictures")


def tokens(pictures: Scenes, text: ClipTextEncoder, captions: int, full: float) -> Array:
    """Encoded captions, those of a scene in consecutive rows: float16 [scenes * captions, length, width]."""

    def said() -> Iterator[str]:
        for index, scene in enumerate(pictures):
            for which in range(captions):
                rng = np.random.default_rng([index, which, 7])
                yield caption(scene, LANGUAGES[which % 2], rng, bool(rng.random() < full))

    def encoded() -> Iterator[Array]:
        coming = said()
        while chunk := list(islice(coming, CHUNK)):
            yield text.encode(chunk).tokens.half().cpu().numpy()

    spec = text.produces
    shape = (len(pictures) * captions, spec.length or 0, spec.width)
    name = fingerprint(pictures.folder.name, spec.space, precision(), captions, *islice(said(), PROBED))
    return filled(root() / f"text-{name}", shape, encoded(), what="encoding captions")


def precision() -> str:
    """What networks compute in here: a cache made in one precision is not taken for one made in another."""
    return "bf16" if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") else "fp32"
