"""A stage of a cascade, with networks that say what they were fed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cascade import Stage, StageConfig, condition, consistent, settings, shrunk
from zoo.diffusion.noise import INITIAL, ImageNoise
from zoo.interface import Conditioning, Sampling, TextFeatures, TextSpec

TEXT = TextFeatures(torch.ones(2, 3, 4), None, None, "words")
NULL = TextFeatures(torch.zeros(2, 3, 4), None, None, "words")


class Echo(nn.Module):
    """Says that the clean picture is what it was fed by `concat`, and remembers its other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[Conditioning] = []

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.fed.append(conditioning)
        assert conditioning.concat is not None
        return conditioning.concat


def stage(**said: object) -> tuple[Stage, Echo]:
    config = StageConfig.model_validate({"prediction": "x0", "sampling": Sampling(steps=2), **said})
    network = Echo()
    return Stage(network, config), network


def pictures(side: int = 4) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_stage_enlarges_what_it_is_given() -> None:
    enlarge, _ = stage(factor=2)
    made = enlarge(pictures(), TEXT, NULL, ImageNoise([0, 1]))
    smooth = F.interpolate(pictures(), scale_factor=2, mode="bilinear")
    assert made.shape == (2, 3, 8, 8)
    assert (made - smooth).abs().max() < 0.05, "at level 0 the schedule leaves next to no noise"


def test_a_consistent_stage_keeps_what_it_was_given() -> None:
    """And takes its details from the network: bilinear enlargement, here, smoothes what it enlarges."""
    loose, strict = stage()[0], stage(consistent=True)[0]
    small = pictures() / 4  # far from the ends of the range, where clamping would tell
    made, kept = (one(small, TEXT, NULL, ImageNoise([0, 1])) for one in (loose, strict))
    assert (shrunk(made, 2) - small).abs().max() > 0.01
    torch.testing.assert_close(shrunk(kept, 2), small)
    torch.testing.assert_close(kept - larger(shrunk(kept, 2)), made - larger(shrunk(made, 2)))
    bright = strict(torch.ones(2, 3, 4, 4), TEXT, NULL, ImageNoise([0, 1]))
    assert bright.max() <= 1


def test_means_come_back_where_half_of_the_pixels_are_white_already() -> None:
    """What the clamp takes from a correction there, the other pixels make up for."""
    striped = torch.ones(1, 1, 2, 2)
    striped[..., 0] = 0
    small = torch.full((1, 1, 1, 1), 0.9)
    torch.testing.assert_close(shrunk(consistent(striped, small), 2), small, atol=0.02, rtol=0)
    assert consistent(striped, small)[0, 0, 0].diff() > 0, "the stripes stay"


def larger(small: Tensor) -> Tensor:
    return F.interpolate(small, scale_factor=2.0)


def test_the_level_is_told_and_done() -> None:
    enlarge, network = stage(sampling=Sampling(steps=1, augmentation=0.3))
    enlarge(pictures(), TEXT, NULL, ImageNoise([0, 1]))
    enlarge(pictures(), TEXT, NULL, ImageNoise([0, 1]), Sampling(steps=1, augmentation=0.9))
    enlarge(pictures(), TEXT, NULL, ImageNoise([0, 1]), Sampling(steps=1))
    levels = [float(fed.augmentation[0]) for fed in network.fed if fed.augmentation is not None]
    assert levels == pytest.approx([0.3, 0.9, 0.3]), "None is the stage's own"
    smooth = F.interpolate(pictures(), scale_factor=2, mode="bilinear")
    little, much = (fed.concat - smooth for fed in network.fed[:2] if fed.concat is not None)
    assert float(much.square().mean()) > 4 * float(little.square().mean()) > 0.01


def test_noise_keeps_variance_and_level_one_is_noise_alone() -> None:
    config = StageConfig()
    grain = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    fed = condition(torch.full((2, 3, 32, 32), 0.8), torch.tensor([0.5, 1.0]), grain, config).concat
    assert fed is not None
    alpha, sigma = config.augmentation_schedule.at(500)
    assert float(fed[0].mean()) == pytest.approx(0.8 * float(alpha), abs=0.03)
    assert float(fed[0].std()) == pytest.approx(float(sigma), rel=0.03)
    assert (fed[1] - grain[1]).abs().max() < 0.01


@pytest.mark.parametrize("level", [-0.1, 1.5])
def test_a_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="augmentation level lies in"):
        condition(pictures(), torch.full((2,), level), torch.zeros(2, 3, 8, 8), StageConfig())


def test_a_pictures_grain_is_its_own() -> None:
    enlarge, _ = stage(sampling=Sampling(steps=2, augmentation=0.4))
    two = enlarge(pictures(), TEXT, NULL, ImageNoise([5, 6]))
    text = TextFeatures(TEXT.tokens[1:], None, None, "words")
    alone = enlarge(pictures()[1:], text, NULL, ImageNoise([6]))
    assert torch.equal(two[1:], alone)
    streams = dict[str, Tensor]()

    class Told(ImageNoise):
        def draw(self, stage: str, step: int, shape: Sequence[int]) -> Tensor:
            drawn = super().draw(stage, step, shape)
            if step == INITIAL:
                streams[stage] = drawn
            return drawn

    enlarge(pictures()[1:], text, NULL, Told([6]))
    grain, begun = streams.values()
    assert not torch.equal(grain, begun), "what a stage begins with is not what its small picture was noised with"


def test_text_reaches_a_stage_that_reads() -> None:
    reads, network = stage(text=TextSpec(4, "words"), sampling=Sampling(steps=1, guidance=2.0))
    reads(pictures(), TEXT, NULL, ImageNoise([0, 1]))
    fed = network.fed[0]
    assert fed.tokens is not None
    assert fed.tokens.shape == (4, 3, 4), "with text, then without"
    assert fed.concat is not None
    assert torch.equal(fed.concat[:2], fed.concat[2:]), "guidance leads away from no text, not from no picture"
    looks, network = stage()
    looks(pictures(), TEXT, NULL, ImageNoise([0, 1]))
    assert network.fed[0].tokens is None


def test_shrinking_is_the_mean() -> None:
    small = shrunk(pictures(4), 2)
    assert small.shape == (2, 3, 2, 2)
    assert torch.allclose(small[0, 0, 0, 0], pictures(4)[0, 0, :2, :2].mean())


def test_settings_are_for_all_stages_or_none() -> None:
    defaults = {"one": Sampling(steps=8), "two": Sampling(steps=3)}
    assert [how.steps for how in settings(defaults, ())] == [8, 3]
    assert [how.steps for how in settings(defaults, [Sampling(steps=1)] * 2)] == [1, 1]
    with pytest.raises(ValueError, match=r"1 settings were given for 2 stages \(one, two\)"):
        settings(defaults, [Sampling()])
