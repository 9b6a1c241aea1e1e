"""A prior of one step (ECLIPSE, arXiv 2312.04655): from noise and text to an image embedding in one pass.

The network is that of the diffusion prior without time. Instead of denoising it learns by regression, and a contrastive
loss of CLIP's own kind keeps what it says near its text: without it, regression alone tells the mean of all images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from zoo.dalle2.part import STAGE, PriorPart, PriorPartConfig
from zoo.dalle2.prior import PriorConfig, PriorTransformer
from zoo.diffusion import draws
from zoo.diffusion.noise import INITIAL
from zoo.diffusion.ports import cast, choose, join
from zoo.interface import Conditioning, Init, NoiseSource, Observer, Sampling, Step


class OneStepPriorConfig(PriorPartConfig):
    """Everything about a one-step prior but its weights."""

    network: PriorConfig

    @model_validator(mode="after")
    def _fits(self) -> OneStepPriorConfig:
        self.fit(self.network)
        if self.network.timed:
            raise ValueError("a prior of one step has no time: network.timed must be false")
        return self


class OneStepPrior(PriorPart):
    """Text features to CLIP image embeddings [batch, embedding], in one pass of the network."""

    config_type = OneStepPriorConfig
    network_type = PriorTransformer
    config: OneStepPriorConfig
    network: PriorTransformer

    @property
    def own_steps(self) -> int:
        """One pass, whatever a call says."""
        return 1

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
        """Of `sampling` only the guidance is looked at: it extrapolates what is said of the text, away from `null`."""
        if init is not None:
            raise ValueError("a prior of one step starts from noise alone: leave out image=")
        weight, guided = self.network.head.weight, sampling.guidance != 1
        assert text.tokens is not None  # checked
        x = noise.draw(STAGE, INITIAL, (len(text.tokens), *self.shape())).to(weight.device)
        asked = cast(join(text, null) if guided else text, weight.device, weight.dtype)
        x0 = self.network(torch.cat([x, x]) if guided else x, None, asked)
        if guided:
            given, away = x0.chunk(2)
            x0 = away + sampling.guidance * (given - away)
        made = self.network.restore(x0)
        if observe is not None:
            observe(STAGE, Step(0, 0.0, made, made))
        return made


def loss(
    network: PriorTransformer,
    embeddings: Tensor,
    text: Conditioning,
    *,
    scale: Tensor | float,
    weight: float = 0.2,
    null: Conditioning | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The squared error of one pass and the contrast between what it says and the texts: two scalars in float32.

    Minimise their sum; the contrast is already weighted. Much above 0.2 it leads away from images (arXiv 2312.04655).

    Args:
        embeddings: of images, in the units of CLIP [batch, embedding]; the error is that of standardised ones.
        scale: CLIP's own logit scale.
        null: no text, which images are not contrasted with.
        dropout: the share of texts replaced by `null`, in [0, 1].
        generator: fixes noise and dropout; the same on every device if it is a CPU generator.
    """
    device = embeddings.device
    x0 = network.standardise(embeddings)
    noise = draws.randn(x0.shape, generator, device).to(device)
    kept, asked = torch.ones(len(x0), dtype=torch.bool, device=device), text
    if null is not None and dropout > 0:
        drop = (draws.rand((len(x0),), generator, device) < dropout).to(device)
        kept, asked = ~drop, choose(drop, null, text)
    made = network(noise, None, asked).float()
    error = F.mse_loss(made, x0)
    assert text.vector is not None  # the network looked at it
    with torch.autocast(device.type, enabled=False):
        said = F.normalize(network.restore(made), dim=-1) @ F.normalize(text.vector.float(), dim=-1).T
        right = torch.arange(len(x0), device=device)
        contrast = F.cross_entropy(scale * said, right, reduction="none")
    return error, weight * (contrast * kept).sum() / kept.sum().clamp(min=1)
