"""Three parts held together: prompts -> TextEncoder -> Generator -> Decoder -> images.

Nothing survives a call: one pipeline may serve many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.adapt.adapters import Adapters, AdapterStatus, Choice, Chosen
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import Prefix
from zoo.adapt.report import Report
from zoo.adapt.words import Reader, Word, teach
from zoo.arguments import Picture, as_images, as_layout, as_mask, as_negatives, as_prompts, as_seeds, shrink
from zoo.config import Role
from zoo.diffusion.noise import GivenNoise, ImageNoise
from zoo.diffusion.samplers import find_sampler
from zoo.fit import check_fit
from zoo.interface import (
    Adaptable,
    Decoder,
    Generator,
    Init,
    NoiseSource,
    Observer,
    Representation,
    Sampling,
    Step,
    TextEncoder,
    TextFeatures,
)
from zoo.result import Result
from zoo.safety import SafetyChecker
from zoo.safety import check as check_safety

BATCH = 16  # images made at once unless the call says otherwise


@runtime_checkable
class ImageEncoder(Protocol):
    """A decoder that knows the way back, which starting from an image needs."""

    def encode(self, images: Tensor) -> Representation: ...


@runtime_checkable
class Shaped(Protocol):
    """A generator that tells the shape, without the batch, of what it makes; `noise=` is checked against it."""

    def shape(self, size: tuple[int, int] | None) -> tuple[int, ...]: ...


@runtime_checkable
class Negatable(Protocol):
    """A generator that says whether a negative prompt changes what it makes; others are taken to heed it."""

    @property
    def heeds_negative(self) -> bool: ...


@runtime_checkable
class Inpainting(Protocol):
    """A generator that may have been trained to fill masked pictures, and is then shown what the mask leaves."""

    @property
    def inpaints(self) -> bool: ...


@runtime_checkable
class Mapped(Protocol):
    """A generator that can be told what goes where; `classes` names the numbers in a layout, none if it takes none."""

    @property
    def classes(self) -> tuple[str, ...]: ...


@runtime_checkable
class Staged(Protocol):
    """A decoder that samples in stages; `defaults` is how each is sampled unless the call says otherwise, in order."""

    @property
    def defaults(self) -> Mapping[str, Sampling]: ...


class Pipeline:
    """Prompts to images. `size` is the (height, width) in pixels made by default, None for the generator's own.

    Raises:
        ValueError: parts that do not fit; the message names both, the mismatch and the mend.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        generator: Generator,
        decoder: Decoder,
        *,
        name: str = "assembled",
        defaults: Sampling | None = None,
        size: tuple[int, int] | None = None,
        labels: Mapping[Role, str] | None = None,
    ) -> None:
        check_fit(text_encoder, generator, decoder, labels or {})
        self.text_encoder = text_encoder
        self.generator = generator
        self.decoder = decoder
        self.name = name
        self.defaults = defaults or Sampling()
        self.size = size
        self.safety_checker: SafetyChecker | None = None  # looks at every picture before it is handed out
        self._adapters = Adapters({"text_encoder": text_encoder, "generator": generator, "decoder": decoder})

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in (self.text_encoder, self.generator, self.decoder))
        return f"Pipeline({self.name!r}: {parts})"

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the parts that hold weights to a device, to a floating type, or both; returns the pipeline."""
        for part in (self.text_encoder, self.generator, self.decoder):
            if isinstance(part, nn.Module):
                part.to(device=None if device is None else device_of(device), dtype=dtype)
        self._adapters.to(None if device is None else device_of(device), dtype)
        return self

    def load_lora(
        self, source: str | Path | Mapping[str, LoRA], *, name: str | None = None, partial: bool = False
    ) -> Report | None:
        """Load a LoRA; it acts in the calls that ask for it, `pipe(prompt, adapters={name: 0.8})`, and in no others.

        source: a file or folder in any of the layouts of `zoo.adapt.formats`, a hub id, one file of a hub repository
        (`owner/name/file`), or LoRAs by part. name: the file's unless given. partial: load what fits. Returns the
        report on the file.

        Raises:
            ValueError: a name that is taken, a damaged file, or one that does not fit; the message names the keys.
        """
        return self._adapters.load_lora(source, name, partial=partial)

    def load_prefix(self, source: str | Path | Mapping[str, Prefix], *, name: str | None = None) -> None:
        """Load a prefix (`zoo.adapt.prefix`), which is then asked for as a LoRA is; it cannot be merged.

        Raises:
            ValueError: a name that is taken, a damaged file, or one that does not fit.
        """
        self._adapters.load_prefix(source, name)

    def load_word(self, source: str | Path | Word) -> str:
        """Teach the text encoder a word that was learned (`zoo.adapt.words`): prompts that say it mean it from now on.

        Returns the word. Not while calls run.

        Raises:
            ValueError: a damaged file, or an encoder that it was not learned for.
        """
        word = source if isinstance(source, Word) else Word.load(source)
        teach(cast(Reader, self.text_encoder), word)
        return word.name

    def adaptable(self) -> dict[str, Adaptable]:
        """The networks that adapters can be trained for and loaded into, by the names that their files use."""
        return self._adapters.networks()

    def adapters(self) -> dict[str, AdapterStatus]:
        """What is loaded, by name: kind, source, adapted modules, and with which strength it is merged, if it is."""
        return self._adapters.status()

    def report_lora(self, source: str | Path) -> Report:
        """What of a LoRA file would fit this pipeline, key by key; nothing is loaded.

        Raises:
            ValueError: the file cannot be read.
        """
        return self._adapters.report(source)

    def merge(self, adapters: str | Choice) -> None:
        """Fold adapters into the weights, in place of those merged before: they act in every call and cost nothing.

        `unmerge` needs the weights of before, so a second copy of the adapted modules is kept. Not while calls run.

        Raises:
            ValueError: an adapter is not loaded, or is a prefix.
        """
        self._adapters.merge(adapters)

    def unmerge(self) -> None:
        """Put back the weights of before `merge`, to the bit. Not while calls run."""
        self._adapters.unmerge()

    def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ValueError: it is not loaded, or is merged.
        """
        self._adapters.unload(name)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        n: int | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        negative: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        eta: float | None = None,
        rescale: float | None = None,
        threshold: float | None = None,
        cap: float | None = None,
        interval: tuple[float, float] | None = None,
        spacing: str | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        layout: Picture | Sequence[Picture] | None = None,
        stages: Mapping[str, Mapping[str, object]] | None = None,
        augmentation: float | None = None,
        adapters: Choice | Sequence[Choice] | None = None,
        batch: int = BATCH,
        progress: bool = True,
        callback: Observer | None = None,
    ) -> Result:
        """Draw `n` images for each prompt; the empty prompt "" samples without condition.

        n: images per prompt: 4, or as many as there are seeds. seed: image j of every prompt has seed + j; or a list
        of seeds, one per image of a prompt or one per image of the whole call. An image depends on its own seed, prompt
        and settings, not on the batch it is made in. negative: what to guide away from instead of "no text", one for
        all prompts or one each. noise [images, ...]: the initial noise instead of the seeds' own. image: start from it;
        strength in (0, 1] (0.6, or 1 with a mask) says how much is made anew. mask: with an image, 1 or white where it
        is made anew. layout: for models that take one, a painted map of what goes where: a picture (mode L or P) or
        tensor [height, width] of class numbers, which the model's `generator.classes` names. stages: for models whose
        decoder samples too, settings by the stage's name, such as {"super-resolution": {"steps": 4}}; augmentation in
        [0, 1]: the noise that all of them put on the picture they enlarge. adapters: the loaded adapters that act,
        with their strengths, such as {"p7": 0.8}: one choice for all images, a list with one for each prompt, or with
        one for each image of the call (prompt by prompt); they act on text, negative prompt and picture alike, but not
        when image= is encoded. batch: images made at once.
        callback(stage, step): called after each step; True ends the batch early with what it has. For the rest see
        `zoo.interface.Sampling`; None takes the model's default.

        Raises:
            ValueError: no prompts, a prompt longer than the text encoder's window, or a setting that cannot be.
        """
        asked = as_prompts(prompts)
        seeds = as_seeds(seed, n, len(asked))
        count, owner = len(seeds), torch.arange(len(asked)).repeat_interleave(len(seeds) // len(asked))
        against = as_negatives(negative, len(asked))
        if any(against) and isinstance(self.generator, Negatable) and not self.generator.heeds_negative:
            raise ValueError(
                f"{self.name} was distilled to lead away from no text and takes no negative prompt: leave out negative="
            )
        sampling = self._sampling(
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            eta=eta,
            rescale=rescale,
            threshold=threshold,
            cap=cap,
            interval=interval,
            spacing=spacing,
        )
        chain = self._stages(stages, augmentation)
        chosen = self._adapters.choose(adapters, len(asked), count)
        size = self._size(height, width)
        self._check_noise(noise, count, size)
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        start, kept = self._start(image, mask, strength, size, len(asked), count)
        painted = self._painted(layout, size, len(asked), count)
        text, spoken = self._features(asked, owner, chosen)
        null, unspoken = self._features(against, owner, chosen)

        def make(rows: Tensor, observe: Observer) -> Tensor:
            source: NoiseSource = ImageNoise([seeds[i] for i in rows])
            features, nothing = _pick(text, spoken[rows]), _pick(null, unspoken[rows])
            chained = list(chain.values())
            with chosen.use(rows):
                representation = self.generator.generate(
                    features,
                    nothing,
                    source if noise is None else GivenNoise(noise[rows], then=source),
                    sampling,
                    size=size,
                    init=None if start is None else _init(start, rows),
                    layout=_rows(painted, rows),
                    observe=observe,
                )
                made = self.decoder.decode(representation, features, nothing, source, chained, observe=observe)
            return made.float().cpu()

        total = -(-count // batch) * sum(how.steps for how in (sampling, *chain.values()))
        with _observer(progress, callback, total) as observe:
            images = torch.cat([_in_memory(make, rows, observe) for rows in torch.arange(count).split(batch)])
        settings = asdict(sampling) | {"height": images.shape[-2], "width": images.shape[-1]}
        if chain:
            settings |= {"stages": {stage: asdict(how) for stage, how in chain.items()}}
        if start is not None:
            settings |= {"strength": start.strength}
        if kept is not None:  # outside the mask the given pixels stay as they were
            images = torch.lerp(kept[0].expand_as(images), images, kept[1].expand_as(images))
        settings |= chosen.settings()
        images, unsafe = (images, ()) if self.safety_checker is None else check_safety(self.safety_checker, images)
        each = [(asked[i], against[i]) for i in owner]
        name = self.name + self._adapters.label()
        said, avoided = tuple(p for p, _ in each), tuple(a for _, a in each)
        return Result(images, said, tuple(seeds), settings, name, avoided, unsafe)

    def _sampling(self, **given: object) -> Sampling:
        said = {key: value for key, value in given.items() if value is not None}
        return _checked(replace(self.defaults, **said))  # type: ignore[arg-type]

    def _stages(
        self, stages: Mapping[str, Mapping[str, object]] | None, augmentation: float | None
    ) -> dict[str, Sampling]:
        """How each stage of the decoder is sampled."""
        defaults = dict(self.decoder.defaults) if isinstance(self.decoder, Staged) else {}
        if not defaults and (stages or augmentation is not None):
            raise ValueError(f"{self.name} has no stages that are sampled after its generator: leave out stages=")
        if stages is not None and not isinstance(stages, Mapping):
            raise ValueError(f"stages are settings by the stages' names ({', '.join(defaults)}), not {stages!r}")
        for stage, said in (stages or {}).items():
            if stage not in defaults:
                raise ValueError(f"{self.name} has no stage {stage!r}; there are: {', '.join(defaults)}")
            if not isinstance(said, Mapping):
                raise ValueError(f'settings of stage {stage!r} are given by name, such as {{"steps": 4}}, not {said!r}')
            if unknown := said.keys() - {field.name for field in fields(Sampling)}:
                raise ValueError(f"stage {stage!r} knows no setting {', '.join(sorted(unknown))}")
            defaults[stage] = replace(defaults[stage], **said)  # type: ignore[arg-type]
        if augmentation is not None:
            defaults = {stage: replace(how, augmentation=augmentation) for stage, how in defaults.items()}
        return {stage: _checked(how) for stage, how in defaults.items()}

    def _size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        if height is None and width is None:
            size = self.size
        else:
            default = self.size or (height or width or 0, width or height or 0)
            size = (default[0] if height is None else height, default[1] if width is None else width)
        if size is not None and min(size) < 1:
            raise ValueError(f"impossible size {size[0]} x {size[1]}: height and width are counted in pixels, from 1")
        if isinstance(self.generator, Shaped):
            self.generator.shape(size)  # raises where the generator cannot make it
        return size

    def _check_noise(self, noise: Tensor | None, count: int, size: tuple[int, int] | None) -> None:
        if noise is None or not isinstance(self.generator, Shaped):
            return
        wanted = (count, *self.generator.shape(size))
        if tuple(noise.shape) != wanted:
            raise ValueError(f"noise has shape {list(noise.shape)}, but these {count} images start from {list(wanted)}")

    def _features(self, texts: Sequence[str], owner: Tensor, chosen: Chosen) -> tuple[TextFeatures, Tensor]:
        """Each text, once for every choice of adapters that its images make, and which is whose: [images]."""
        found: list[TextFeatures] = []
        whose = torch.zeros_like(owner)
        for images in chosen.groups():
            mine = owner[images].unique()
            whose[images] = sum(len(features.tokens) for features in found) + torch.searchsorted(mine, owner[images])
            with chosen.alone(images[0]):
                found.append(self._encoded([texts[int(i)] for i in mine]))
        return _join(found), whose

    def _encoded(self, texts: Sequence[str]) -> TextFeatures:
        # Every different text is encoded once; the empty one is what the encoder declares to be no text.
        distinct = sorted(set(texts))
        said = [text for text in distinct if text]
        encoded = [self.text_encoder.null(1)] if len(said) < len(distinct) else []
        encoded += [self.text_encoder.encode(said)] if said else []
        return _pick(_join(encoded), torch.tensor([distinct.index(text) for text in texts]))

    def _start(
        self,
        image: Picture | Sequence[Picture] | None,
        mask: Picture | Sequence[Picture] | None,
        strength: float | None,
        size: tuple[int, int] | None,
        prompts: int,
        count: int,
    ) -> tuple[Init | None, tuple[Tensor, Tensor] | None]:
        """Where sampling starts, and the pixels to keep (original, mask), from what the user gave."""
        if image is None:
            if mask is not None or strength is not None:
                raise ValueError("mask and strength say what to do with an image: give image= as well")
            return None, None
        if not isinstance(self.decoder, ImageEncoder):
            raise ValueError(f"{type(self.decoder).__name__} cannot encode images, so image= does not work with it")
        strength = (1.0 if mask is not None else 0.6) if strength is None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1], not {strength}: 1 keeps nothing of the image")
        pictures = as_images(image, size, prompts, count)
        latents = self.decoder.encode(pictures).data.float().cpu()
        latents = latents.expand(count, *latents.shape[1:])
        if mask is None:
            return Init(latents, strength), None
        fresh = as_mask(mask, (pictures.shape[-2], pictures.shape[-1]), prompts, count)
        small, known = shrink(fresh, latents), None
        if isinstance(self.generator, Inpainting) and self.generator.inpaints:
            # As such networks were trained: a mask of whole latents, and grey, 0 in [-1, 1], where it is.
            small = (F.interpolate(fresh, latents.shape[-2:]) >= 0.5).float()
            known = self.decoder.encode(torch.where(fresh >= 0.5, 0.5, pictures)).data.float().cpu()
            known = known.expand(count, *known.shape[1:])
        return Init(latents, strength, small.expand(count, *small.shape[1:]), known), (pictures, fresh)

    def _painted(
        self, layout: Picture | Sequence[Picture] | None, size: tuple[int, int] | None, prompts: int, count: int
    ) -> Tensor | None:
        """The class of every pixel, [count, height, width]."""
        if layout is None:
            return None
        if not isinstance(self.generator, Mapped) or not self.generator.classes:
            raise ValueError(f"{self.name} takes no layout: its generator was trained without semantic maps")
        return as_layout(layout, self.generator.classes, size, prompts, count)


def _checked(sampling: Sampling) -> Sampling:
    if not isinstance(sampling.steps, int) or sampling.steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, not {sampling.steps!r}")
    find_sampler(sampling.sampler, sampling.eta)  # raises where there is none such
    return sampling


@contextmanager
def _observer(progress: bool, callback: Observer | None, total: int) -> Iterator[Observer]:
    from tqdm.auto import tqdm

    with tqdm(total=total, disable=not progress, unit="step") as bar:

        def observe(stage: str, step: Step) -> bool | None:
            bar.set_description(stage, refresh=False)
            bar.update()
            return callback(stage, step) if callback else None

        yield observe


def _in_memory(make: Callable[[Tensor, Observer], Tensor], rows: Tensor, observe: Observer) -> Tensor:
    """What `make` gives for these rows, in halves where memory is short: no image depends on its neighbours."""
    try:
        return make(rows, observe)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    # Here and not in the handler, where the error would keep the tensors of the failed try alive.
    return torch.cat([_in_memory(make, half, observe) for half in rows.chunk(2)])


def device_of(device: str | torch.device) -> torch.device:
    """The device of a name, "auto" being an accelerator if there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows.to(tensor.device)]


def _init(start: Init, rows: Tensor) -> Init:
    return replace(start, data=start.data[rows], mask=_rows(start.mask, rows), known=_rows(start.known, rows))


def _pick(features: TextFeatures, rows: Tensor) -> TextFeatures:
    tokens = features.tokens[rows.to(features.tokens.device)]
    return TextFeatures(tokens, _rows(features.mask, rows), _rows(features.pooled, rows), features.space)


def _join(features: Sequence[TextFeatures]) -> TextFeatures:
    def both(parts: Sequence[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if len(there) == len(parts) else None

    mask, pooled = both([f.mask for f in features]), both([f.pooled for f in features])
    return TextFeatures(torch.cat([f.tokens for f in features]), mask, pooled, features[0].space)
