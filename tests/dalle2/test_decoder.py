"""DALL-E 2's decoder: as a part of a pipeline, and against Karlo's, which diffusers builds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

import zoo
from tests.dalle2.test_keys import DECODER, PROJECTION, UnCLIPTextProjModel, noisy
from tests.dalle2.unclip import decoder, prior, towers, upsampler, write_clip
from tests.imagen.tiny import stage, t5
from tests.pictures import same
from zoo.clip import Clip
from zoo.dalle2.configs import decoder_config_from_diffusers, projection_config_from_diffusers
from zoo.dalle2.decoder import UnclipDecoder, UnclipDecoderConfig, UnclipNetwork, UnclipNetworkConfig
from zoo.dalle2.keys import projection_from_diffusers, unet_from_diffusers
from zoo.diffusion.noise import ImageNoise
from zoo.interface import ANY, Conditioning, Decoder, Generator, Representation, Sampling, Step, TextEncoder
from zoo.pipeline import ImageEncoder, Pipeline, Staged
from zoo.result import Result
from zoo.text.clip import ClipTextEncoder
from zoo.weights import load_part, save_model, save_part

PINK, RED = "a large pink butterfly", "a red circle"
Draw = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """The folder of a CLIP."""
    return write_clip(tmp_path_factory.mktemp("towers") / "clip", vocabulary)


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return towers(folder)[0]


@pytest.fixture(scope="module")
def text(folder: Path) -> ClipTextEncoder:
    return towers(folder)[1]


@pytest.fixture(scope="module")
def pipe(clip: Clip, text: ClipTextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A whole DALL-E 2, written to a folder and read back."""
    said = text.produces
    parts = text, prior(clip, said), decoder(clip, said, upsamplers=[upsampler()])
    folder = tmp_path_factory.mktemp("models") / "tiny-dalle2"
    save_model(folder, *parts, family="DALL-E 2", resolution=(16, 16), defaults={"steps": 3})
    return zoo.load(folder, device="cpu")


@pytest.fixture(scope="module")
def draw(pipe: Pipeline) -> Draw:
    def call(prompts: str | list[str], **settings: object) -> Result:
        return pipe(prompts, **{"progress": False, **settings})  # type: ignore[arg-type]

    return call


@pytest.fixture(scope="module")
def meanings(clip: Clip) -> Representation:
    """The embeddings of two pictures."""
    return clip.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


def decoded(part: UnclipDecoder, meanings: Representation, text: ClipTextEncoder, prompt: str = "") -> Tensor:
    count = len(meanings.data)
    features = text.encode([prompt] * count)
    return part.decode(meanings, features, text.null(count), ImageNoise(range(count)))


def test_parts_are_what_the_interface_says(pipe: Pipeline, clip: Clip) -> None:
    assert isinstance(pipe.text_encoder, TextEncoder)
    assert isinstance(pipe.generator, Generator)
    assert isinstance(pipe.decoder, Decoder)
    assert isinstance(pipe.decoder, Staged)
    assert isinstance(clip, ImageEncoder)
    assert clip.produces == pipe.decoder.needs == pipe.generator.produces


