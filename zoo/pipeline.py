"""Three parts held together: prompts -> TextEncoder -> Generator -> Decoder -> images.

Nothing survives a call: one pipeline may serve many threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.adapt.adapters import Adapters, Choice, Chosen
from zoo.adapt.adaptive import Adaptive
from zoo.adapt.files import Shipped
from zoo.arguments import Picture, as_negatives, as_prompts, as_seeds
from zoo.call.abilities import ImageEncoder, Inpainting, Mapped, Negatable, Shaped, Staged, Stepless
from zoo.call.inputs import layout_of, start_of
from zoo.call.settings import OWN, Own, check_noise, sampling_of, size_of, stages_of
from zoo.call.unmet import warn_of_unmet
from zoo.config import Role
from zoo.diffusion.noise import GivenNoise, ImageNoise
from zoo.finite import Unread
from zoo.fit import check_fit, check_image_encoder
from zoo.interface import Decoder, Generator, Init, NoiseSource, Observer, Sampling, Step, TextEncoder, TextFeatures
from zoo.result import Result, mark_of
from zoo.safety import SafetyChecker
from zoo.safety import check as check_safety

__all__ = [
    "BATCH",
    "ImageEncoder",
    "Inpainting",
    "Mapped",
    "Negatable",
    "Pipeline",
    "Shaped",
    "Staged",
    "device_of",
]

BATCH = 16  # images made at once unless the call says otherwise


class UnheededNegative(UserWarning):
    """A negative prompt was given where no guidance leads away from it."""


class Pipeline(Adaptive):
    """Prompts to images. `size` is the (height, width) in pixels made by default, None for the generator's own.

    image_encoder: what makes of pictures what the decoder reads, where the decoder itself does not know the way back;
    edits need it, calls do not. For DALL-E 2 it is the CLIP that its parts were trained with.

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
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        check_fit(text_encoder, generator, decoder, labels or {})
        check_image_encoder(image_encoder, decoder)
        self.text_encoder = text_encoder
        self.generator = generator
        self.decoder = decoder
        self.image_encoder = image_encoder
        self.name = name
        self.defaults = defaults or Sampling()
        self.size = size
        self.unread: Unread | None = None  # weights that nobody has looked at yet
        self.safety_checker: SafetyChecker | None = None  # looks at every picture before it is handed out
        self.shipped: Mapping[str, Shipped] = {}  # adapters that came with the model, by name
        self._adapters = Adapters({"text_encoder": text_encoder, "generator": generator, "decoder": decoder})

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in (self.text_encoder, self.generator, self.decoder))
        return f"Pipeline({self.name!r}: {parts})"

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the parts that hold weights to a device, to a floating type, or both; returns the pipeline.

        They are moved in place: another pipeline that holds one of them sees it moved.
        """
        if isinstance(device, torch.dtype):  # as torch's own modules take it
            device, dtype = None, device
        for part in (self.text_encoder, self.generator, self.decoder, self.image_encoder):
            if isinstance(part, nn.Module):
                part.to(device=None if device is None else device_of(device), dtype=dtype)
        self._adapters.to(None if device is None else device_of(device), dtype)
        return self

    def check_weights(self) -> None:
        """Look at the weights that loading did not read; the first call does it.

        Raises:
            ValueError: a file holds NaN or infinity; the message names the tensors.
        """
        unread = self.unread  # which another thread's first call may let go of meanwhile
        if unread is not None:
            unread.check()
            self.unread = None

    def looked_over(self, images: Tensor) -> tuple[Tensor, tuple[bool, ...]]:
        """Images [batch, 3, height, width] as they may be handed out, and whether the safety checker, if there is one,
        found each unsafe."""
        return (images, ()) if self.safety_checker is None else check_safety(self.safety_checker, images)

    def stages(
        self, stages: Mapping[str, Mapping[str, object]] | None = None, augmentation: float | None = None
    ) -> dict[str, Sampling]:
        """How each stage of the decoder is sampled by a call that says this, in order; empty where it has none.

        Raises:
            ValueError: there is no such stage, or a setting that cannot be.
        """
        return stages_of(self.decoder, self.name, stages, augmentation)

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
        threshold: float | Own | None = OWN,
        cap: float | Own | None = OWN,
        interval: tuple[float, float] | Own | None = OWN,
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
        one for each image of the call (prompt by prompt), {} for none; None are those with a word of their own, for the
        prompts that say it; they act on text, negative prompt and picture alike, but not
        when image= is encoded. batch: images made at once.
        callback(stage, step): called after each step of a batch; True ends that stage of the batch early with what it
        has, and later stages go on. For the rest see `zoo.interface.Sampling`: what is left out is as the model has it,
        and so is what is None, but that None turns threshold, cap and interval off. Of these, generators without a
        sampler (`zoo.call.abilities.Stepless`) heed the guidance alone.

        Raises:
            ValueError: no prompts, a prompt longer than the text encoder's window, a setting that cannot be, or, at the
                first call, weights that are not finite.
        """
        self.check_weights()
        asked = as_prompts(prompts)
        seeds = as_seeds(seed, n, len(asked))
        count, owner = len(seeds), torch.arange(len(asked)).repeat_interleave(len(seeds) // len(asked))
        against = as_negatives(negative, len(asked))
        if any(against) and isinstance(self.generator, Negatable) and not self.generator.heeds_negative:
            raise ValueError(
                f"{self.name} leads away from no text or from nothing, and takes no negative prompt: leave negative out"
            )
        sampling = sampling_of(
            self.defaults,
            {
                "steps": steps,
                "sampler": sampler,
                "guidance": guidance,
                "eta": eta,
                "rescale": rescale,
                "threshold": threshold,
                "cap": cap,
                "interval": interval,
                "spacing": spacing,
            },
        )
        chain = self.stages(stages, augmentation)
        guided = (sampling, *chain.values()) if self.decoder.needs_text is not None else (sampling,)
        if any(against) and all(how.guidance == 1 for how in guided):
            warnings.warn(
                f"nothing leads {self.name} away from a negative prompt at guidance 1: expect it to change nothing",
                UnheededNegative,
                stacklevel=3,  # the caller of what torch.no_grad() has wrapped
            )
        chosen = self._adapters.choose(adapters, asked, count)
        warn_of_unmet(self._adapters.asked(chosen), sampling)
        size = size_of(self.generator, self.decoder, self.name, self.size, height, width)
        check_noise(self.generator, noise, count, size)
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        start, kept = start_of(self.generator, self.decoder, image, mask, strength, size, len(asked), count)
        painted = layout_of(self.generator, self.name, layout, size, len(asked), count)
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

        first: dict[str, Any] = asdict(sampling)
        if isinstance(self.generator, Stepless):
            first = {"guidance": sampling.guidance, "steps": self.generator.own_steps}
        walked = first["steps"] if start is None else max(1, round(first["steps"] * start.strength))
        total = -(-count // batch) * (walked + sum(how.steps for how in chain.values()))
        with _observer(progress, callback, total) as observe:
            images = torch.cat([*_in_memory(make, torch.arange(count), batch, observe)])
        settings = first | {"height": images.shape[-2], "width": images.shape[-1]}
        if chain:
            settings |= {"stages": {stage: asdict(how) for stage, how in chain.items()}}
        if start is not None:
            settings |= {"strength": start.strength}
        if kept is not None:  # outside the mask the given pixels stay as they were
            images = torch.lerp(kept[0].expand_as(images), images, kept[1].expand_as(images))
        settings |= chosen.settings()
        images, unsafe = self.looked_over(images)
        each = [(asked[i], against[i]) for i in owner]
        name = self.name + self._adapters.label()
        said, avoided = tuple(p for p, _ in each), tuple(a for _, a in each)
        began = {} if start is None else {"image": start.data, "mask": start.mask}
        given = mark_of(**began, layout=painted, noise=noise)
        return Result(images, said, tuple(seeds), settings, name, avoided, unsafe, given)

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


@contextmanager
def _observer(progress: bool, callback: Observer | None, total: int) -> Iterator[Observer]:
    from tqdm.auto import tqdm

    with tqdm(total=total, disable=not progress, unit="step") as bar:

        def observe(stage: str, step: Step) -> bool | None:
            bar.set_description(stage, refresh=False)
            bar.update()
            return callback(stage, step) if callback else None

        yield observe


def _in_memory(
    make: Callable[[Tensor, Observer], Tensor], rows: Tensor, batch: int, observe: Observer
) -> Iterator[Tensor]:
    """What `make` gives for these rows, `batch` at once, and half as many from where memory is short: no image depends
    on its neighbours."""
    while len(rows):
        try:
            made = make(rows[:batch], observe)
        except torch.OutOfMemoryError:
            if len(rows[:batch]) == 1:
                raise
            made = None
        # Here and not in the handler, where the error would keep the tensors of the failed try alive.
        if made is None:
            batch = -(-len(rows[:batch]) // 2)
        else:
            yield made
            rows = rows[batch:]


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
