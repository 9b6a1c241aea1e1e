"""The GAN through the interface that all families share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import zoo
from tests.conftest import Lend, text_encoder
from tests.gan.conftest import SIDE, generator, generator_config
from tests.pictures import same
from zoo.adapt.lora import LoRA
from zoo.gan.parts import GanConfig, GanGenerator
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import Decoder, Generator, Step, TextSpec
from zoo.pipeline import Pipeline
from zoo.result import Result
from zoo.weights import save_model

PINK, RED = "a large pink butterfly", "a red circle"
Draw = Callable[..., Result]


@pytest.fixture(scope="module")
def pipe(gan_folder: Path) -> Pipeline:
    return zoo.load(gan_folder, device="cpu")


@pytest.fixture(scope="module")
def draw(pipe: Pipeline) -> Draw:
    def call(prompts: str | list[str], **settings: object) -> Result:
        return pipe(prompts, **{"progress": False, **settings})  # type: ignore[arg-type]

    return call


def test_parts_are_what_the_interface_says(pipe: Pipeline) -> None:
    assert isinstance(pipe.generator, Generator)
    assert isinstance(pipe.decoder, Decoder)
    assert pipe.generator.needs.pooled is None
    assert pipe.generator.produces.shape == (3, SIDE, SIDE)


def test_it_draws_what_was_saved(vocabulary: bytes, draw: Draw) -> None:
    encoder = text_encoder(vocabulary)
    made = Pipeline(encoder, generator(encoder.produces), CascadeDecoder())
    result = draw(PINK, n=2)
    assert result.tensor.shape == (2, 3, SIDE, SIDE)
    assert 0 <= float(result.tensor.min()) < float(result.tensor.max()) <= 1
    assert same(result.tensor, made(PINK, n=2, progress=False).tensor)


def test_pictures_stay_within_range_wherever_the_network_goes(vocabulary: bytes) -> None:
    encoder = text_encoder(vocabulary)
    part = generator(encoder.produces)
    part.network.head.bias.data.fill_(5.0)
    data = Pipeline(encoder, part, CascadeDecoder())(PINK, n=1, progress=False).tensor
    assert torch.equal(data, torch.ones_like(data))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_it_is_stored_small(vocabulary: bytes, draw: Draw, tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = text_encoder(vocabulary)
    part, folder = generator(encoder.produces), tmp_path / "small"
    how = {"family": "GAN", "resolution": (SIDE, SIDE)}
    save_model(folder, encoder, part, CascadeDecoder(), **how)  # type: ignore[arg-type]
    arguments, files = part.save(folder, dtype)
    assert [path.as_posix() for path in files] == ["gan/model.safetensors"]
    stored = GanGenerator.load(folder, arguments)
    drawn = Pipeline(encoder, stored, CascadeDecoder())(PINK, n=2, progress=False).tensor
    assert 0 < float((drawn - draw(PINK, n=2).tensor).abs().mean()) < 0.02


def test_an_image_depends_on_nothing_but_itself(draw: Draw) -> None:
    six = draw(PINK, n=6).tensor
    assert not same(six[0], six[1])
    assert same(draw(PINK, n=1, seed=3).tensor[0], six[3])
    assert same(draw(PINK, n=6, batch=4).tensor, six)
    assert same(draw([RED, PINK], seed=[7, 3], n=1).tensor[1], six[3])
    assert not same(draw(RED, n=1).tensor[0], six[0])


def test_threads_share_one_pipeline(draw: Draw) -> None:
    calls = [(PINK, 0), (RED, 1), ("", 2), ("粉色的蝴蝶,小精靈,卡通", 3)]
    alone = [draw(prompt, n=1, seed=seed).tensor for prompt, seed in calls]
    with ThreadPoolExecutor(4) as pool:
        together = [job.result().tensor for job in [pool.submit(draw, p, n=1, seed=s) for p, s in calls]]
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_how_diffusion_is_sampled_changes_nothing(draw: Draw) -> None:
    """So that one call can compare it with other families."""
    how = {"steps": 7, "sampler": "euler_ancestral", "guidance": 5.0, "rescale": 0.5, "threshold": 1.0}
    assert torch.equal(draw(PINK, n=2).tensor, draw(PINK, n=2, **how).tensor)


def test_a_callback_sees_the_one_step(draw: Draw) -> None:
    seen: list[tuple[str, Step]] = []
    made = draw(PINK, n=3, batch=2, callback=lambda stage, step: seen.append((stage, step)))
    assert [(stage, step.index, len(step.x)) for stage, step in seen] == [("gan", 0, 2), ("gan", 0, 1)]
    assert same(seen[0][1].x0 / 2 + 0.5, made.tensor[:2])


def test_own_noise_is_a_vector(draw: Draw) -> None:
    noise = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert not same(draw(RED, n=2, noise=noise).tensor, draw(RED, n=2).tensor)
    assert same(draw(RED, n=1, noise=noise[1:]).tensor[0], draw(RED, n=2, noise=noise).tensor[1])
    with pytest.raises(ValueError, match=r"start from \[2, 6\]"):
        draw(RED, n=2, noise=torch.zeros(2, 3, SIDE, SIDE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": torch.rand(3, SIDE, SIDE)}, "noise and text alone, in one pass: leave out image="),
        ({"image": torch.rand(3, SIDE, SIDE), "mask": torch.ones(1, SIDE, SIDE)}, "leave out image="),
        ({"layout": Image.new("L", (SIDE, SIDE))}, "takes no layout"),
        ({"negative": "a red circle"}, "takes no negative prompt"),
        ({"height": 32, "width": 32}, "impossible size 32 x 32: this generator makes 16 x 16 only"),
        ({"width": 8}, "makes 16 x 16 only"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"stages": {"gan": {"steps": 1}}}, "no stages"),
    ],
)
def test_what_it_cannot_do_is_told(draw: Draw, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(PINK, n=1, **settings)


def test_less_noise_is_less_variety(pipe: Pipeline, draw: Draw) -> None:
    assert isinstance(pipe.generator, GanGenerator)
    near = Pipeline(pipe.text_encoder, pipe.generator.truncated(0.3), pipe.decoder)(PINK, n=8, progress=False).tensor
    assert float(near.std(0).mean()) < 0.7 * float(draw(PINK, n=8).tensor.std(0).mean())
    assert pipe.generator.config.truncation == 1
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        pipe.generator.truncated(1.5)


def test_a_lora_reaches_linear_layers_and_convolutions(pipe: Pipeline, draw: Draw, lend: Lend) -> None:
    network = lend(pipe).adaptable()["generator"].module
    before, targets = draw(PINK, n=2).tensor, ("levels.*.conv1", "levels.*.attention.to_q", "*.hidden", "sentence.to_v")
    for target in targets:
        lora = LoRA.build(network, [target])
        for parameter in lora.parameters():
            parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        pipe.load_lora({"generator": lora}, name="mine")
        changed = draw(PINK, n=2, adapters=[{"mine": 1.0}, {}]).tensor
        pipe.unload("mine")
        assert not same(changed[0], before[0]), target
        assert same(changed[1], before[1]), "the other image of the call is not adapted"


def test_another_encoder_is_refused_with_the_reason(pipe: Pipeline, vocabulary: bytes) -> None:
    with pytest.raises(ValueError, match=r"tokens are 48 wide, 32 are needed.*leave out text_encoder="):
        Pipeline(text_encoder(vocabulary, width=48), pipe.generator, pipe.decoder)
    with pytest.raises(ValueError, match="the sizes agree, but the text space is"):
        Pipeline(text_encoder(vocabulary, seed=9), pipe.generator, pipe.decoder)
    with pytest.raises(ValidationError, match="the text is 31 wide, but the network reads 32"):
        GanConfig(network=generator_config(), text=TextSpec(31, "any"))


def test_damaged_weights_are_told(pipe: Pipeline, tmp_path: Path) -> None:
    assert isinstance(pipe.generator, GanGenerator)
    arguments, files = pipe.generator.save(tmp_path)
    wider = arguments | {"network": generator_config(hidden_width=9).model_dump()}
    with pytest.raises(ValueError, match="misshapen"):
        GanGenerator.load(tmp_path, wider)
    (tmp_path / files[0]).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        GanGenerator.load(tmp_path, arguments)
