"""DALL-E 2's decoder (arXiv 2204.06125): a CLIP image embedding, and perhaps the caption, to pictures.

    network     the embedding, standardised, joins the time and stands before the caption as a few tokens; ADM U-Net
    decoder     small pictures, by diffusion with classifier-free guidance
    upsamplers  larger ones, stage by stage, by the smaller picture alone

The embedding comes by the port `vector`, followed by the caption's CLIP text embedding if captions are read. No
embedding is a learned one, no caption the text encoder's own: guidance leads away from both at once, and training drops
them one by one. A decoder holds no CLIP. What makes embeddings of pictures is `zoo.clip.Clip`, whose space it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from zoo import tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, settings
from zoo.dalle2.keys import UNET
from zoo.dalle2.moments import moments
from zoo.dalle2.projection import ImageProjection, ImageProjectionConfig
from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import make_grid
from zoo.interface import (
    ANY,
    Adaptable,
    Conditioning,
    NoiseSource,
    Observer,
    Representation,
    RepresentationSpec,
    Sampling,
    TextFeatures,
    TextSpec,
)
from zoo.stages import StagesConfig, load_stages, save_stages

STAGE = "decoder"
NETWORK = "unclip"  # as adapter files know it; what they call "decoder" is the part, upsamplers included
FILE = Path(STAGE) / "model.safetensors"
SAMPLING = Sampling(steps=20, guidance=3.0, threshold=1.0)


class UnclipNetworkConfig(BaseModel):
    """The U-Net, and how it is told the embedding and the caption."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unet: AdmUNetConfig
    projection: ImageProjectionConfig

    @model_validator(mode="after")
    def _fits(self) -> UnclipNetworkConfig:
        unet, projection = self.unet, self.projection
        if not unet.vector or unet.augmentation or unet.in_channels != 3:
            raise ValueError("the decoder's U-Net makes pictures of noise and a vector: 3 in_channels and vector=True")
        if projection.time_width != unet.embedding_width:
            raise ValueError(
                f"the projection makes vectors {projection.time_width} wide, the U-Net takes {unet.embedding_width}"
            )
        if projection.text_channels != unet.context_width:
            raise ValueError(
                f"the projection makes tokens {projection.text_channels} wide, the U-Net takes {unet.context_width}"
            )
        return self

    @property
    def reads(self) -> bool:
        """Does it read captions, beside the embedding?"""
        return self.projection.context_width is not None

    @property
    def vector_width(self) -> int:
        """Of the port `vector`: the image embedding, and the text's if captions are read."""
        return self.projection.embedding_width * (2 if self.reads else 1)


