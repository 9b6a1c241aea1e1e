"""Personalising a model: a subject or a style learned from a few pictures, in any of the ways of `zoo.train.methods`.

DreamBooth (arXiv 2208.12242) ties the subject to an identifier, "a P7 car", and keeps the model's idea of its class by
also training on pictures of "a car" that the model itself drew beforehand (prior preservation). Those are drawn once,
and kept in the cache. What is learned from them is the noise in them, as DreamBooth does, or what the model itself made
of it before (learning without forgetting, arXiv 1606.09282): that has no chance in it, and nothing to learn as long as
nothing is forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.adapt import active
from zoo.data.folder import METADATA, SIDECAR, SUFFIXES, ImageFolder, captioned, pictures_in
from zoo.data.folder import Picture as Captioned
from zoo.diffusion import draws
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.objective import Teacher
from zoo.diffusion.objective import loss as objective
from zoo.diffusion.ports import choose
from zoo.evaluate.subject import is_p7
from zoo.interface import Conditioning, TextFeatures
from zoo.loading import load
from zoo.pipeline import BATCH, Pipeline
from zoo.train.adapter_recipe import AdapterRecipe
from zoo.train.cache import Array, filled, fingerprint, root
from zoo.train.learners import Learner, learners
from zoo.train.methods import Trained, weights_of
from zoo.train.recipe import RecipeError
from zoo.train.task import Batch, Metrics, Task, grid, to_float
from zoo.train.task import Image as Sample
from zoo.train.views import beside, companions, views

PRIOR_SEED = 10_000_000  # of the model's own first picture: far from the seeds that people and tests draw with


@dataclass(frozen=True)
class Examples:
    """Pictures as each denoiser keeps them, by its name, and which of the task's prompts is whose: int64 [pictures]."""

    kept: dict[str, Tensor]
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


