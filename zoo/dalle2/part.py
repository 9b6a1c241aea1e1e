"""What the three priors have in common as parts of a pipeline: text features to a CLIP image embedding.

Several candidates are drawn for every image, each from a stream of noise of its own, and the one whose similarity with
the caption's CLIP text embedding is the greatest is kept (arXiv 2204.06125, section 2.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from einops import einsum, repeat
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from zoo import tensors
from zoo.dalle2.transformer import SequenceConfig
from zoo.diffusion.noise import GivenNoise
from zoo.interface import (
    Adaptable,
    Conditioning,
    Init,
    NoiseSource,
    Observer,
    Representation,
    RepresentationSpec,
    Sampling,
    Step,
    TextFeatures,
    TextSpec,
)

FILE = Path("prior") / "model.safetensors"
STAGE = "prior"


class PriorPartConfig(BaseModel):
    """What every prior's config says beside its network: the spaces it was trained between, how it is drawn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: SequenceConfig
    text: TextSpec
    image_space: str  # of the CLIP image embeddings it makes: `zoo.clip.Clip.image_space`
    candidates: int = Field(2, ge=1)  # drawn for each image, of which the one most like its text is kept
    unit: bool = True  # are embeddings unit vectors, as `zoo.clip.Clip` makes them, or as the projection gives them?

    def fit(self, network: SequenceConfig) -> None:
        """The network reads this text.

        Raises:
            ValueError: it does not.
        """
        said = (self.text.width, self.text.length, self.text.pooled)
        needed = (network.text_width, network.length, network.embedding)
        if said != needed:
            raise ValueError(
                f"the text has (width, length, pooled width) {said}, but the prior's network reads {needed}: a prior "
                "needs the text tower of a CLIP with its projection"
            )


@dataclass(frozen=True)
class CandidateNoise:
    """The streams of one candidate after the first."""

    source: NoiseSource
    number: int

    def draw(self, stage: str, step: int, shape: Sequence[int]) -> Tensor:
        return self.source.draw(f"{stage} {self.number}", step, shape)


class PriorPart(nn.Module, ABC):
    """Text features to CLIP image embeddings [batch, embedding]; a prior of its own says what its two types are."""

    config_type: ClassVar[type[PriorPartConfig]]
    network_type: ClassVar[type[nn.Module]]
    config: PriorPartConfig
    network: nn.Module

    def __init__(self, network: nn.Module, config: PriorPartConfig) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.config = config

    @classmethod
    def of(cls, network: Any, config: Any) -> Self:
        """The prior of a network that was trained as `config` says."""
        return cls(network, config)

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> Self:
        """The prior of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or the file is damaged.
        """
        config = cls.config_type.model_validate(arguments)
        return cls.of(tensors.load(lambda: cls.network_type(config.network), folder / FILE), config)

    @property
    def stored(self) -> nn.Module:
        """The network with its statistics: what `save` writes."""
        return self.network

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The network, known by its own names."""
        return {"prior": Adaptable(self.stored, {})}

    def shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """The shape, without the batch, of the noise that a candidate begins with, the same for images of any size."""
        return (self.config.network.embedding,)

    @abstractmethod
    def draw(
        self,
        text: Conditioning,
        null: Conditioning,
        noise: NoiseSource,
        sampling: Sampling,
        *,
        init: Init | None,
        observe: Observer | None,
    ) -> Tensor:
        """One embedding for each row of `text`, in the units of CLIP."""

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / FILE, self.stored.state_dict(), dtype)
        return self.config.model_dump(mode="json"), [FILE]

    @property
    def needs(self) -> TextSpec:
        return self.config.text

    @property
    def produces(self) -> RepresentationSpec:
        return RepresentationSpec("clip_image", (self.config.network.embedding,), self.config.image_space)

    @torch.no_grad()
    def generate(
        self,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sampling,
        *,
        size: tuple[int, int] | None = None,
        init: Init | None = None,
        layout: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Representation:
        """CLIP image embeddings for text features [batch, ...], led away from `null` if `sampling.guidance` is not 1.

        `size` is the decoder's affair. `observe` is shown the first candidate, as embeddings; stopped early, it is the
        only one, as it is of noise that was given: others of that would be the same.

        Raises:
            ValueError: text without the CLIP text embedding or of other sizes, a layout, a masked init, or settings
                that this prior does not have.
        """
        if layout is not None:
            raise ValueError("a prior makes embeddings, which have no places: leave out layout=")
        if init is not None and init.mask is not None:
            raise ValueError("a prior makes embeddings, which have no places: leave out mask=")
        given, away = (Conditioning(tokens=t.tokens, mask=t.mask, vector=t.pooled) for t in (text, null))
        _, vector = self.config.network.check(given, len(text.tokens))
        stopped = False

        def watch(stage: str, step: Step) -> bool:
            nonlocal stopped
            stopped = observe is not None and bool(observe(stage, step))
            return stopped

        drawn = [self.draw(given, away, noise, sampling, init=init, observe=watch if observe else None)]
        alone = stopped or (isinstance(noise, GivenNoise) and isinstance(noise.given, Tensor))
        for number in range(1, 1 if alone else self.config.candidates):
            drawn.append(self.draw(given, away, CandidateNoise(noise, number), sampling, init=init, observe=None))
        each = torch.stack(drawn)
        each = F.normalize(each, dim=-1) if self.config.unit else each
        likeness = einsum(each, vector.to(each), "candidate batch width, batch width -> candidate batch")
        best = repeat(likeness.argmax(0), "batch -> 1 batch width", width=each.shape[-1])
        return Representation(each.gather(0, best)[0], "clip_image", self.config.image_space)