class UnclipNetwork(nn.Module):
    """Noisy pictures [batch, 3, height, width], times and the embedding to the U-Net's output.

    Karlo's decoder is this with a mean of 0 and a deviation of 1: its embeddings come as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: UnclipNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = ImageProjection(config.projection)
        self.unet = AdmUNet(config.unet)
        self.register_buffer("mean", torch.zeros(config.projection.embedding_width))
        self.register_buffer("std", torch.ones(config.projection.embedding_width))

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """One evaluation, in the precision of the parameters.

        `conditioning` has `vector` [batch, embedding_width], the CLIP image embedding, or [batch, 2 embedding_width]
        with the CLIP text embedding behind it if captions are read; then also `tokens`, perhaps with a `mask`.

        Raises:
            ValueError: if an input is missing, not asked for, or of the wrong shape.
        """
        vector, width = conditioning.vector, self.config.projection.embedding_width
        needed = (len(x), self.config.vector_width)
        if vector is None or tuple(vector.shape) != needed:
            found = None if vector is None else list(vector.shape)
            raise ValueError(
                f"Conditioning.vector has shape {found}; this decoder needs {list(needed)}: the CLIP image embedding"
                + (", then the CLIP text embedding" if self.config.reads else "")
            )
        # Standardised in full precision: embeddings of different pictures have most of their length in common.
        dtype = self.projection.image_time.weight.dtype
        image = ((vector[:, :width].float() - self.mean.float()) / self.std.float()).to(dtype)
        pooled = vector[:, width:].to(dtype) if self.config.reads else None
        tokens = None if conditioning.tokens is None else conditioning.tokens.to(dtype)
        said = self.projection(image, pooled, tokens, conditioning.mask)
        output: Tensor = self.unet(x, t, said)
        return output

    @torch.no_grad()
    def measure(self, embeddings: Tensor) -> None:
        """Take mean and deviation from the embeddings [n, embedding_width] that it is to be trained with.

        Raises:
            ValueError: fewer than two of them.
        """
        mean, deviation = moments(embeddings)
        self.mean.copy_(mean)
        self.std.copy_(deviation)

    def null(self) -> Tensor:
        """What stands for no embedding, [1, embedding_width] in the units of CLIP; learned, at first the mean."""
        return (self.projection.null.float() * self.std.float() + self.mean.float())[None]


class UnclipConfig(BaseModel):
    """Everything about the decoder of small pictures but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: UnclipNetworkConfig
    schedule: Schedule = Schedule("cosine")
    prediction: Target = "epsilon"
    variance: Variance = "fixed_small"
    image_space: str  # of the CLIP image embeddings it decodes: `zoo.clip.Clip.image_space`
    text: TextSpec | None = None  # None: captions are not read
    resolution: tuple[int, int]  # height and width of its own pictures, as trained
    sampling: Sampling = SAMPLING

    @model_validator(mode="after")
    def _fits(self) -> UnclipConfig:
        width, pooled = self.network.projection.context_width, self.network.projection.embedding_width
        said = (None, pooled) if self.text is None else (self.text.width, self.text.pooled)
        if said != (width, pooled):
            raise ValueError(
                f"the caption has (width, pooled width) {said}, but the network reads {(width, pooled)}; a decoder "
                "that reads captions needs the text tower of a CLIP with its projection"
            )
        if any(side % self.network.unet.downsampling for side in self.resolution):
            raise ValueError(
                f"resolution={self.resolution} must be multiples of {self.network.unet.downsampling}, by which the "
                "U-Net shrinks"
            )
        outputs = 6 if self.variance in ("learned", "learned_range") else 3
        if self.network.unet.out_channels != outputs:
            raise ValueError(f"variance {self.variance!r} needs out_channels={outputs} of the U-Net")
        return self


