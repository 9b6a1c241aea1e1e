"""The diffusion prior of DALL-E 2 (arXiv 2204.06125): a caption to the CLIP embedding of an image of it.

    sequence    caption tokens, CLIP text embedding, time, noised image embedding, a learned query
    blocks      causal attention and feed-forward
    head        LayerNorm, linear, at the query: the clean embedding

An embedding is a vector [batch, width] like any other data: the network is that of a `Denoiser` that predicts x0, and
every sampler of `zoo.diffusion` draws from it. It works on standardised embeddings, whose mean and deviation are stored
with the weights, as in Karlo; the paper's single factor of 17.2 is the case of equal deviations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.dalle2.moments import moments
from zoo.dalle2.part import STAGE, PriorPart, PriorPartConfig
from zoo.dalle2.transformer import CausalTransformer, SequenceConfig
from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.interface import Adaptable, Conditioning, Init, NoiseSource, Observer, Prediction, Sampling
from zoo.nn.embeddings import VectorEmbedding, sinusoidal


class PriorConfig(SequenceConfig):
    """The shape of a prior's network; the defaults are Karlo's (1.02B parameters)."""

    timed: bool = True  # is the time a token of the sequence? A prior of one step has none
    query: bool = True  # a learned token at the end reads the answer; without it, the noised embedding's own token
    norm_in: bool = False  # a LayerNorm before the first block


PAPER = PriorConfig(embedding=1024, text_width=2048, length=256, width=2048, heads=32, layers=24)


class PriorTransformer(nn.Module):
    """Noised, standardised embeddings [batch, embedding] and times to clean ones."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.tokens = nn.Linear(config.text_width, width)
        self.vector = nn.Linear(config.embedding, width)
        self.time = VectorEmbedding(width, width) if config.timed else None
        self.image = nn.Linear(config.embedding, width)
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5) if config.query else None
        places = config.length + 2 + config.timed + config.query
        self.positions = nn.Parameter(torch.randn(1, places, width) * width**-0.5)
        self.norm_in = nn.LayerNorm(width) if config.norm_in else None
        self.blocks = CausalTransformer(config)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.embedding)
        self.register_buffer("mean", torch.zeros(1, config.embedding))
        self.register_buffer("std", torch.ones(1, config.embedding))

    def forward(self, x: Tensor, t: Tensor | None, conditioning: Conditioning) -> Tensor:
        """One evaluation, in the precision of the parameters; the output has the precision of `x`.

        Args:
            x: noised embeddings [batch, embedding].
            t: times [batch] in [0, 1000), integer or fractional; None for a network without time.
            conditioning: `tokens` [batch, length, text_width], perhaps with a `mask`, and `vector`, the CLIP text
                embedding [batch, embedding].

        Raises:
            ValueError: if an input is missing, not asked for, or of the wrong shape.
        """
        config, dtype = self.config, self.head.weight.dtype
        if x.ndim != 2 or x.shape[1] != config.embedding:
            raise ValueError(f"the input has shape {list(x.shape)}; this prior needs [batch, {config.embedding}]")
        text, vector = config.check(conditioning, len(x))
        parts = [self.tokens(text.to(dtype)), self.vector(vector.to(dtype))[:, None]]
        if (t is None) is config.timed or (t is not None and t.shape != (len(x),)):
            wanted = f"times of shape [{len(x)}]" if config.timed else "no times: it works in one step"
            raise ValueError(f"this prior needs {wanted}, got {None if t is None else list(t.shape)}")
        if self.time is not None and t is not None:
            parts.append(self.time(sinusoidal(t, config.width).to(dtype))[:, None])
        parts.append(self.image(x.to(dtype))[:, None])
        if self.query is not None:
            parts.append(self.query.expand(len(x), -1, -1))
        h = torch.cat(parts, dim=1) + self.positions
        h = h if self.norm_in is None else self.norm_in(h)
        h = self.blocks(h, conditioning.mask)
        return self.head(self.norm(h[:, -1])).to(x.dtype)

    @torch.no_grad()
    def measure(self, embeddings: Tensor) -> None:
        """Take mean and deviation from the embeddings [n, embedding] that are to be learned.

        Raises:
            ValueError: fewer than two of them.
        """
        mean, deviation = moments(embeddings)
        self.mean.copy_(mean)
        self.std.copy_(deviation)

    def standardise(self, embeddings: Tensor) -> Tensor:
        """Embeddings [batch, embedding] in the units that the network works in, float32."""
        return (embeddings.float() - self.mean.float()) / self.std.float()

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x.float() * self.std.float() + self.mean.float()


