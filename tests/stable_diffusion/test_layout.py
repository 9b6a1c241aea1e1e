"""A painted map as an input: to channels, through the network, and in the pipeline's call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from zoo.pipeline import Pipeline
from zoo.result import Result
from zoo.stable_diffusion.conditioning import map_channels
from zoo.stable_diffusion.parts import GeneratorConfig, LatentGenerator
from zoo.stable_diffusion.unet import UNet

CLASSES = ("background", "circle", "star")
Draw = Callable[..., Result]


@pytest.fixture(scope="module")
def mapped(tiny: Pipeline) -> Pipeline:
    """The tiny model with three more input channels and random weights."""
    assert isinstance(tiny.generator, LatentGenerator)
    config = tiny.generator.config
    unet = config.unet.model_copy(update={"in_channels": 4 + len(CLASSES)})
    network = UNet(unet)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source), alpha=0.1)
    options = dict(config) | {"unet": unet, "classes": CLASSES}
    generator = LatentGenerator.of(network, GeneratorConfig.model_validate(options))
    return Pipeline(tiny.text_encoder, generator, tiny.decoder, name="mapped", defaults=tiny.defaults, size=(32, 32))


@pytest.fixture
def draw(mapped: Pipeline) -> Draw:
    return lambda prompts, **settings: mapped(prompts, progress=False, **settings)


def halves(left: int, right: int) -> Tensor:
    layout = torch.full((32, 32), left)
    layout[:, 16:] = right
    return layout


def test_channels_are_the_shares_of_each_cell() -> None:
    layout = torch.zeros(1, 8, 8, dtype=torch.int64)
    layout[0, :4, :2] = 1
    layout[0, 7, 7] = 2
    channels = map_channels(layout, 3, 4)
    assert channels.shape == (1, 3, 2, 2)
    assert channels.sum(1).eq(1).all(), "every pixel is of one class"
    assert channels[0, 1].tolist() == [[0.5, 0], [0, 0]]
    assert channels[0, 2].tolist() == [[0, 0], [0, 1 / 16]]


def test_a_layout_makes_another_picture_and_is_each_images_own(draw: Draw) -> None:
    layouts = [halves(0, 1), halves(2, 0)]
    both = draw("a red circle", seed=[5, 5], layout=layouts).tensor
    for picture, layout in zip(both, layouts, strict=True):
        assert torch.allclose(picture, draw("a red circle", n=1, seed=5, layout=layout).tensor[0], atol=1 / 255)
    free = draw("a red circle", n=1, seed=5).tensor[0]
    assert min((both[0] - both[1]).abs().max(), (both[0] - free).abs().max()) > 0.02


def test_pictures_and_tensors_say_the_same(draw: Draw) -> None:
    layout = halves(0, 2)
    wanted = draw("a star", n=1, layout=layout).tensor
    picture = Image.fromarray(layout.byte().numpy())
    assert torch.equal(draw("a star", n=1, layout=picture).tensor, wanted)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert torch.equal(draw("a star", n=1, layout=picture.resize((96, 96))).tensor, wanted)
    assert torch.equal(draw("a star", n=1, layout=layout[None]).tensor, wanted)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (halves(0, 3), "holds 3, which is no class; there are: 0 background, 1 circle, 2 star"),
        (halves(-1, 0), "holds -1"),
        (halves(0, 1).float(), "whole numbers"),
        (halves(0, 1)[:16], r"of shape \[32, 32\], not torch.int64 of shape \[16, 32\]"),
        (Image.new("RGB", (32, 32)), "mode L or P, not RGB"),
        ([halves(0, 1)] * 3, "3 layouts: give one for all"),
    ],
)
def test_layouts_that_do_not_fit(draw: Draw, layout: Tensor | Image.Image | Sequence[Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(["a star", "a circle"], n=2, layout=layout)


def test_a_model_without_maps_says_so(tiny: Pipeline, mapped: Pipeline) -> None:
    with pytest.raises(ValueError, match="tiny takes no layout"):
        tiny("a star", layout=halves(0, 1), progress=False)


def test_classes_are_stored_and_must_fit_the_network(mapped: Pipeline) -> None:
    assert isinstance(mapped.generator, LatentGenerator)
    config = mapped.generator.config
    assert GeneratorConfig.model_validate(config.model_dump(mode="json")).classes == CLASSES
    with pytest.raises(ValueError, match="a map of 1 classes and 4 latent channels make 5 channels"):
        GeneratorConfig.model_validate(dict(config) | {"classes": ("background",)})
