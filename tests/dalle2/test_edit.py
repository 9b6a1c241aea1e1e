"""What is done to pictures by their CLIP embeddings and their noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.dalle2.unclip import decoder, prior, towers, upsampler, write_clip
from zoo.clip import Clip
from zoo.dalle2 import edit
from zoo.dalle2.decoder import UnclipDecoder
from zoo.dalle2.edit import interpolate, invert, regenerate, text_diff, variations
from zoo.diffusion.inversion import slerp
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Representation
from zoo.pipeline import Pipeline

PINK, RED = "a large pink butterfly", "a red circle"
QUICK: Mapping[str, Mapping[str, object]] = {"decoder": {"steps": 10}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """The folder of a CLIP."""
    return write_clip(tmp_path_factory.mktemp("towers") / "clip", vocabulary)


@pytest.fixture(scope="module")
def made(folder: Path) -> Pipeline:
    """A pipeline whose decoder makes 8x8 pictures and has no upsampler."""
    clip, text = towers(folder)
    part = decoder(clip, text.produces, loud=0.03)
    return Pipeline(text, prior(clip, text.produces), part, name="tiny", image_encoder=clip)


@pytest.fixture(scope="module")
def larger(folder: Path) -> Pipeline:
    """The same with an upsampler to 16x16."""
    clip, text = towers(folder)
    part = decoder(clip, text.produces, upsamplers=[upsampler()], loud=0.03)
    return Pipeline(text, prior(clip, text.produces), part, image_encoder=clip)


def picture(seed: int, side: int = 8) -> Tensor:
    rough = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, size=(side, side), mode="bilinear")[0]


def look(pipe: Pipeline) -> Clip:
    assert isinstance(pipe.image_encoder, Clip)
    return pipe.image_encoder


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_variations_share_a_meaning_and_nothing_else(made: Pipeline) -> None:
    result = variations(made, picture(0), 3, seed=5)
    assert result.tensor.shape == (3, 3, 8, 8)
    assert off(result.tensor[0], result.tensor[1]) > 0.05
    assert result.seeds == (5, 6, 7)
    assert off(variations(made, picture(0), 1, seed=6).tensor[0], result.tensor[1]) < 1e-5
    assert off(variations(made, picture(1), 3, seed=5).tensor, result.tensor) > 1e-3
    assert variations(made, picture(0), seed=[7, 5]).seeds == (7, 5)
    assert off(variations(made, picture(0), seed=[7, 5]).tensor[1], result.tensor[0]) < 1e-5
    assert result.settings["edit"] == "variations"
    assert result.model == "tiny"


def test_variations_are_decoded_from_the_embedding_without_a_caption(made: Pipeline) -> None:
    pipe, clip = made, look(made)
    nothing = pipe.text_encoder.null(1)
    by_hand = pipe.decoder.decode(clip.encode(picture(0)[None]), nothing, nothing, ImageNoise([5]))
    assert off(variations(made, picture(0), 1, seed=5).tensor, by_hand) < 1e-6
    settings = variations(made, picture(0), 1, seed=5, stages={"decoder": {"guidance": 9.0}})
    assert off(settings.tensor, by_hand) > 1e-3
    assert settings.settings["stages"]["decoder"]["guidance"] == 9.0  # type: ignore[index]


def test_randomness_leads_away_from_the_picture(made: Pipeline) -> None:
    given = picture(0)
    away = [variations(made, given, 2, eta=eta, stages=QUICK).tensor for eta in (0.0, 0.3, 1.0)]
    assert off(away[0][0], away[0][1]) == 0, "without randomness seeds say nothing"
    distances = [float((images - given).square().mean()) for images in away]
    assert distances[0] < 1e-5
    assert distances[0] < distances[1] < distances[2]
    assert off(away[1][0], away[1][1]) > 0.01


def test_a_picture_comes_back_from_its_noise(made: Pipeline) -> None:
    given = picture(2)
    start = invert(made, given, stages=QUICK)
    again = regenerate(made, start).tensor
    assert off(again[0], given) < 0.01
    assert torch.equal(regenerate(made, start).tensor, again)
    plain = regenerate(made, invert(made, given, refinements=0, stages=QUICK)).tensor
    assert off(plain[0], given) > 2 * off(again[0], given)
    assert start.sampling.steps == 10
    other = replace(start, representation=look(made).encode(picture(3)[None]))
    assert off(regenerate(made, other).tensor, again) > 1e-3, "the same noise with another meaning"


def test_upsamplers_enlarge_what_comes_back(larger: Pipeline) -> None:
    given = picture(2, 16)
    again = regenerate(larger, invert(larger, given, stages=QUICK), seed=3).tensor
    assert again.shape == (1, 3, 16, 16)
    part = larger.decoder
    assert isinstance(part, UnclipDecoder)
    nothing = larger.text_encoder.null(1)
    small = F.avg_pool2d(given[None], 2) * 2 - 1
    expected = part.enlarge(small, nothing, nothing, ImageNoise([3]), [part.defaults["upsampler"]])
    assert off(again, expected) < 0.03


def test_an_interpolation_ends_at_the_two_decodes(made: Pipeline) -> None:
    a, b = picture(0), picture(1)
    way = interpolate(made, a, b, 3, seed=4)
    assert way.prompts == ("0.00", "0.50", "1.00")
    for row, end in ((0, a), (2, b)):
        assert off(way.tensor[row], variations(made, end, 1, seed=4).tensor[0]) < 1e-5
    ends = [look(made).encode(end[None]) for end in (a, b)]
    middle = replace(ends[0], data=slerp(ends[0].data, ends[1].data, 0.5))
    nothing = made.text_encoder.null(1)
    assert off(way.tensor[1:2], made.decoder.decode(middle, nothing, nothing, ImageNoise([4]))) < 1e-5
    torch.testing.assert_close(middle.data.norm(dim=1), torch.ones(1))


def test_an_inverted_interpolation_ends_at_the_two_pictures(made: Pipeline) -> None:
    a, b = picture(0), picture(1)
    way = interpolate(made, a, b, 3, inverted=True, stages=QUICK).tensor
    assert off(way[0], a) < 0.01
    assert off(way[2], b) < 0.01
    assert min(off(way[1], a), off(way[1], b)) > 0.05


def test_a_text_difference_of_no_strength_is_the_picture(made: Pipeline) -> None:
    given = picture(0)
    result = text_diff(made, given, PINK, RED, [0.0, 0.2, 0.5], stages=QUICK)
    assert off(result.tensor[0], given) < 0.01
    distances = [off(image, given) for image in result.tensor]
    assert distances[0] < distances[1] < distances[2]
    assert result.prompts[1] == f"{PINK} -> {RED} (0.2)"
    assert off(text_diff(made, given, PINK, RED, 0.2, stages=QUICK).tensor[0], result.tensor[1]) < 1e-5


def test_a_text_difference_turns_the_embedding(made: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a share of the angle, towards the normalised difference of the two text embeddings."""
    fed: list[Tensor] = []
    decode = UnclipDecoder.decode

    def watched(part: UnclipDecoder, given: Representation, *rest: object, **more: object) -> Tensor:
        fed.append(given.data)
        return decode(part, given, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(UnclipDecoder, "decode", watched)
    text_diff(made, picture(0), PINK, RED, 0.25, stages=QUICK)
    said = look(made).embed_texts([PINK, RED])
    difference = F.normalize(said[1] - said[0], dim=0)
    seen = look(made).encode(picture(0)[None]).data[0]
    torch.testing.assert_close(fed[0].norm(dim=1), torch.ones(1))
    angles = [torch.acos(fed[0][0] @ end) for end in (seen, difference)]
    torch.testing.assert_close(angles[0] / (angles[0] + angles[1]), torch.tensor(0.25), atol=1e-3, rtol=0)
    torch.testing.assert_close(angles[0] + angles[1], torch.acos(seen @ difference), atol=1e-3, rtol=0)


def test_many_pictures_are_made_a_few_at_a_time(made: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = variations(made, picture(0), 3).tensor
    monkeypatch.setattr(edit, "AT_ONCE", 2)
    assert off(variations(made, picture(0), 3).tensor, whole) < 1e-5


def test_files_are_fitted_to_the_decoder(larger: Pipeline) -> None:
    given = Image.new("RGB", (60, 40), (200, 30, 30))
    assert variations(larger, given, 1).tensor.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"expected \[3, 16, 16\]"):
        variations(larger, picture(0), 1)


def test_another_clip_is_refused_with_the_reason(made: Pipeline, tmp_path: Path, vocabulary: bytes) -> None:
    other, _ = towers(write_clip(tmp_path / "other", vocabulary, seed=5))
    parts = (made.text_encoder, made.generator, made.decoder)
    with pytest.raises(ValueError, match="image encoder Clip and decoder UnclipDecoder .* take the CLIP"):
        Pipeline(*parts, image_encoder=other)
    bare = Pipeline(*parts)
    for edit_of in (variations, invert):
        with pytest.raises(ValueError, match="came without the CLIP that it was trained with: set pipe.image_encoder"):
            edit_of(bare, picture(0))
    bare.image_encoder = other  # set later, the decoder is the one to say so
    with pytest.raises(ValueError, match="take the CLIP that it was trained with"):
        variations(bare, picture(0))


def test_what_cannot_be_edited(made: Pipeline, tiny: Pipeline) -> None:
    with pytest.raises(ValueError, match="decodes by a VaeDecoder; only an UnclipDecoder"):
        variations(tiny, picture(0))
    with pytest.raises(ValueError, match="say the same"):
        text_diff(made, picture(0), RED, RED)
    with pytest.raises(ValueError, match=r"share of the way in \[0, 1\]"):
        text_diff(made, picture(0), RED, PINK, [0.2, 1.5])
    with pytest.raises(ValueError, match="n must be at least 2"):
        interpolate(made, picture(0), picture(1), 1)
    with pytest.raises(ValueError, match="eta is DDIM's randomness"):
        variations(made, picture(0), 1, eta=2.0, stages=QUICK)
    with pytest.raises(ValueError, match="only the sampler 'ddim'"):
        invert(made, picture(0), stages={"decoder": {"sampler": "heun"}})
    with pytest.raises(ValueError, match="has no stage 'base'"):
        invert(made, picture(0), stages={"base": {"steps": 3}})


def test_edits_are_looked_over_as_calls_are(made: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def blacken(*, images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
        return torch.zeros_like(images), [True] * len(images)

    monkeypatch.setattr(made, "safety_checker", blacken)
    result = variations(made, picture(0), 2)
    assert result.unsafe == (True, True)
    assert float(result.tensor.max()) == 0

    class Unread:
        def check(self) -> None:
            raise ValueError("the weights are not finite")

    monkeypatch.setattr(made, "unread", Unread())
    with pytest.raises(ValueError, match="not finite"):
        interpolate(made, picture(0), picture(1), 3)


def test_its_pictures_have_one_size(larger: Pipeline) -> None:
    assert larger(PINK, n=1, height=16, width=16, progress=False).tensor.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"pictures of 16 x 16 pixels only, not of 24 x 24: leave out height="):
        larger(PINK, n=1, height=24, progress=False)


def test_clip_sees_pictures_of_other_sizes_in_half_precision(folder: Path) -> None:
    clip, _ = towers(folder)
    seen = clip.to(torch.bfloat16).embed_images(torch.rand(2, 3, 8, 8))
    assert seen.dtype == torch.bfloat16
    assert torch.allclose(seen.float().norm(dim=-1), torch.ones(2), atol=0.02)
