"""What the parts of a text-to-image system exchange: data and protocols, no behaviour.

    prompts --TextEncoder--> TextFeatures --Generator--> Representation --Decoder--> images

Shapes are written [batch, ...]. A *space* names the trained space a tensor lives in: a fingerprint of the weights that
define it. Two encoders of equal width are still two spaces, and `zoo.pipeline.Pipeline` refuses to join them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

Kind: TypeAlias = Literal["latent", "pixels", "clip_image"]
ANY = "any"  # the space that a part needs which does not say of which weights: then sizes alone are compared
PIXELS = "rgb"  # pixels in [-1, 1] need no training to be understood: one space for all who make or take them


@dataclass(frozen=True)
class TextFeatures:
    """Encoded prompts.

    tokens [batch, length, width]; mask [batch, length], True = attend, or None; pooled [batch, width] or None.
    """

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    space: str


@dataclass(frozen=True)
class Representation:
    """What a generator makes: data [batch, ...] of one kind, in one space."""

    data: Tensor
    kind: Kind
    space: str


@dataclass(frozen=True)
class Conditioning:
    """What a network is fed beside the noisy input and the time: the only ports there are."""

    tokens: Tensor | None = None  # [batch, length, width], attended to
    mask: Tensor | None = None  # [batch, length], True = attend
    vector: Tensor | None = None  # [batch, width], joined with the time embedding
    concat: Tensor | None = None  # [batch, channels, height, width], joined with the noisy input
    augmentation: Tensor | None = None  # [batch], noise level of `concat` in [0, 1]
    guidance: Tensor | None = None  # [batch], guidance scale (1 is off) that the network is to act out by itself


@dataclass(frozen=True)
class Prediction:
    """One call of a denoiser: the clean estimate, the network's raw output, and its log variance if it learns one."""

    x0: Tensor
    raw: Tensor
    log_variance: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One step of a sampler: its index, the time it left, the state it reached and the clean estimate it used."""

    index: int
    t: float
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Sampling:
    """How one diffusion stage is sampled. Lower `steps` is faster; `guidance` 1 means off."""

    steps: int = 20
    sampler: str = "dpmpp_2m"  # one of `zoo.diffusion.samplers.SAMPLERS`
    spacing: str = "trailing"  # of the times of its steps: see `zoo.diffusion.spacing.make_grid`
    guidance: float = 1.0
    rescale: float = 0.0  # 0 off, 0.7 as published (arXiv 2305.08891)
    interval: tuple[float, float] | None = None  # sigma/alpha range in which guidance acts (arXiv 2404.07724)
    threshold: float | None = None  # None off, 1.0 static clipping, below 1 the quantile of dynamic thresholding
    cap: float | None = None  # the most that dynamic thresholding divides by; None is no bound
    eta: float = 0.0  # the share of noise that DDIM adds again in each step, in [0, 1]
    augmentation: float | None = None  # noise in [0, 1] on the picture that a stage enlarges; None is the stage's own


@dataclass(frozen=True)
class Init:
    """Start from a given representation instead of pure noise.

    `strength` in (0, 1] is the share of the noise schedule that is walked (1 forgets the start). With a `mask`
    [batch, 1, height, width] in [0, 1], only where it is 1 is made anew. `known` represents the picture with that part
    greyed out, for generators that are shown it.
    """

    data: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class TextSpec:
    """The text features a part produces or needs. `length` and `pooled` None: any, or none needed."""

    width: int
    space: str
    length: int | None = None
    pooled: int | None = None


@dataclass(frozen=True)
class RepresentationSpec:
    """The representation a part produces or needs; `shape` without the batch, None where any size goes."""

    kind: Kind
    shape: tuple[int | None, ...]
    space: str


@dataclass(frozen=True)
class Adaptable:
    """A network that adapters are made for, and what published files call its modules.

    published: our names to theirs, in the order of preference; empty if the network is known by its own names only.
    """

    module: nn.Module
    published: Mapping[str, tuple[str, ...]]


Observer: TypeAlias = Callable[[str, Step], bool | None]
"""Called after each step with the stage's name; returning True stops that stage early with what it has."""


class NoiseSource(Protocol):
    """One stream of Gaussian noise per image, so that an image does not depend on the batch it is made in."""

    def draw(self, stage: str, step: int, shape: Sequence[int]) -> Tensor:
        """Noise of `shape` [batch, ...] on the CPU in float32; step -1 is the initial noise."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to features."""

    @property
    def produces(self) -> TextSpec: ...
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of the prompts, one row each, as `produces` says; a prompt that does not fit is a ValueError."""
        ...

    def null(self, n: int) -> TextFeatures:
        """What "no text" is for this encoder, `n` rows of it: the empty prompt, zeros, or a learned vector."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Text features to a representation of the image."""

    @property
    def needs(self) -> TextSpec: ...
    @property
    def produces(self) -> RepresentationSpec: ...
    def generate(
        self,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sampling,
        *,
        size: tuple[int, int] | None = None,
        init: Init | None = None,
        layout: Tensor | None = None,  # [batch, height, width] of class numbers: what goes where
        observe: Observer | None = None,
    ) -> Representation:
        """A representation for each row of `text`, as `produces` says.

        text, null: features of one batch; `null` is what guidance leads away from. noise: of as many images. size:
        (height, width) of the picture in pixels; None is the generator's own.

        Raises:
            ValueError: a size that cannot be made, or settings out of range.
        """
        ...


@runtime_checkable
class Decoder(Protocol):
    """A representation to images [batch, 3, height, width] in [0, 1].

    One that samples does so in stages; `sampling` is then that of each stage, in order, or empty for their own.
    """

    @property
    def needs(self) -> RepresentationSpec: ...
    @property
    def needs_text(self) -> TextSpec | None: ...
    def decode(
        self,
        representation: Representation,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sequence[Sampling] = (),
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """Images [batch, 3, height, width] in [0, 1], of a representation as `needs` says.

        text, null, noise: those that the generator was given, for decoders that read or sample.

        Raises:
            ValueError: a representation of another shape, or settings out of range.
        """
        ...