def test_it_draws_what_was_saved(pipe: Pipeline, clip: Clip, text: ClipTextEncoder, draw: Draw) -> None:
    said = text.produces
    parts = text, prior(clip, said), decoder(clip, said, upsamplers=[upsampler()])
    made = Pipeline(*parts, defaults=pipe.defaults)
    result = draw(PINK, n=2)
    assert result.tensor.shape == (2, 3, 16, 16)
    assert 0 <= float(result.tensor.min()) < float(result.tensor.max()) <= 1
    assert same(result.tensor, made(PINK, n=2, progress=False).tensor)
    assert list(result.settings["stages"]) == ["decoder", "upsampler"]
    assert isinstance(pipe.decoder, UnclipDecoder)
    assert pipe.decoder.size == (16, 16)
    assert pipe.decoder.defaults["decoder"] == Sampling(steps=3, guidance=2.0, threshold=1.0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_an_image_depends_on_nothing_but_itself(draw: Draw, sampler: str) -> None:
    how = {"sampler": sampler, "stages": {"decoder": {"sampler": sampler}, "upsampler": {"sampler": sampler}}}
    six = draw(PINK, n=6, **how).tensor
    assert not same(six[0], six[1])
    assert same(draw(PINK, n=1, seed=3, **how).tensor[0], six[3])
    assert same(draw(PINK, n=6, batch=4, **how).tensor, six)
    assert same(draw([RED, PINK], seed=[7, 3], n=1, **how).tensor[1], six[3])


def test_threads_share_one_pipeline(draw: Draw) -> None:
    calls = [(PINK, 0), (RED, 1), ("", 2), ("粉色的蝴蝶,小精灵,卡通", 3)]
    alone = [draw(prompt, n=1, seed=seed).tensor for prompt, seed in calls]
    with ThreadPoolExecutor(4) as pool:
        together = [job.result().tensor for job in [pool.submit(draw, p, n=1, seed=s) for p, s in calls]]
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_a_stage_is_sampled_as_the_call_says(draw: Draw) -> None:
    seen: list[str] = []

    def twice(name: str, step: Step) -> bool:
        seen.append(name)
        return name == "decoder" and step.index == 1

    usual = draw(PINK, n=1).tensor
    draw(PINK, n=1, steps=4, stages={"decoder": {"steps": 5}}, callback=twice)
    assert [seen.count(name) for name in ("prior", "decoder", "upsampler")] == [4, 2, 2], "the callback ends a stage"
    assert not same(draw(PINK, n=1, stages={"decoder": {"guidance": 6.0}}).tensor, usual)
    with pytest.raises(ValueError, match="there are: decoder, upsampler"):
        draw(PINK, n=1, stages={"prior": {"steps": 5}})
    with pytest.raises(ValueError, match="'upsampler' looks at the smaller picture alone"):
        draw(PINK, n=1, stages={"upsampler": {"guidance": 6.0}})
    with pytest.raises(ValueError, match="'decoder' begins with noise alone"):
        draw(PINK, n=1, stages={"decoder": {"augmentation": 0.5}})
    asked = draw(PINK, n=1, augmentation=0.5).settings["stages"]
    assert [asked[name]["augmentation"] for name in ("decoder", "upsampler")] == [None, 0.5]


def test_another_clip_is_refused_with_the_reason(
    pipe: Pipeline, text: ClipTextEncoder, meanings: Representation, tmp_path: Path, vocabulary: bytes
) -> None:
    other, _ = towers(write_clip(tmp_path / "other", vocabulary, seed=5))
    wrong = decoder(other, text.produces)
    with pytest.raises(ValueError, match=r"DiffusionPrior and decoder UnclipDecoder do not fit.*clip_image space is"):
        Pipeline(pipe.text_encoder, pipe.generator, wrong)
    with pytest.raises(ValueError, match=f"of the CLIP {meanings.space}, but the decoder was trained with"):
        decoded(wrong, meanings, text)
    open_to_all = UnclipDecoder.of(wrong.network, wrong.config.model_copy(update={"image_space": ANY}))
    assert decoded(open_to_all, meanings, text).shape == (2, 3, 8, 8), "a published one that names no CLIP"
    with pytest.raises(ValueError, match=r"needs clip_image of shape \[batch, 8\], got latent"):
        decoded(wrong, Representation(meanings.data, "latent", meanings.space), text)


def test_one_prior_drives_decoders_of_two_sizes(clip: Clip, text: ClipTextEncoder) -> None:
    one = prior(clip, text.produces)
    made: list[Tensor] = []
    for side in (8, 16):
        part = decoder(clip, text.produces, side=side)
        pipe = Pipeline(text, one, part, defaults=Sampling(steps=2))
        pipe.decoder.decode = _kept(part, made)  # type: ignore[method-assign]
        assert pipe(PINK, n=2, progress=False).tensor.shape == (2, 3, side, side)
    assert torch.equal(*made), "the embeddings do not depend on the decoder"


def _kept(part: UnclipDecoder, made: list[Tensor]) -> Callable[..., Tensor]:
    def decode(representation: Representation, *rest: object, **more: object) -> Tensor:
        made.append(representation.data)
        return UnclipDecoder.decode(part, representation, *rest, **more)  # type: ignore[arg-type]

    return decode


def test_guidance_leads_away_from_no_embedding_and_no_caption(
    clip: Clip, text: ClipTextEncoder, meanings: Representation
) -> None:
    part, fed = decoder(clip, text.produces), list[Conditioning]()
    part.network.register_forward_hook(lambda _, args, __: fed.append(args[2]))
    decoded(part, meanings, text, PINK)
    said, nothing = text.encode([PINK]), text.null(1)
    assert fed[0].vector is not None
    assert fed[0].tokens is not None
    assert said.pooled is not None
    assert nothing.pooled is not None
    (given, away), (words, none) = fed[0].vector.chunk(2), fed[0].tokens.chunk(2)
    torch.testing.assert_close(given, torch.cat([meanings.data, said.pooled.expand(2, -1)], 1))
    torch.testing.assert_close(away, torch.cat([part.network.null(), nothing.pooled], 1).expand(2, -1))
    torch.testing.assert_close(words, said.tokens.expand(2, -1, -1))
    torch.testing.assert_close(none, nothing.tokens.expand(2, -1, -1))
    assert not torch.allclose(given, away)


def test_the_null_embedding_reaches_guided_pictures_alone(
    clip: Clip, text: ClipTextEncoder, meanings: Representation
) -> None:
    part, words = decoder(clip, text.produces), text.null(2)
    off, on = [Sampling(steps=2, guidance=1.0)], [Sampling(steps=2, guidance=4.0)]
    before = [part.decode(meanings, words, words, ImageNoise([0, 1]), how) for how in (off, on)]
    part.network.projection.null.data += 3
    after = [part.decode(meanings, words, words, ImageNoise([0, 1]), how) for how in (off, on)]
    assert torch.equal(before[0], after[0])
    assert not same(before[1], after[1])


def test_embedding_and_caption_both_tell(clip: Clip, text: ClipTextEncoder, meanings: Representation) -> None:
    part = decoder(clip, text.produces)
    usual = decoded(part, meanings, text, PINK)
    assert not same(decoded(part, meanings, text, RED), usual)
    assert not same(decoded(part, replace(meanings, data=meanings.data.flip(0)), text, PINK), usual)


def test_a_decoder_may_read_no_captions(
    clip: Clip, text: ClipTextEncoder, meanings: Representation, tmp_path: Path
) -> None:
    part = decoder(clip, None)
    assert part.needs_text is None
    usual = decoded(part, meanings, text, PINK)
    assert torch.equal(decoded(part, meanings, text, RED), usual)
    assert not same(decoded(part, replace(meanings, data=meanings.data.flip(0)), text), usual)
    assert not [name for name in part.network.state_dict() if "projection.text_" in name]
    back = load_part(tmp_path, save_part(tmp_path, part))
    assert isinstance(back, UnclipDecoder)
    assert torch.equal(decoded(back, meanings, text), usual)
    given = Conditioning(tokens=torch.zeros(1, 3, 16), vector=torch.zeros(1, 8))
    with pytest.raises(ValueError, match="reads no text"):
        part.network(torch.zeros(1, 3, 8, 8), torch.zeros(1), given)


def test_captions_need_the_clip_text_embedding(clip: Clip, text: ClipTextEncoder, meanings: Representation) -> None:
    part, bare = decoder(clip, text.produces), replace(text.null(2), pooled=None)
    with pytest.raises(ValueError, match="TextFeatures.pooled is missing"):
        part.decode(meanings, bare, bare, ImageNoise([0, 1]))
    with pytest.raises(ValueError, match=r"shape \[1, 8\]; this decoder needs \[1, 16\].*then the CLIP text embedding"):
        part.network(torch.zeros(1, 3, 8, 8), torch.zeros(1), Conditioning(vector=torch.zeros(1, 8)))
    with pytest.raises(ValueError, match=r"3 settings were given for 1 stages \(decoder\)"):
        part.decode(meanings, text.null(2), text.null(2), ImageNoise([0, 1]), [Sampling()] * 3)


def test_a_learned_variance_is_used(clip: Clip, text: ClipTextEncoder, meanings: Representation) -> None:
    part, words, how = decoder(clip, None, learned=True), text.null(2), [Sampling(steps=4, sampler="ddpm")]
    usual = part.decode(meanings, words, words, ImageNoise([0, 1]), how)
    part.network.unet.head.bias.data[3:] += 1
    assert usual.shape == (2, 3, 8, 8)
    assert not same(part.decode(meanings, words, words, ImageNoise([0, 1]), how), usual)


def test_embeddings_are_standardised(clip: Clip, meanings: Representation) -> None:
    network = decoder(clip, None).network
    seen = clip.encode(torch.rand(50, 3, 64, 64, generator=torch.Generator().manual_seed(7))).data
    network.measure(seen)
    x, t = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(8)), torch.full((50,), 300.0)
    said = network(x, t, Conditioning(vector=seen))
    null = network(x, t, Conditioning(vector=network.null().expand(50, -1)))
    plain = decoder(clip, None).network
    plain.load_state_dict(network.state_dict() | {"mean": torch.zeros(8), "std": torch.ones(8)})
    units = (seen - seen.mean(0)) / seen.std(0)
    torch.testing.assert_close(said, plain(x, t, Conditioning(vector=units)), atol=1e-4, rtol=1e-4)
    own = plain.projection.null.expand(50, -1)
    torch.testing.assert_close(null, plain(x, t, Conditioning(vector=own)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"resolution": (9, 8)}}, "must be multiples of 2"),
        ({"decoder": {"text": None}}, r"\(width, pooled width\) \(None, 8\), but the network reads \(16, 8\)"),
        ({"decoder": {"variance": "learned"}}, "needs out_channels=6"),
        ({"decoder": {"network": {"unet": {"vector": False}}}}, "vector=True"),
        ({"decoder": {"network": {"unet": {"time_width": 8}}}}, "makes vectors 32 wide, the U-Net takes 8"),
        ({"decoder": {"network": {"unet": {"context_width": 8}}}}, "makes tokens 12 wide, the U-Net takes 8"),
        ({"upsamplers": {"networks": []}}, "1 stages and 0 networks"),
    ],
)
def test_a_decoder_that_cannot_be(clip: Clip, text: ClipTextEncoder, change: dict[str, object], message: str) -> None:
    whole = decoder(clip, text.produces, upsamplers=[upsampler()]).whole.model_dump()
    with pytest.raises(ValidationError, match=message):
        UnclipDecoderConfig.model_validate(_merged(whole, change))