class UnclipDecoderConfig(BaseModel):
    """The decoder and its upsamplers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: UnclipConfig
    upsamplers: StagesConfig = StagesConfig()

    @model_validator(mode="after")
    def _fits(self) -> UnclipDecoderConfig:
        for stage in self.upsamplers.stages:
            if stage.name in (STAGE, NETWORK):
                raise ValueError(f"an upsampler cannot be called {stage.name!r}: that is the stage before them all")
            if stage.text is not None:
                raise ValueError(f"upsampler {stage.name!r} reads text: DALL-E 2's look at the smaller picture alone")
        return self


class UnclipDecoder(nn.Module):
    """CLIP image embeddings [batch, width], and captions if it reads them, to images."""

    def __init__(self, denoiser: Denoiser, config: UnclipConfig, upsamplers: Sequence[Stage] = ()) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.chain = nn.ModuleList(upsamplers)
        self.config = config
        _ = self.whole  # raises where stages do not go together

    @classmethod
    def of(cls, network: UnclipNetwork, config: UnclipConfig, upsamplers: Sequence[Stage] = ()) -> UnclipDecoder:
        """The decoder of a network that was trained as `config` says.

        Raises:
            ValueError: an upsampler that reads text, or has the name of another stage.
        """
        return cls(Denoiser(network, config.schedule, config.prediction, config.variance), config, upsamplers)

    def enlarged_by(self, stages: Sequence[Stage]) -> UnclipDecoder:
        """This decoder with these stages after its own."""
        return UnclipDecoder(self.denoiser, self.config, [*self.upsamplers, *stages])

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> UnclipDecoder:
        """The decoder of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or a file is damaged.
        """
        config = UnclipDecoderConfig.model_validate(arguments)
        network = tensors.load(lambda: UnclipNetwork(config.decoder.network), folder / FILE)
        return cls.of(network, config.decoder, load_stages(folder, config.upsamplers))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        tensors.write(folder / FILE, self.denoiser.network.state_dict(), dtype)
        return self.whole.model_dump(mode="json"), [FILE, *save_stages(folder, self.upsamplers, dtype)]

    @property
    def whole(self) -> UnclipDecoderConfig:
        """Everything about all stages but their weights."""
        return UnclipDecoderConfig(decoder=self.config, upsamplers=StagesConfig.of(self.upsamplers))

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The network of small pictures, with what Karlo in diffusers calls its modules, and the upsamplers'."""
        theirs = {f"unet.{ours}": names for ours, names in UNET.published(self.network.unet).items()}
        larger = {stage.config.name: Adaptable(stage.denoiser.network, {}) for stage in self.upsamplers}
        return {NETWORK: Adaptable(self.network, theirs)} | larger

    @property
    def network(self) -> UnclipNetwork:
        return cast(UnclipNetwork, self.denoiser.network)

    @property
    def upsamplers(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.chain]

    @property
    def factor(self) -> int:
        """How much larger the upsamplers make the decoder's own pictures, per side."""
        factor = 1
        for stage in self.upsamplers:
            factor *= stage.config.factor
        return factor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        height, width = self.config.resolution
        return height * self.factor, width * self.factor

    @property
    def defaults(self) -> dict[str, Sampling]:
        """How each stage is sampled unless the call says otherwise."""
        return {STAGE: self.config.sampling} | {stage.config.name: stage.config.sampling for stage in self.upsamplers}

    def check(self, sampling: Sequence[Sampling]) -> None:
        """Raises ValueError where a stage cannot be sampled so; the decoder's own first, then the upsamplers'."""
        first, *rest = sampling
        make_grid(self.config.schedule, first.steps, first.spacing)
        for stage, how in zip(self.upsamplers, rest, strict=True):
            stage.check(how)

    @property
    def enlarging(self) -> list[str]:
        """The stages whose picture may be given noise before (`augmentation=`): the upsamplers."""
        return [stage.config.name for stage in self.upsamplers]

    @property
    def needs(self) -> RepresentationSpec:
        width = self.config.network.projection.embedding_width
        return RepresentationSpec("clip_image", (width,), self.config.image_space)

    @property
    def needs_text(self) -> TextSpec | None:
        return self.config.text

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
        """Images [batch, 3, height, width] in [0, 1], float32; `sampling` is that of each stage, or empty.

        Guidance leads away from no embedding with `null`, which is no text, or a negative prompt.

        Raises:
            ValueError: embeddings of another CLIP, settings for some of the stages only, or such as do not exist.
        """
        first, *rest = settings(self.defaults, sampling)
        small = sample(
            self.denoiser,
            self.condition(representation, text),
            self.condition(None, null),
            noise,
            first,
            (len(representation.data), 3, *self.config.resolution),
            stage=STAGE,
            observe=observe,
        )
        return self.enlarge(small, text, null, noise, rest, observe=observe)

    def enlarge(
        self,
        small: Tensor,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sequence[Sampling],
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """The decoder's own pictures in [-1, 1], by all upsamplers, to images in [0, 1]."""
        pictures = small.clamp(-1, 1)
        for stage, how in zip(self.upsamplers, sampling, strict=True):
            pictures = stage(pictures, text, null, noise, how, observe=observe).clamp(-1, 1)
        return (pictures + 1) / 2

    def condition(self, representation: Representation | None, text: TextFeatures) -> Conditioning:
        """What the network is fed for embeddings, or for none, and the captions.

        Raises:
            ValueError: embeddings of another CLIP, or captions without the CLIP text embedding.
        """
        device = self.denoiser.device
        if representation is None:
            embedding = self.network.null().expand(len(text.tokens), -1)
        else:
            self._check(representation)
            embedding = representation.data.to(device, torch.float32)
        if self.config.text is None:
            return Conditioning(vector=embedding)
        if text.pooled is None:
            raise ValueError(
                "this decoder reads captions, with the CLIP text embedding: TextFeatures.pooled is missing"
            )
        vector = torch.cat([embedding, text.pooled.to(device, torch.float32)], dim=1)
        return Conditioning(tokens=text.tokens, mask=text.mask, vector=vector)

    def _check(self, given: Representation) -> None:
        needed = self.needs
        if given.kind != needed.kind or given.data.ndim != 2 or given.data.shape[1:] != needed.shape:
            raise ValueError(
                f"this decoder needs {needed.kind} of shape [batch, {needed.shape[0]}], got {given.kind} of shape "
                f"{list(given.data.shape)}"
            )
        if needed.space not in (given.space, ANY):
            raise ValueError(
                f"these embeddings are of the CLIP {given.space}, but the decoder was trained with {needed.space}: "
                "take the CLIP that it was trained with, or the decoder that was trained with this one"
            )
