"""DF-GAN's discriminator (arXiv 2008.05865): one verdict on a picture and a text, and the penalty that keeps it smooth.

    stem        patches of pixels as channels, 3x3 convolution
    levels      halve the size; attention to the tokens where the level has it
    verdict     the sentence joined with every place; 3x3 convolution, leaky ReLU, one convolution over all places

"One-way output": whether a picture is real and whether it shows the text is one number, high only if both are so. It
is learned from real pictures with their text, real pictures with a wrong one, and made pictures, by the hinge loss. At
the first of the three, gradients with respect to picture and text are drawn to zero ("matching-aware gradient
penalty"), so that what is made finds its way there downhill.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.gan.levels import SLOPE, LevelsConfig
from zoo.interface import Conditioning

WEIGHT, POWER = 2.0, 6.0  # of the gradient penalty, as published


class DiscriminatorConfig(LevelsConfig):
    """The shape of a discriminator; the defaults look at pictures of 64x64 pixels."""

    channels: tuple[int, ...] = (64, 128, 192, 256)
    attention: tuple[bool, ...] = (False, False, True, False)


class Discriminator(nn.Module):
    """Pictures [batch, 3, size, size] in [-1, 1] and text to verdicts [batch], high for a real one that shows it."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        last = config.channels[-1]
        self.alone = (*config.attention, True).index(True)  # levels that look at nothing but the picture
        self.sentence = config.pooling()
        self.stem = nn.Conv2d(3 * config.patch**2, config.channels[0], 3, padding=1)
        self.levels = nn.ModuleList(JudgingLevel(config, level) for level in range(len(config.channels)))
        self.joint = nn.Conv2d(last + config.sentence_width, last, 3, padding=1)
        self.verdict = nn.Conv2d(last, 1, config.side)

    def forward(self, images: Tensor, text: Conditioning) -> Tensor:
        """The verdicts.

        Raises:
            ValueError: pictures or text of the wrong shape.
        """
        return self.judge(self.see(images), text)

    def see(self, images: Tensor) -> Tensor:
        """What the first levels find in pictures, whatever the text: `judge` may be asked of several texts.

        Raises:
            ValueError: pictures of another size.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.config.size, self.config.size):
            side = self.config.size
            raise ValueError(f"the pictures have shape {list(images.shape)}; needed is [batch, 3, {side}, {side}]")
        side = self.config.patch
        h = self.stem(rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=side, q=side))
        for level in list(self.levels)[: self.alone]:
            h = level(h, None, None)
        return h

    def judge(self, seen: Tensor, text: Conditioning) -> Tensor:
        """The verdicts [batch] on what `see` found, with text [batch, length, context_width].

        Raises:
            ValueError: text of the wrong shape.
        """
        tokens = self.config.check(text, len(seen))
        for level in list(self.levels)[self.alone :]:
            seen = level(seen, tokens, text.mask)
        sentence = self.sentence(tokens, text.mask).to(seen.dtype)
        everywhere = repeat(sentence, "b c -> b c h w", h=seen.shape[2], w=seen.shape[3])
        joint = F.leaky_relu(self.joint(torch.cat([seen, everywhere], dim=1)), SLOPE)
        return rearrange(self.verdict(joint), "b 1 1 1 -> b")


class JudgingLevel(nn.Module):
    """What one size is made of; all but the finest begin by halving the size of what they are given."""

    def __init__(self, config: DiscriminatorConfig, level: int) -> None:
        super().__init__()
        self.block = JudgingBlock(config.channels[level - 1], config.channels[level]) if level else None
        self.attention = config.looking(level)

    def forward(self, h: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = h if self.block is None else self.block(h)
        return h if self.attention is None else self.attention(h, tokens, mask)


class JudgingBlock(nn.Module):
    """A strided and a plain convolution, times a learned number that begins at 0, beside a shortcut; halves size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.share = nn.Parameter(torch.zeros(()))
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), SLOPE)), SLOPE)
        x = F.avg_pool2d(x, 2)
        return (x if self.shortcut is None else self.shortcut(x)) + self.share.to(h.dtype) * h


def gradient_penalty(
    network: Discriminator, images: Tensor, text: Conditioning, *, weight: float = WEIGHT, power: float = POWER
) -> Tensor:
    """The matching-aware gradient penalty on real pictures [batch, 3, size, size] with their text: a scalar, float32.

    weight E[(|d verdict / d picture| + |d verdict / d tokens|) ^ power]; its gradient is one of second order.
    """
    images, tokens = images.detach().requires_grad_(), network.config.check(text, len(images)).detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        verdicts = network(images, Conditioning(tokens=tokens, mask=text.mask))
        slopes = torch.autograd.grad(verdicts.float().sum(), (images, tokens), create_graph=True)
    steepness = sum(slope.float().flatten(1).norm(dim=1) for slope in slopes)
    return weight * torch.as_tensor(steepness).pow(power).mean()