class AdapterTask(Task[AdapterRecipe]):
    """Batches of rows: of the user's pictures, and of as many class pictures where the prior is preserved."""

    recipe_type = AdapterRecipe

    def __init__(self, recipe: AdapterRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        try:
            self.pipe = load(recipe.model, device=device)
            self.pipe.check_weights()
            self.side = _side(self.pipe)
            captions, pixels = read(recipe.pictures, recipe.prompt, self.side)
            every = learners(self.pipe)
            of_class = recipe.prior.each if recipe.prior.on else []
        except ValueError as error:
            raise RecipeError(str(error)) from None
        drawn = None  # by the model itself, before anything of it is changed
        if recipe.prior.on:
            drawn = own_pictures(self.pipe, of_class, recipe.prior.steps, self.side)
        pixels, captions = self._seen(pixels, captions)
        self.trained = Trained(recipe, self.pipe)
        self.learners = self._learning(every)
        self.before = {learner.name: self._as_it_is(learner) for learner in self.learners}
        self.prompts = list(dict.fromkeys([*captions, *of_class]))
        self.hears = "text_encoder" in self.trained.roles
        try:
            with torch.no_grad():
                self.null = self.pipe.text_encoder.null(1)
                # Copied, as what stands for no embedding may be learned too.
                self.silence = {learner.name: copy.deepcopy(learner.null(self.null)) for learner in self.learners}
                self.text = self.pipe.text_encoder.encode(self.prompts)
                self.pipe.text_encoder.encode([*recipe.prompts, ""])
        except ValueError as error:  # a prompt that is too long
            raise RecipeError(str(error)) from None
        self.own = self._examples(pixels, [self.prompts.index(caption) for caption in captions])
        self.prior = None
        if drawn is not None:
            self.prior = self._examples(drawn, [self.prompts.index(prompt) for prompt in of_class])
        self.shown = recipe.prompts or tuple(dict.fromkeys(captions))[:4]

    def build(self) -> nn.Module:
        return self.trained.model

    def recompute(self, model: nn.Module) -> int:
        return sum(super(AdapterTask, self).recompute(network.module) for network in self.pipe.adaptable().values())

    def start(self, model: nn.Module, folder: Path) -> None:
        self.trained.begin(folder)

    def pace(self, name: str) -> float:
        return self.trained.pace(name)

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        rows = {"own": torch.from_numpy(rng.integers(len(self.own), size=self.recipe.batch))}
        if self.prior is not None:
            kept = self.recipe.prior.batch or self.recipe.batch
            rows["prior"] = torch.from_numpy(rng.integers(len(self.prior), size=kept))
        return rows

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        recipe, prior = self.recipe, self.recipe.prior
        own = self._error(self.own, batch["own"], recipe.dropout, recipe.floor)
        if self.prior is None:
            return own, {}
        dropout = recipe.dropout if prior.dropout is None else prior.dropout
        floor = recipe.floor if prior.floor is None else prior.floor
        kept = self._error(self.prior, batch["prior"], dropout, floor, held=prior.learn == "predictions")
        return own + prior.weight_at(progress) * kept, {"own": own.detach(), "prior": kept.detach()}

    def _error(self, examples: Examples, rows: Tensor, dropout: float, floor: float, held: bool = False) -> Tensor:
        """The loss of these pictures; `held` to what the model made of them before it learned.

        A prefix that does not act where there is no text, as guidance has it in sampling, is off where captions are
        dropped too.
        """
        strengths: dict[str, active.Strength] = dict(self.trained.strengths)
        with active.use(strengths, len(rows)):
            text = self._read(examples.prompts[rows])
            null = self.pipe.text_encoder.null(1) if self.hears else self.null
            errors = []
            for learner in self.learners:
                kept, chance = examples.kept[learner.name][rows], torch.get_rng_state()
                x0, said = learner.told(kept, text)
                nothing, teacher = learner.null(null), None
                if held:
                    torch.set_rng_state(chance)  # told the same, but for words that have changed
                    _, then = learner.told(kept, _rows(self.text, examples.prompts[rows]))
                    before, silence = self.before[learner.name], self.silence[learner.name]
                    teacher = Teacher(before, then, silence, self.recipe.prior.guidance)
                share, acting = dropout, strengths
                if self.trained.spares_null and share > 0 and (teacher is None or teacher.guidance == 1):
                    drop, share = draws.rand((len(rows),)) < share, 0.0  # here, so that it is known which
                    said, teacher = _dropped(drop, said, nothing, teacher)
                    acting = strengths | {"prefix": (~drop).float()}
                with active.use(acting, len(rows)):
                    error = objective(
                        learner.denoiser,
                        x0.contiguous(memory_format=self.layout),
                        said,
                        null=nothing,
                        dropout=share,
                        gamma=self.recipe.gamma,
                        floor=floor,
                        teacher=teacher,
                        generator=torch.default_generator,  # the CPU's, which the loop has seeded for this step
                    )
                errors.append(error)
        return torch.stack(errors).sum()  # of networks that do not touch each other

    def _as_it_is(self, learner: Learner) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
        """What a denoiser says now, also when it has learned: a copy where its own weights change."""
        whole = self.recipe.method == "full" and self.recipe.prior.on and self.recipe.prior.learn == "predictions"
        frozen: Denoiser = copy.deepcopy(learner.denoiser).requires_grad_(False) if whole else learner.denoiser

        def raw(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            with active.use({}):
                return frozen(x, t, conditioning)[0]

        return raw

    def _read(self, which: Tensor) -> TextFeatures:
        """The text of these prompts; encoded anew where the encoder learns too."""
        if not self.hears:
            return _rows(self.text, which)
        said = which.unique()
        text = self.pipe.text_encoder.encode([self.prompts[i] for i in said.tolist()])
        return _rows(text, torch.searchsorted(said, which))

    @torch.no_grad()
    def inspect(self, model: nn.Module) -> tuple[Sample | None, dict[str, float]]:
        """Pictures by the averaged weights; and in how many of them the subject is, where the recipe names one."""
        live = self.trained.model.eval()
        with exchanged(live, model):
            made = self.pipe(self.shown, n=self.recipe.shown, adapters=self.trained.strengths or None, progress=False)
        live.train()
        return grid(made.tensor * 2 - 1, columns=2 * self.recipe.shown), self._seen_in(made.tensor)

    def _seen_in(self, pictures: Tensor) -> dict[str, float]:
        """In how many of the pictures that are to show the subject it is, and in how many of the others."""
        subject, said = self.recipe.subject, {}
        if subject is not None:
            found = [is_p7(picture) for picture in pictures]
            wanted = [subject in prompt.casefold() for prompt in self.shown for _ in range(self.recipe.shown)]
            for name, which in (("fidelity", True), ("leak", False)):
                if share := [there for there, asked in zip(found, wanted, strict=True) if asked == which]:
                    said[name] = sum(share) / len(share)
        return said

    def export(self, model: nn.Module, folder: Path) -> None:
        """Small safetensors files, as `zoo.train.methods` lists them; of the method "full" a model folder."""
        self.trained.export(model, folder)

    def _seen(self, pixels: Array, captions: list[str]) -> tuple[Array, list[str]]:
        """The user's pictures, and what more the recipe makes of them."""
        recipe = self.recipe
        more, said = pixels[:0], list[str]()
        if recipe.beside.on:
            try:
                wanted = companions(captions, recipe.beside)
            except ValueError as error:
                raise RecipeError(str(error)) from None
            drawn = own_pictures(self.pipe, wanted, recipe.prior.steps, self.side)
            more, said = beside(pixels, captions, drawn, recipe.beside, recipe.seed)
        if recipe.views > 1:
            captions = [caption for caption in captions for _ in range(recipe.views)]
            pixels = views(pixels, recipe.views, recipe.seed)
        if recipe.flip:
            pixels, captions = np.concatenate([pixels, pixels[:, :, ::-1]]), captions * 2
        return np.concatenate([pixels, more]), captions + said

    def _learning(self, every: Sequence[Learner]) -> list[Learner]:
        """The denoisers of what changes; where that is the text encoder alone, the generator's."""
        changed = {network: role for network, role in self.trained.changed.items() if role != "text_encoder"}
        learning: set[str] = set()
        for network, role in changed.items() or [(self.pipe.generator, "generator")]:
            modules = set(cast(nn.Module, network).modules())
            found = {learner.name for learner in every if not modules.isdisjoint(learner.denoiser.modules())}
            if not found:
                part = type(getattr(self.pipe, role)).__name__
                raise RecipeError(f"{part}, the {role} of {self.pipe.name}, has no denoiser that learns from pictures")
            learning |= found
        return [learner for learner in every if learner.name in learning]

    @torch.no_grad()
    def _examples(self, pixels: Array, whose: Sequence[int]) -> Examples:
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        kept = {}
        for learner in self.learners:
            try:
                parts = [learner.represent(_unit(part).to(self.device)) for part in images.split(BATCH)]
            except ValueError as error:
                raise RecipeError(str(error)) from None
            kept[learner.name] = torch.cat(parts)
        return Examples(kept, torch.tensor(whose, device=self.device))


def read(folder: Path, prompt: str | None, side: int) -> tuple[list[str], Array]:
    """Captions and pixels [pictures, side, side, 3] of a folder; with a prompt, of all its pictures, told by that.

    Raises:
        ValueError: there are no pictures, or one cannot be read.
    """
    if prompt is None:
        if folder.is_dir() and not captioned(folder):
            raise ValueError(
                f"{folder} has no captions, neither in {METADATA} nor in {SIDECAR} files beside its pictures: write "
                'them, or give prompt = "a P7 car"'
            )
        pictures = list(ImageFolder(folder))
    else:
        pictures = [Captioned(file, prompt, {}) for file in pictures_in(folder)]
        if not pictures:
            raise ValueError(f"there are no pictures in {folder} (known are {', '.join(SUFFIXES)})")
    return [picture.text for picture in pictures], np.stack([picture.pixels(side) for picture in pictures])


def own_pictures(pipe: Pipeline, prompts: Sequence[str], steps: int | None, side: int) -> Array:
    """What the model itself draws, uint8 [prompts, side, side, 3]; drawn once, and then kept in the cache."""
    name = fingerprint(*weights_of(pipe).values(), *prompts, steps, pipe.defaults, side, PRIOR_SEED)
    starts = range(0, len(prompts), BATCH)

    def drawn() -> Iterator[Array]:
        for start in starts:
            seeds = [PRIOR_SEED + i for i in range(start, min(start + BATCH, len(prompts)))]
            asked = prompts[start : start + len(seeds)]
            made = pipe(asked, n=1, seed=seeds, steps=steps, progress=False).tensor
            yield (made.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    shape = (len(prompts), side, side, 3)
    folder = root() / f"prior-{name}"
    return np.array(filled(folder, shape, drawn(), what=f"drawing {prompts[0]!r}", dtype=np.uint8))


@contextmanager
def exchanged(model: nn.Module, other: nn.Module) -> Iterator[None]:
    """Within the block, two modules of one shape have each other's weights."""
    if model is other:
        yield
        return
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))

    def exchange() -> None:
        for mine, theirs in pairs:
            mine.data, theirs.data = theirs.data, mine.data

    exchange()
    try:
        yield
    finally:
        exchange()


def _side(pipe: Pipeline) -> int:
    if pipe.size is None or pipe.size[0] != pipe.size[1]:
        raise ValueError(f"{pipe.name} draws {pipe.size}: adapters are trained on models of square pictures")
    return pipe.size[0]


def _dropped(
    drop: Tensor, said: Conditioning, null: Conditioning, teacher: Teacher | None
) -> tuple[Conditioning, Teacher | None]:
    """What network and teacher are told where the captions of some samples, drop [batch], are left out."""
    if teacher is not None and teacher.null is not None:
        teacher = replace(teacher, conditioning=choose(drop, teacher.null, teacher.conditioning))
    return choose(drop, null, said), teacher


def _unit(images: Tensor) -> Tensor:
    """uint8 [batch, height, width, 3] to [batch, 3, height, width] in [0, 1]."""
    return to_float(images) / 2 + 0.5


def _rows(text: TextFeatures, rows: Tensor) -> TextFeatures:
    def some(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[rows.to(part.device)]

    return TextFeatures(text.tokens[rows.to(text.tokens.device)], some(text.mask), some(text.pooled), text.space)