class ClampedDenoiser(Denoiser):
    """A denoiser whose clean estimates stay within +-`clamp`, as Karlo's do."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Target = "x0",
        variance: Variance = "fixed_small",
        *,
        clamp: float,
    ) -> None:
        super().__init__(network, schedule, prediction, variance)
        self.clamp = clamp

    def interpret(
        self, raw: Tensor, values: Tensor | None, x: Tensor, t: Tensor | float, s: float | None = None
    ) -> Prediction:
        prediction = super().interpret(raw, values, x, t, s)
        return replace(prediction, x0=prediction.x0.clamp(-self.clamp, self.clamp))


class DiffusionPriorConfig(PriorPartConfig):
    """Everything about a diffusion prior but its weights."""

    network: PriorConfig
    schedule: Schedule = Schedule("cosine")
    prediction: Target = "x0"
    variance: Variance = "fixed_small"
    clamp: float | None = Field(None, gt=0)  # of clean estimates, in deviations; Karlo's is 5

    @model_validator(mode="after")
    def _fits(self) -> DiffusionPriorConfig:
        self.fit(self.network)
        if not self.network.timed:
            raise ValueError("a diffusion prior is told the time: network.timed must be true")
        if self.variance in ("learned", "learned_range"):
            raise ValueError(f"a diffusion prior learns no variance, so it cannot be {self.variance!r}")
        return self


class DiffusionPrior(PriorPart):
    """Text features to CLIP image embeddings [batch, embedding], by sampling the diffusion prior."""

    config_type = DiffusionPriorConfig
    network_type = PriorTransformer
    config: DiffusionPriorConfig

    def __init__(self, denoiser: Denoiser, config: DiffusionPriorConfig) -> None:
        nn.Module.__init__(self)
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.config = config

    @classmethod
    def of(cls, network: PriorTransformer, config: DiffusionPriorConfig) -> DiffusionPrior:
        """The prior of a network that was trained as `config` says."""
        how = (network, config.schedule, config.prediction, config.variance)
        denoiser = Denoiser(*how) if config.clamp is None else ClampedDenoiser(*how, clamp=config.clamp)
        return cls(denoiser, config)

    @property
    def stored(self) -> PriorTransformer:
        return cast(PriorTransformer, self.denoiser.network)

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The network, and what diffusers calls its modules."""
        from zoo.dalle2.prior_keys import PRIOR

        return {"prior": Adaptable(self.stored, PRIOR.published(self.stored))}

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
        """`init.data` [batch, embedding] are embeddings to start from, in the units of CLIP."""
        if sampling.threshold is not None:
            raise ValueError(
                f"threshold {sampling.threshold:g} is for pixels, which lie in [-1, 1]; embeddings do not: leave it out"
            )
        network = self.stored
        assert text.tokens is not None  # checked
        if init is not None:
            init = replace(init, data=network.standardise(init.data.to(self.denoiser.device)))
        made = sample(
            self.denoiser,
            text,
            null,
            noise,
            sampling,
            (len(text.tokens), *self.shape()),
            stage=STAGE,
            init=init,
            observe=None if observe is None else _restored(observe, network),
        )
        return network.restore(made)


def _restored(observe: Observer, network: PriorTransformer) -> Observer:
    return lambda stage, step: observe(stage, replace(step, x=network.restore(step.x), x0=network.restore(step.x0)))
