"""What Karlo, the published unCLIP (arXiv 2204.06125), has that `zoo.dalle2.decoder` has not: its upsampler.

It is shown the smaller picture as it is, enlarged by bicubic interpolation and without noise, and it is two networks:
one for all steps but the last, one for that alone, which begins at time 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import tensors
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage
from zoo.dalle2.decoder import FILE, UnclipDecoder, UnclipDecoderConfig, UnclipNetwork
from zoo.diffusion.sample import sample
from zoo.interface import Conditioning, NoiseSource, Observer, Sampling, TextFeatures


class LastStep(nn.Module):
    """Two networks of one shape: `last` where the time is below 1, as in the last published step, `first` elsewhere."""

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = AdmUNet(config), AdmUNet(config)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """One evaluation, as `AdmUNet`; all times [batch] are of one step."""
        network = self.last if bool((t < 1).all()) else self.first
        output: Tensor = network(x, t, conditioning)
        return output


class KarloUpsampler(Stage):
    """Pictures [batch, 3, h, w] in [-1, 1] to [batch, 3, factor h, factor w], by the smaller picture alone."""

    def forward(
        self,
        pictures: Tensor,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sampling | None = None,
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """Enlarged pictures in float32; `sampling` None is the stage's own.

        Raises:
            ValueError: sampling settings that do not exist, guidance, or an augmentation, which it was not trained
                with.
        """
        asked = sampling or self.config.sampling
        self.check(asked)
        small = pictures.to(self.denoiser.device, torch.float32)
        height, width = (side * self.config.factor for side in small.shape[-2:])
        large = F.interpolate(small, (height, width), mode="bicubic", antialias=True)
        shown = Conditioning(concat=large)
        return sample(self.denoiser, shown, shown, noise, asked, large.shape, stage=self.config.name, observe=observe)

    def check(self, sampling: Sampling) -> None:
        """As any stage; and no noise on the smaller picture, for which there is no port."""
        super().check(sampling)
        if sampling.augmentation:
            raise ValueError(
                f"augmentation {sampling.augmentation:g}: Karlo's upsampler trusts the smaller picture and has no port "
                "for noise on it; leave it out"
            )


class KarloDecoder(UnclipDecoder):
    """CLIP image embeddings [batch, width] and captions to images, the last stage of which is a `KarloUpsampler`."""

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object]) -> UnclipDecoder:
        """The decoder of a model folder.

        Raises:
            ValueError: the arguments or the tensors do not fit, or a file is damaged.
        """
        config = UnclipDecoderConfig.model_validate(arguments)
        if len(config.upsamplers.stages) != 1 or not isinstance(config.upsamplers.networks[0], AdmUNetConfig):
            raise ValueError(f"Karlo has one upsampler, an ADM U-Net, not {len(config.upsamplers.stages)} stages")
        shape, stage = config.upsamplers.networks[0], config.upsamplers.stages[0]
        network = tensors.load(lambda: UnclipNetwork(config.decoder.network), folder / FILE)
        upsampler, path = tensors.on_meta(lambda: LastStep(shape)), folder / stage.name / FILE.name
        tensors.assign(upsampler, tensors.read(path), source=path)
        return cls.of(network, config.decoder, [KarloUpsampler(upsampler, stage)])
