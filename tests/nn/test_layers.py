"""Embeddings, resampling and residual blocks against their definitions."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from zoo.nn.embeddings import VectorEmbedding, sinusoidal
from zoo.nn.resampling import Downsample, Upsample
from zoo.nn.resnet import ResidualBlock
from zoo.nn.transformer import GatedFeedForward, SpatialTransformer


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_sinusoidal_as_defined(flip: bool, shift: float) -> None:
    found = sinusoidal(torch.tensor([0.0, 12.5]), 8, flip_sin_to_cos=flip, freq_shift=shift)
    assert found.dtype == torch.float32
    for row, t in enumerate((0.0, 12.5)):
        angles = [t * 10000 ** (-i / (4 - shift)) for i in range(4)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        expected = cosines + sines if flip else sines + cosines
        torch.testing.assert_close(found[row], torch.tensor(expected))


def test_sinusoidal_is_exact_for_half_precision_times() -> None:
    times = torch.tensor([999.0])
    assert torch.equal(sinusoidal(times.to(torch.float16), 16), sinusoidal(times, 16))


def test_downsample_pads_where_it_says() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    for padding, corner in (("symmetric", 0.0 + 1 + 4 + 5), ("end", 0.0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10)):
        down = Downsample(1, padding)
        nn.init.ones_(down.conv.weight)
        nn.init.zeros_(down.conv.bias)
        found = down(x)
        assert found.shape == (1, 1, 2, 2)
        assert found[0, 0, 0, 0] == corner


def test_upsample_repeats_pixels() -> None:
    up = Upsample(2)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_residual_block_adds_time_before_the_second_norm() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, groups=4, eps=1e-6, time_width=6)
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    h = block.conv1(nn.functional.silu(block.norm1(x))) + block.time(time).view(2, 16, 1, 1)
    expected = block.conv2(nn.functional.silu(block.norm2(h))) + block.shortcut(x)
    torch.testing.assert_close(block(x, time), expected)
    with pytest.raises(ValueError, match="time port"):
        block(x)


def test_residual_block_without_change_of_width_adds_to_its_input() -> None:
    block = ResidualBlock(8, 8, groups=4, eps=1e-6)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_residual_block_scales_and_shifts_by_the_time_after_the_second_norm() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, groups=4, eps=1e-6, time_width=6, scale_shift=True, activation="gelu", scale=0.5)
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    scale, shift = block.time(time).view(2, 2, 16, 1, 1).unbind(1)
    h = block.norm2(block.conv1(nn.functional.gelu(block.norm1(x)))) * (1 + scale) + shift
    expected = (block.conv2(nn.functional.gelu(h)) + block.shortcut(x)) / 2
    torch.testing.assert_close(block(x, time), expected)
    with pytest.raises(ValueError, match="time port"):
        block(x)
    with pytest.raises(ValueError, match="time_width"):
        ResidualBlock(8, 16, groups=4, eps=1e-6, scale_shift=True)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_residual_block_resamples_both_branches_before_the_first_convolution(direction: Literal["down", "up"]) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, groups=4, eps=1e-6, resample=direction)
    x = torch.randn(2, 8, 4, 6)

    def resampled(image: Tensor) -> Tensor:
        if direction == "up":
            return image.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (image[:, :, ::2, ::2] + image[:, :, 1::2, ::2] + image[:, :, ::2, 1::2] + image[:, :, 1::2, 1::2]) / 4

    h = block.conv1(resampled(nn.functional.silu(block.norm1(x))))
    expected = block.conv2(nn.functional.silu(block.norm2(h))) + block.shortcut(resampled(x))
    assert expected.shape[2:] == ((2, 3) if direction == "down" else (8, 12))
    torch.testing.assert_close(block(x), expected)


def test_residual_block_drops_out_in_training_only() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, groups=4, eps=1e-6, dropout=1.0)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x + block.conv2.bias.view(1, 8, 1, 1))
    assert not torch.allclose(block.eval()(x), x + block.conv2.bias.view(1, 8, 1, 1))


def test_gated_feed_forward_gates_with_the_second_half() -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(6), torch.randn(2, 3, 6)
    hidden, gate = layer.widen(x)[..., :24], layer.widen(x)[..., 24:]
    torch.testing.assert_close(layer(x), layer.out(hidden * nn.functional.gelu(gate)))


def test_linear_and_convolutional_projections_are_one_mathematics() -> None:
    torch.manual_seed(0)
    size = {"heads": 2, "depth": 2, "context_width": 6, "groups": 4}
    conv = SpatialTransformer(16, **size)
    linear = SpatialTransformer(16, **size, linear_projection=True)
    linear.load_state_dict({k: v.flatten(1) if v.ndim == 4 else v for k, v in conv.state_dict().items()})
    x, context = torch.randn(2, 16, 3, 5), torch.randn(2, 7, 6)
    torch.testing.assert_close(linear(x, context), conv(x, context))


def test_vector_embedding() -> None:
    torch.manual_seed(0)
    layer, x = VectorEmbedding(5, 12), torch.randn(3, 5)
    torch.testing.assert_close(layer(x), layer.second(nn.functional.silu(layer.first(x))))
    gelu = VectorEmbedding(5, 12, "gelu")
    torch.testing.assert_close(gelu(x), gelu.second(nn.functional.gelu(gelu.first(x))))
