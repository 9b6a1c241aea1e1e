"""Imagen through the interface that all families share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

import zoo
from tests.conftest import latent_generator, text_encoder, vae_decoder
from tests.imagen.tiny import base, stage, t5
from tests.pictures import same
from zoo import cli
from zoo.cascade import Stage, StageConfig
from zoo.diffusion.samplers import SAMPLERS
from zoo.efficient_unet import EfficientUNet, EfficientUNetConfig
from zoo.imagen.parts import CascadeConfig, CascadeDecoder
from zoo.interface import Decoder, Generator, Sampling, Step, TextEncoder, TextSpec
from zoo.pipeline import Pipeline
from zoo.result import Result

PINK, RED = "a large pink butterfly", "a red circle"
QUICK = Sampling(steps=1, augmentation=0.1)
Draw = Callable[..., Result]


@pytest.fixture(scope="module")
def pipe(imagen_folder: Path) -> Pipeline:
    return zoo.load(imagen_folder, device="cpu")


@pytest.fixture(scope="module")
def draw(pipe: Pipeline) -> Draw:
    def call(prompts: str | list[str], **settings: object) -> Result:
        return pipe(prompts, **{"progress": False, **settings})  # type: ignore[arg-type]

    return call


def test_parts_are_what_the_interface_says(pipe: Pipeline) -> None:
    assert isinstance(pipe.text_encoder, TextEncoder)
    assert isinstance(pipe.generator, Generator)
    assert isinstance(pipe.decoder, Decoder)


def test_it_draws_what_was_saved(pipe: Pipeline, vocabulary: bytes, draw: Draw) -> None:
    encoder = t5(vocabulary)
    chain = CascadeDecoder([stage("first", encoder.produces, 3), stage("second", None, 4)])
    made = Pipeline(encoder, base(encoder.produces), chain, defaults=pipe.defaults, size=(32, 32))
    result = draw(PINK, n=2)
    assert result.tensor.shape == (2, 3, 32, 32)
    assert 0 <= float(result.tensor.min()) < float(result.tensor.max()) <= 1
    assert same(result.tensor, made(PINK, n=2, progress=False).tensor)
    assert list(result.settings["stages"]) == ["first", "second"]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_an_image_depends_on_nothing_but_itself(draw: Draw, sampler: str) -> None:
    how = {"sampler": sampler, "stages": {"first": {"sampler": sampler}, "second": {"sampler": sampler}}}
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


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_runs_on_every_stage(draw: Draw, sampler: str) -> None:
    seen: list[tuple[str, int]] = []
    how = {"sampler": sampler, "steps": 4}
    made = draw(
        PINK,
        n=1,
        **how,
        stages={"first": how, "second": how},
        callback=lambda name, step: seen.append((name, step.index)),
    )
    assert torch.isfinite(made.tensor).all()
    assert {name for name, _ in seen} == {"base", "first", "second"}
    assert all((name, 0) in seen and (name, 3) in seen for name in ("base", "first", "second"))


def test_a_stage_is_sampled_as_the_call_says(draw: Draw) -> None:
    seen: list[str] = []
    draw(PINK, n=1, steps=2, stages={"second": {"steps": 5}}, callback=lambda name, step: seen.append(name))
    assert [seen.count(name) for name in ("base", "first", "second")] == [2, 2, 5]
    usual = draw(PINK, n=1).tensor
    assert not same(draw(PINK, n=1, augmentation=0.5).tensor, usual)
    assert not same(draw(PINK, n=1, stages={"first": {"guidance": 6.0}}).tensor, usual)
    assert same(draw(PINK, n=1, augmentation=0.1).tensor, usual)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": {"third": {"steps": 1}}}, "no stage 'third'; there are: first, second"),
        ({"stages": {"first": {"step": 1}}}, "knows no setting step"),
        ({"stages": {"first": {"steps": 0}}}, "steps must be a whole number"),
        ({"stages": {"first": {"sampler": "dpm"}}}, "dpm"),
        ({"stages": {"second": {"spacing": "trailling"}}}, "unknown spacing 'trailling'; did you mean 'trailing'"),
        ({"stages": {"second": {"steps": 2000, "spacing": "lcm"}}}, "2000"),
        ({"stages": {"first": {"guidance": "4"}}}, "guidance is a number, not '4'"),
        ({"stages": {"first": {"guidance": None}}}, "guidance is a number, not None"),
        ({"stages": {"first": {"sampler": ["ddim"]}}}, r"sampler is a name, not \['ddim'\]"),
        ({"stages": {"first": {"spacing": 5}}}, "spacing is a name, not 5"),
        ({"stages": {"first": {"interval": 3}}}, "interval is two numbers, such as"),
        ({"stages": {"first": {"eta": True}}}, "eta is a number, not True"),
        ({"stages": [{"steps": 1}]}, r"by the stages' names \(first, second\)"),
        ({"stages": {"first": 4}}, "settings of stage 'first' are given by name"),
        ({"augmentation": 1.5}, "augmentation level lies in"),
        ({"stages": {"second": {"guidance": 3.0}}}, "'second' looks at the smaller picture alone"),
        ({"stages": {"second": {"threshold": 3.0}}}, "threshold is a quantile"),
        ({"rescale": 2.0}, "rescale is a share"),
        ({"layout": Image.new("L", (32, 32))}, "takes no layout"),
        ({"height": 30}, "multiples of 8; the nearest is 32 x 32"),
    ],
)
def test_wrong_settings_are_told(draw: Draw, settings: dict[str, object], message: str) -> None:
    def never(stage: str, step: Step) -> bool:
        pytest.fail("something was drawn before it was refused")

    with pytest.raises(ValueError, match=message):
        draw(PINK, n=1, callback=never, **settings)


def test_models_without_stages_say_so(vocabulary: bytes) -> None:
    encoder, decoder = text_encoder(vocabulary), vae_decoder()
    latent = Pipeline(encoder, latent_generator(encoder, decoder), decoder)
    with pytest.raises(ValueError, match="no stages that are sampled after its generator"):
        latent(RED, augmentation=0.1, progress=False)


def test_the_command_line_reaches_stages(
    imagen_folder: Path, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> int:
        arguments = [
            "zoo",
            "generate",
            PINK,
            "-m",
            str(imagen_folder),
            "-n",
            "1",
            "--device",
            "cpu",
            "--out",
            str(tmp_path),
        ]
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    settings = {"augmentation": 0.4, "stages": {"second": {"steps": 1}}}
    assert run("--augmentation", "0.4", "--stages", json.dumps(settings["stages"])) == 0
    written = next(path for path in tmp_path.glob("*.png") if "contact" not in path.name)
    with Image.open(written) as image:
        assert same(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, draw(PINK, n=1, **settings).tensor[0])
    capsys.readouterr()
    assert run("--stages", "{second: 1}") == 2
    assert 'it reads like {"super-resolution": {"steps": 4}}' in capsys.readouterr().err


def test_text_is_encoded_once_for_all_stages(pipe: Pipeline, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    encode = pipe.text_encoder.encode

    def counted(prompts: list[str]) -> object:
        calls.append(list(prompts))
        return encode(prompts)

    monkeypatch.setattr(pipe.text_encoder, "encode", counted)
    draw(PINK, n=3, batch=1)
    assert sorted(calls) == [[""], [PINK]]


def test_images_start_from_images(draw: Draw) -> None:
    given = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    how = {"n": 1, "steps": 10, "guidance": 1.0, "threshold": 1.0}
    near, far = (draw(RED, image=given, strength=strength, **how).tensor for strength in (0.1, 1.0))
    assert not same(near, far)
    assert same(far, draw(RED, **how).tensor), "strength 1 keeps nothing"
    mask = torch.zeros(1, 32, 32)
    mask[:, :, 16:] = 1
    inpainted = draw(RED, n=1, image=given, mask=mask).tensor[0]
    assert torch.allclose(inpainted[:, :, :16], given[:, :, :16])
    assert not same(inpainted[:, :, 16:], given[:, :, 16:])


def test_inpainting_sees_what_is_kept() -> None:
    """Of a shipped model: one with random weights hardly looks beyond a pixel."""
    pipe, mask = zoo.load("imagen-small", device="cpu"), torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    given = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
    how = {"n": 1, "steps": 4, "strength": 1.0, "progress": False}
    based: list[Tensor] = []  # later stages would mix inside and outside in any case

    def observe(stage: str, step: Step) -> None:
        if stage == "base" and step.index == 3:
            based.append(step.x0 / 2 + 0.5)

    a, b = (pipe(RED, image=image, mask=mask, callback=observe, **how).tensor for image in given)  # type: ignore[arg-type]
    assert float((a - b)[..., 28:36, 28:36].abs().mean()) > 2 / 255
    side = based[0].shape[-1]
    inner = slice(3 * side // 8, 5 * side // 8)
    assert float((based[0] - based[1])[..., inner, inner].abs().mean()) > 2 / 255
    a, b = (pipe(RED, image=image, **how).tensor for image in given)  # type: ignore[arg-type]
    assert torch.equal(a, b), "without a mask strength 1 forgets the image"


def test_own_noise_is_the_bases(draw: Draw) -> None:
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not same(draw(RED, n=2, noise=noise).tensor, draw(RED, n=2).tensor)
    with pytest.raises(ValueError, match=r"start from \[2, 3, 8, 8\]"):
        draw(RED, n=2, noise=torch.zeros(2, 3, 32, 32))


def test_other_sizes(draw: Draw) -> None:
    assert draw(RED, n=1, height=64, width=48).tensor.shape == (1, 3, 64, 48)


def test_a_size_that_a_stage_cannot_make_is_refused_before_anything_is_drawn(pipe: Pipeline) -> None:
    none = (False, False, False)
    deep = EfficientUNetConfig(
        channels=(8, 8, 8),
        blocks_per_level=(1, 1, 1),
        self_attention=none,
        text_attention=none,
        context_width=None,
        groups=4,
    )
    stages = (StageConfig(name="first", sampling=QUICK), StageConfig(name="second", sampling=QUICK))
    config = CascadeConfig(stages=stages, networks=(deep, deep))
    assert (deep.downsampling, config.multiple) == (8, 16), "the first stage's picture is half the last one's"
    decoder = CascadeDecoder([Stage(EfficientUNet(deep), stage) for stage in stages])
    deeper, seen = Pipeline(pipe.text_encoder, pipe.generator, decoder), list[str]()

    def observe(name: str, step: Step) -> None:
        seen.append(name)

    with pytest.raises(ValueError, match="impossible size 32 x 40: .* multiples of 16; the nearest is 32 x 32"):
        deeper(RED, n=1, height=32, width=40, progress=False, callback=observe)
    assert not seen
    assert deeper(RED, n=1, height=32, width=48, progress=False).tensor.shape == (1, 3, 32, 48)


def test_a_callback_ends_a_stage_early(draw: Draw) -> None:
    seen: list[str] = []

    def once(name: str, step: Step) -> bool:
        seen.append(name)
        return name == "first"

    draw(RED, n=1, callback=once)
    assert seen.count("first") == 1
    assert seen.count("second") == 2


def test_short_memory_halves_the_batch(pipe: Pipeline, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, decode, sizes = draw(RED, n=4).tensor, pipe.decoder.decode, list[int]()

    def scarce(representation: object, text: object, *rest: object, **more: object) -> Tensor:
        sizes.append(len(text.tokens))  # type: ignore[attr-defined]
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError
        return decode(representation, text, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pipe.decoder, "decode", scarce)
    assert same(draw(RED, n=4).tensor, usual)
    assert sizes == [4, 2, 1, 1, 1, 1], "what was too much once is not tried again"


def test_another_encoder_is_refused_with_the_reason(pipe: Pipeline, vocabulary: bytes) -> None:
    with pytest.raises(ValueError, match=r"tokens are 32 wide, 16 are needed.*leave out text_encoder="):
        Pipeline(text_encoder(vocabulary), pipe.generator, pipe.decoder)
    with pytest.raises(ValueError, match="the sizes agree, but the text space is"):
        Pipeline(t5(vocabulary, seed=9), pipe.generator, pipe.decoder)


NETWORK = EfficientUNetConfig(
    channels=(8,),
    blocks_per_level=(1,),
    self_attention=(False,),
    text_attention=(False,),
    context_width=None,
    groups=4,
)


@pytest.mark.parametrize(
    ("stages", "networks", "message"),
    [
        ([StageConfig(name="a")], [], "1 stages and 0 networks: one for each"),
        ([StageConfig(name="a")] * 2, [NETWORK] * 2, "names of their own"),
        ([StageConfig(text=TextSpec(4, "t"))], [NETWORK], "reads text 4 wide, its network None"),
    ],
)
def test_a_cascade_that_cannot_be(stages: list[StageConfig], networks: list[EfficientUNetConfig], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CascadeConfig(stages=tuple(stages), networks=tuple(networks))


def test_settings_survive_the_config(pipe: Pipeline) -> None:
    assert isinstance(pipe.decoder, CascadeDecoder)
    assert pipe.decoder.factor == 4
    first = pipe.decoder.defaults["first"]
    assert first == Sampling(steps=2, threshold=1.0, augmentation=0.1, guidance=2.0)
