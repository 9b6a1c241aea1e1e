"""What all generators that read text are trained with: cached captions of drawn scenes, prompts to show, a judge."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.data.captions import COLOURED_SHARE, LANGUAGES, caption
from zoo.diffusion.denoiser import Denoiser, Target
from zoo.diffusion.guidance import check_settings
from zoo.diffusion.objective import loss as objective
from zoo.diffusion.ports import rows
from zoo.diffusion.samplers import find_sampler
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import make_grid
from zoo.evaluate.checker import judge
from zoo.evaluate.foreground import SIDE
from zoo.evaluate.tasks import MEAN_OF, cases
from zoo.interface import Conditioning, Sampling, TextEncoder, TextFeatures
from zoo.text.clip import ClipTextEncoder
from zoo.text.t5 import T5TextEncoder
from zoo.train.cache import Array, SceneData, Scenes, filled_together, fingerprint, picked, root, scenes
from zoo.train.precision import in_half
from zoo.train.recipe import Recipe, RecipeError, Table
from zoo.train.task import Batch, Image, Task, grid

CHUNK = 25  # pictures or captions encoded at once: few stay in the cache, and go twice as fast as 200
T5_CONFIG = Path("text_encoder") / "config.json"  # in a model folder; a T5 alone has it at its top
UNREAD = TextFeatures(torch.zeros(1, 1, 1), None, None, "none")  # the text of a network that does not look at it
AT_ONCE = 32  # pictures drawn at once for the checker
JUDGED_SEED = 1  # other scenes than those that a finished model is scored on
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


class TextRecipe(Recipe):
    """The recipe of a generator that reads text from the frozen encoder in the folder `text_encoder`."""

    text_encoder: Path = Path("runs/clip/final")
    length: int = Field(32, ge=1)  # tokens of a prompt, where the encoder is a T5, whose files leave it open
    data: SceneData = SceneData()
    captions: int = Field(2, ge=1)  # cached for each scene, in English and Chinese by turns
    full: float = Field(0.3, ge=0, le=1)  # share of captions that say everything; prompts mostly say little
    coloured: float = Field(COLOURED_SHARE, ge=0, le=1)  # share of the other captions that say their objects' colours
    relations: float = Field(0.0, ge=0, le=1)  # share of pictures drawn from those of two objects alone


class PromptRecipe(TextRecipe):
    """The recipe of a generator that draws from text alone."""

    guidance: float = Field(4.0, ge=0)  # of the sample grid
    prompts: tuple[str, ...] = Field(PROMPTS, min_length=1)  # of the sample grid
    judged: int = Field(4, ge=0)  # scenes a task, seen and of the dev half, that the checker judges beside it


class Denoising(Table):
    """What a recipe says of learning to denoise."""

    schedule: Schedule = Schedule("cosine")
    prediction: Target = "v"
    dropout: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty one, for guidance
    gamma: float | None = Field(5.0, gt=0)  # of the min-SNR weighting
    floor: float = Field(0.0, ge=0)  # least weight on x0, below which min-SNR does not fall

    def loss(self, denoiser: Denoiser, x0: Tensor, text: Conditioning, null: Conditioning) -> Tensor:
        # The CPU's generator, which the loop has seeded for this step: the same noise wherever the run goes on.
        return objective(
            denoiser,
            x0,
            text,
            null=null,
            dropout=self.dropout,
            gamma=self.gamma,
            floor=self.floor,
            generator=torch.default_generator,
        )


TextRecipeT = TypeVar("TextRecipeT", bound=TextRecipe)
PromptRecipeT = TypeVar("PromptRecipeT", bound=PromptRecipe)


class TextTask(Task[TextRecipeT]):
    """Scenes and their cached captions. The trained model is a `Denoiser`, or what a task builds instead."""

    pooled: ClassVar[bool] = False  # does it learn from the one vector that CLIP makes of a text, too?

    def __init__(self, recipe: TextRecipeT, device: torch.device) -> None:
        super().__init__(recipe, device)
        try:
            self.text = load_text(recipe.text_encoder, recipe.length, device)
        except ValueError as error:  # a folder without one
            raise RecipeError(str(error)) from None
        with torch.no_grad():
            self.null = said(self.text.null(1))
        self._check()
        self.scenes = scenes(recipe.data)
        # In the precision of training, which rounds what it is given in the same way.
        with self.autocast():
            self.tokens, *vectors = captioned(
                self.scenes, self.text, recipe.captions, recipe.full, recipe.coloured, pooled=self.pooled
            )
        if self.pooled:
            (self.vectors,) = vectors

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=in_half(self.recipe.autocast, self.device))

    def compile(self, model: nn.Module) -> None:
        model.get_submodule("network").compile()

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        return self.rows(self.scenes.draw(self.recipe.batch, self.recipe.relations, rng), rng)

    def rows(self, rows: Array, rng: np.random.Generator) -> Batch:
        """The batch of these scenes, each with one of its captions."""
        which = rows * self.recipe.captions + rng.integers(self.recipe.captions, size=len(rows))
        batch = {"tokens": torch.from_numpy(picked(self.tokens, which))}
        return batch | ({"vectors": torch.from_numpy(picked(self.vectors, which))} if self.pooled else {})

    def read(self, batch: Batch) -> Conditioning:
        """The text of a batch, as networks take it."""
        words = batch["tokens"].float()
        return Conditioning(tokens=words, mask=None if self.null.mask is None else words.any(-1))

    def _check(self) -> None:
        """Raises RecipeError where the network does not fit the data and the parts on either side of it."""


class PromptTask(TextTask[PromptRecipeT]):
    """A generator of pictures from text alone: its pictures of some prompts are shown, those of others judged."""

    def __init__(self, recipe: PromptRecipeT, device: torch.device) -> None:
        if recipe.judged and recipe.data.size % SIDE:
            raise RecipeError(f"the checker judges pictures whose size is a multiple of {SIDE}: set judged=0")
        super().__init__(recipe, device)
        try:
            with torch.no_grad():
                self.shown = said(self.text.encode(recipe.prompts))
                self.asked = [case for case in cases(recipe.judged, JUDGED_SEED, "dev") if case.task in MEAN_OF]
                self.asked_text = said(self.text.encode([case.prompt for case in self.asked] or [""]))
        except ValueError as error:  # a prompt that is too long
            raise RecipeError(str(error)) from None

    @abstractmethod
    def _draw(self, model: nn.Module, text: Conditioning, seeds: list[int]) -> Tensor:
        """The model's pictures [batch, 3, height, width] in [-1, 1] of encoded prompts."""

    @property
    def sampling(self) -> Sampling:
        """How the sample grid is drawn."""
        return Sampling(guidance=self.recipe.guidance)

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        """Pictures of the recipe's prompts, two of each; and how many of those the checker asked for were right."""
        prompts = len(self.recipe.prompts)
        shown = self._draw(model, rows(self.shown, [i // 2 for i in range(2 * prompts)]), [0, 1] * prompts)
        right: dict[str, list[bool]] = {}
        for start in range(0, len(self.asked), AT_ONCE):
            asked = self.asked[start : start + AT_ONCE]
            text = rows(self.asked_text, range(start, start + len(asked)))
            pictures = self._draw(model, text, [case.seed for case in asked])
            for case, picture in zip(asked, (pictures.float().cpu() / 2 + 0.5).clamp(0, 1), strict=True):
                right.setdefault(f"{case.split}_{case.language}", []).append(judge(picture, case.scene).ok)
        return grid(shown, columns=8), {name: sum(oks) / len(oks) for name, oks in right.items()}


def load_text(folder: Path, length: int, device: torch.device) -> ClipTextEncoder | T5TextEncoder:
    """The text encoder that a run of the part "clip" or "t5" exported, frozen; `length` is the window of a T5.

    Raises:
        ValueError: there is none, or its files do not fit.
    """
    for config in (folder / T5_CONFIG, folder / T5_CONFIG.name):
        if config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "t5":
            return T5TextEncoder.load(folder, {"length": length}).to(device)
    return ClipTextEncoder.load(folder).to(device)


def said(text: TextFeatures) -> Conditioning:
    """What generators are fed of the features."""
    return Conditioning(tokens=text.tokens.float(), mask=text.mask)


def check_sampling(sampling: Sampling, schedule: Schedule) -> None:
    """What is inspected later can be sampled so: else it would be known when a first stretch of training is over.

    Raises:
        RecipeError: it cannot; the message says which setting.
    """
    try:
        check_settings(sampling)
        find_sampler(sampling.sampler, sampling.eta)
        make_grid(schedule, sampling.steps, sampling.spacing)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def all_of(text: Conditioning, batch: int) -> Conditioning:
    """One encoded prompt for a whole batch."""
    return rows(text, [0] * batch)


@torch.no_grad()
def captioned(
    pictures: Scenes, text: TextEncoder, captions: int, full: float, coloured: float, *, pooled: bool
) -> list[Array]:
    """Encoded captions, those of a scene in consecutive rows: their tokens, float16 [scenes * captions, length, width].

    `pooled`: and the text's vectors, float16 [scenes * captions, pooled]; both are made in one pass. Tokens that must
    not be attended to are zeros, which no encoder makes of a word.
    """

    def encoded() -> Iterator[tuple[Array, ...]]:
        coming = sentences(pictures, captions, full, coloured)
        while chunk := list(islice(coming, CHUNK)):
            features = text.encode(chunk)
            words = features.tokens if features.mask is None else features.tokens * features.mask[..., None]
            made = [words, features.pooled] if pooled else [words]
            yield tuple(part.half().cpu().numpy() for part in made if part is not None)

    spec, rows = text.produces, len(pictures) * captions
    probe = islice(sentences(pictures, captions, full, coloured), PROBED)
    name = fingerprint(pictures.folder.name, spec.space, spec.length, precision(), captions, *probe)
    shapes: dict[Path, tuple[int, ...]] = {root() / f"text-{name}": (rows, spec.length or 0, spec.width)}
    if pooled:
        shapes[root() / f"vectors-{name}"] = (rows, spec.pooled or 0)
    return filled_together(shapes, encoded(), what="encoding captions")


def sentences(pictures: Scenes, captions: int, full: float, coloured: float) -> Iterator[str]:
    """The captions of all scenes, those of a scene one after the other, in English and Chinese by turns."""
    for index, scene in enumerate(pictures):
        for which in range(captions):
            rng = np.random.default_rng([index, which, 7])
            yield caption(scene, LANGUAGES[which % 2], rng, bool(rng.random() < full), coloured)


def precision() -> str:
    """What networks compute in here: a cache made in one precision is not taken for one made in another."""
    return "bf16" if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") else "fp32"