def _merged(whole: dict[str, object], change: dict[str, object]) -> dict[str, object]:
    deep = {key: _merged(whole[key], value) for key, value in change.items() if isinstance(value, dict)}  # type: ignore[arg-type]
    return whole | change | deep


def test_upsamplers_that_cannot_be(clip: Clip, vocabulary: bytes) -> None:
    for chain, message in (
        ([upsampler("decoder")], "cannot be called 'decoder'"),
        ([upsampler(), upsampler()], "names of their own"),
        ([stage("reader", t5(vocabulary).produces, 1)], "'reader' reads text"),
    ):
        with pytest.raises(ValidationError, match=message):
            decoder(clip, None, upsamplers=chain)


def test_half_precision_keeps_the_pictures(clip: Clip, text: ClipTextEncoder, meanings: Representation) -> None:
    part = decoder(clip, text.produces)
    usual = decoded(part, meanings, text, PINK)
    assert float((decoded(part.to(torch.bfloat16), meanings, text, PINK) - usual).abs().max()) < 0.05


def test_karlos_decoder_is_this_one() -> None:
    """Projection and U-Net under guidance, as diffusers' pipeline joins them."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**DECODER).eval(), UnCLIPTextProjModel(**PROJECTION).eval()
    for model in theirs:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim == 1 else 0.05)
    config = UnclipNetworkConfig(
        unet=decoder_config_from_diffusers(DECODER), projection=projection_config_from_diffusers(PROJECTION)
    )
    network = UnclipNetwork(config).eval()
    network.unet.load_state_dict(unet_from_diffusers(theirs[0].state_dict()))
    network.projection.load_state_dict(projection_from_diffusers(theirs[1].state_dict()))
    x, t, generator = noisy()
    image, pooled, tokens = (torch.randn(*shape, generator=generator) for shape in ((2, 20), (4, 20), (4, 7, 20)))
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[:2, 2:] = False  # no text is short
    with torch.no_grad():
        states, time = theirs[1](
            image_embeddings=image,
            prompt_embeds=pooled,
            text_encoder_hidden_states=tokens,
            do_classifier_free_guidance=True,
        )
        seen = torch.nn.functional.pad(mask, (4, 0), value=True)
        twice = torch.cat([x, x]), torch.cat([t, t])
        expected = theirs[0](*twice, states, class_labels=time, attention_mask=seen).sample
        vector = torch.cat([torch.cat([network.null().expand(2, -1), image]), pooled], 1)
        found = network(*twice, Conditioning(tokens=tokens, mask=mask, vector=vector))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
