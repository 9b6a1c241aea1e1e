"""Published DeepFloyd IF folders, stages I and II: networks equal the reference, and so do the pictures."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import zoo
from tests.published.conftest import random_weights, said_by, save_tensors, write_json
from zoo import published, tensors
from zoo.diffusion.noise import ImageNoise
from zoo.imagen import pretrained
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import Conditioning, Representation
from zoo.pipeline import Pipeline
from zoo.text.t5 import T5TextEncoder
from zoo.weights import save_model

DATA = Path(__file__).parent.parent / "data" / "published"
DOWN, JOINT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, JOINT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
PROMPTS = ["A pink Cat ", "two birds on a roof"]
STEPS, SEEDS, SIDE = 10, (5, 6), 8
pytestmark = pytest.mark.filterwarnings("ignore::zoo.text.tokenizer.UnknownWords")

DDPM = {  # of both stages, but for the bound of dynamic thresholding
    **{"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001},
    **{"clip_sample": True, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5},
    **{"num_train_timesteps": 1000, "prediction_type": "epsilon", "thresholding": True, "trained_betas": None},
    **{"variance_type": "learned_range", "lambda_min_clipped": -5.1},
}
NOISING = DDPM | {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "variance_type": "fixed_small"}
STAGE_ONE: dict[str, Any] = {
    **{"sample_size": SIDE, "in_channels": 3, "out_channels": 6, "block_out_channels": [32, 64]},
    **{"down_block_types": [DOWN, JOINT_DOWN], "up_block_types": [JOINT_UP, UP], "layers_per_block": 1},
    **{"cross_attention_dim": 64, "cross_attention_norm": "group_norm", "attention_head_dim": 16},
    **{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"},
    **{"addition_embed_type": "text", "addition_embed_type_num_heads": 4, "act_fn": "gelu"},
    **{"resnet_time_scale_shift": "scale_shift"},
}
STAGE_TWO = STAGE_ONE | {
    **{"sample_size": 4 * SIDE, "in_channels": 6, "block_out_channels": [32, 32, 64]},
    **{"down_block_types": [DOWN, DOWN, JOINT_DOWN], "up_block_types": [JOINT_UP, UP, UP]},
    **{"layers_per_block": [1, 1, 2], "class_embed_type": "timestep", "time_embedding_act_fn": "gelu"},
    **{"time_embedding_dim": 80, "resnet_skip_time_act": True},
    **{"resnet_out_scale_factor": 1.4142271248762552, "mid_block_scale_factor": 1.4142271248762552},
}


def t5_vocabulary() -> bytes:
    """A sentencepiece model with T5's own markers: padding 0, </s> 1, unknown 2, and no <s>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a} {b} {c} ." for a in ("a", "two") for b in ("pink", "red") for c in WORDS]),
        model_writer=model,
        **{"model_type": "unigram", "vocab_size": 60, "hard_vocab_limit": False, "character_coverage": 1.0},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "num_threads": 1, "minloglevel": 2},
    )
    return model.getvalue()


WORDS = ("cat on a roof", "birds", "Cat and two birds", "roof with a quick brown fox", "jumping over lazy dogs")


def quiet(network: Any, gain: float) -> Any:
    """What the network says is small, so that pictures are not black and white by clipping."""
    network.conv_out.weight.data.mul_(gain)
    network.conv_out.bias.data.mul_(gain)
    return network


class Stage:
    """A folder of one stage in the published layout, and the modules that it was written from."""

    def __init__(self, folder: Path, vocabulary: bytes, number: int, **scheduler: object) -> None:
        self.folder, self.number = folder, number
        options = STAGE_ONE if number == 1 else STAGE_TWO
        network: Any = diffusers.UNet2DConditionModel(**options)
        self.unet = quiet(random_weights(network, number), 0.3)
        config = T5Config(
            **{"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        )
        self.text_encoder = random_weights(T5EncoderModel(config), 3)
        self.scheduler = DDPM | ({} if number == 1 else {"sample_max_value": 1.0}) | scheduler
        self.write(vocabulary)

    @property
    def kind(self) -> str:
        return "IFPipeline" if self.number == 1 else "IFSuperResolutionPipeline"

    def write(self, vocabulary: bytes) -> None:
        index = {
            **{"_class_name": self.kind, "_diffusers_version": "0.15.0.dev0", "requires_safety_checker": True},
            **{"feature_extractor": ["transformers", "CLIPImageProcessor"]},
            **{"safety_checker": ["deepfloyd_if", "IFSafetyChecker"], "watermarker": ["deepfloyd_if", "IFWatermarker"]},
            **{"scheduler": ["diffusers", self.scheduler["_class_name"]]},
            **{"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]},
            **{"unet": ["diffusers", "UNet2DConditionModel"]},
        }
        if self.number == 2:
            index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
            write_json(self.folder / "image_noising_scheduler" / "scheduler_config.json", NOISING)
        write_json(self.folder / "model_index.json", index)
        write_json(self.folder / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(self.folder / "unet" / "config.json", said_by(self.unet))
        save_tensors(self.folder / "unet", "diffusion_pytorch_model", self.unet.state_dict(), ".safetensors")
        for name in ("tokenizer", "text_encoder"):
            (self.folder / name).mkdir()
            (self.folder / name / "spiece.model").write_bytes(vocabulary)
        self.write_text_encoder()

    def write_text_encoder(self) -> None:
        """In two shards, as the published one, its embedding under both names."""
        place = self.folder / "text_encoder"
        write_json(place / "config.json", json.loads(self.text_encoder.config.to_json_string()))
        state = {name: tensor.clone() for name, tensor in self.text_encoder.state_dict().items()}
        files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        whose = {name: files[i % 2] for i, name in enumerate(sorted(state))}
        for file in files:
            save_file({name: state[name] for name in state if whose[name] == file}, place / file, {"format": "pt"})
        write_json(place / "model.safetensors.index.json", {"metadata": {}, "weight_map": whose})

    def reference(self, kind: str | None = None) -> Any:
        """diffusers' own pipeline of the same modules."""
        said = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
        loaded = getattr(diffusers, kind or self.kind).from_pretrained(
            self.folder, **said, requires_safety_checker=False, torch_dtype=torch.float32
        )
        loaded.set_progress_bar_config(disable=True)
        return loaded


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return t5_vocabulary()


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Callable[..., Stage]:
    return lambda number, **said: Stage(tmp_path_factory.mktemp("if") / f"if-{number}", vocabulary, number, **said)


@pytest.fixture(scope="module")
def one(write: Callable[..., Stage]) -> Stage:
    return write(1)


@pytest.fixture(scope="module")
def two(write: Callable[..., Stage]) -> Stage:
    return write(2)


@pytest.fixture(scope="module")
def pipe(one: Stage) -> Pipeline:
    return zoo.load(one.folder, device="cpu")


@pytest.fixture(scope="module")
def both(one: Stage, two: Stage) -> Pipeline:
    return zoo.load(one.folder, decoder=f"{two.folder}/decoder", device="cpu")


def same_noise(monkeypatch: pytest.MonkeyPatch, pipeline: Any, *draws: tuple[str, int]) -> None:
    """Pipeline and scheduler draw what ours does: first `draws`, then those of the last one's stage, step by step."""
    stage = draws[0][0]
    turns = iter([*draws, *((stage, step) for step in range(1000))])

    def draw(shape: Sequence[int], **_: object) -> Tensor:
        return ImageNoise(SEEDS).draw(*next(turns), shape)

    monkeypatch.setattr(f"{type(pipeline).__module__}.randn_tensor", draw)
    if hasattr(__import__(type(pipeline.scheduler).__module__, fromlist=["x"]), "randn_tensor"):
        monkeypatch.setattr(f"{type(pipeline.scheduler).__module__}.randn_tensor", draw)


def same_pictures(found: Tensor, expected: Tensor, within: float = 2.0) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.05
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5  # not black and white by clipping
    assert (found - expected).abs().max() * 255 <= within


def drawn(reference: Any, **settings: Any) -> Tensor:
    """What diffusers draws, in [0, 1]."""
    images: Tensor = reference(PROMPTS, output_type="pt", clean_caption=False, **settings).images
    return (images / 2 + 0.5).clamp(0, 1)


def test_networks_equal_the_reference(pipe: Pipeline, both: Pipeline, one: Stage, two: Stage) -> None:
    lower = [prompt.lower().strip() for prompt in PROMPTS]
    said = T5Tokenizer.from_pretrained(one.folder / "tokenizer")(
        lower, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    source = torch.Generator().manual_seed(0)
    x, times = torch.randn(2, 3, SIDE, SIDE, generator=source), torch.tensor([3.0, 801.0])
    large, small = torch.randn(2, 2, 3, 4 * SIDE, 4 * SIDE, generator=source)
    with torch.no_grad():
        text = one.text_encoder(said.input_ids, attention_mask=said.attention_mask).last_hidden_state
        found = pipe.text_encoder.encode(PROMPTS)
        assert found.mask is None  # the networks look at the padding too
        torch.testing.assert_close(found.tokens, text, atol=1e-4, rtol=0)
        expected = one.unet(x, times, text).sample
        network = pipe.generator.denoiser.network  # type: ignore[attr-defined]
        torch.testing.assert_close(network(x, times, Conditioning(tokens=text)), expected, atol=1e-4, rtol=0)
        levels = torch.tensor([250, 250])
        expected = two.unet(torch.cat([large, small], 1), times, text, class_labels=levels).sample
        network = both.decoder.stages[0].denoiser.network  # type: ignore[attr-defined]
        asked = Conditioning(tokens=text, concat=small, augmentation=levels / 1000)
        torch.testing.assert_close(network(large, times, asked), expected, atol=1e-4, rtol=0)


def test_what_the_folders_say_is_the_default(pipe: Pipeline, both: Pipeline) -> None:
    how = pipe.defaults
    assert (how.steps, how.guidance, how.sampler, how.spacing) == (100, 7.0, "ddpm", "published")
    assert (how.threshold, how.cap) == (0.95, 1.5)
    assert isinstance(pipe.text_encoder, T5TextEncoder)
    assert isinstance(pipe.decoder, CascadeDecoder)
    assert not pipe.decoder.stages
    assert pipe.generator.produces.kind == "pixels"
    assert (pipe.size, both.size) == ((SIDE, SIDE), (4 * SIDE, 4 * SIDE))
    enlarging = both.decoder.defaults["super-resolution"]  # type: ignore[attr-defined]
    assert (enlarging.steps, enlarging.guidance, enlarging.threshold, enlarging.cap) == (50, 4.0, 1.0, None)
    assert enlarging.augmentation == 0.25


def test_pictures_of_stage_one(pipe: Pipeline, one: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = one.reference()
    same_noise(monkeypatch, reference, ("base", -1))
    expected = drawn(reference, num_inference_steps=STEPS, guidance_scale=7.0)
    found = pipe(PROMPTS, n=1, seed=list(SEEDS), steps=STEPS, progress=False)
    same_pictures(found.tensor, expected)
    for change in ({"guidance": 1.0}, {"cap": 1.0}, {"cap": 100.0}, {"threshold": 1.0}):  # all of them show
        other = pipe(PROMPTS, n=1, **{**found.settings, "seed": list(SEEDS), **change}, progress=False)  # type: ignore[arg-type]
        assert (other.tensor - found.tensor).abs().max() > 4 / 255


def test_pictures_of_stage_two(both: Pipeline, two: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same small pictures, and at another noise level and guidance than by default."""
    reference, stage = two.reference(), "super-resolution"
    small = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) * 2 - 1
    text, null = both.text_encoder.encode(PROMPTS), both.text_encoder.null(2)
    for settings, how in (
        ({}, {}),
        ({"noise_level": 100, "guidance_scale": 2.0}, {"augmentation": 0.1, "guidance": 2.0}),
    ):
        same_noise(monkeypatch, reference, (stage, -1), (f"{stage}/augmentation", -1))
        expected = drawn(reference, image=small, num_inference_steps=STEPS, **settings)
        sampling = both.stages({stage: {"steps": STEPS, **how}})[stage]
        with torch.no_grad():
            found = both.decoder.decode(
                Representation(small, "pixels", "rgb"), text, null, ImageNoise(SEEDS), [sampling]
            )
        same_pictures(found, expected)


def test_pictures_of_both_stages(both: Pipeline, one: Stage, two: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, stage = one.reference(), two.reference(), "super-resolution"
    same_noise(monkeypatch, first, ("base", -1))
    settings = {"num_inference_steps": STEPS, "clean_caption": False, "output_type": "pt"}
    small = first(PROMPTS, **settings).images
    same_noise(monkeypatch, second, (stage, -1), (f"{stage}/augmentation", -1))
    expected = drawn(second, image=small, num_inference_steps=STEPS)
    found = both(PROMPTS, n=1, seed=list(SEEDS), steps=STEPS, stages={stage: {"steps": STEPS}}, progress=False)
    assert found.tensor.shape[-2:] == (4 * SIDE, 4 * SIDE)
    same_pictures(found.tensor, expected)
    wide = both("a cat", n=1, height=2 * SIDE, width=4 * SIDE, steps=1, stages={stage: {"steps": 1}}, progress=False)
    assert wide.tensor.shape[-2:] == (2 * SIDE, 4 * SIDE)
    large = Image.effect_noise((6 * SIDE, 5 * SIDE), 60)  # is fitted to what both stages make
    begun = both("a cat", n=1, image=large, steps=2, stages={stage: {"steps": 1}}, progress=False)
    assert begun.tensor.shape[-2:] == (4 * SIDE, 4 * SIDE)


def test_pictures_of_pictures(pipe: Pipeline, one: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = one.reference("IFImg2ImgPipeline")
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    same_noise(monkeypatch, reference, ("base", -1))
    expected = drawn(reference, image=images * 2 - 1, strength=0.7, num_inference_steps=STEPS, guidance_scale=7.0)
    found = pipe(PROMPTS, n=1, seed=list(SEEDS), image=images, strength=0.7, steps=STEPS, progress=False).tensor
    same_pictures(found, expected)


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_pictures_by_other_schedulers(kind: str, write: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"_class_name": kind, "variance_type": None} if kind.startswith("DPM") else {"_class_name": kind}
    stage = write(1, **changed)
    pipe, reference = zoo.load(stage.folder, device="cpu"), stage.reference()
    if kind == "DDIMScheduler":  # of which diffusers' cannot take a learned variance
        assert pipe.defaults.sampler == "ddim"
        assert torch.isfinite(pipe("a cat", n=1, steps=2, progress=False).tensor).all()
        return
    same_noise(monkeypatch, reference, ("base", -1))
    expected = drawn(reference, num_inference_steps=STEPS, guidance_scale=7.0)
    same_pictures(pipe(PROMPTS, n=1, seed=list(SEEDS), steps=STEPS, progress=False).tensor, expected)


def test_parts_one_after_the_other(one: Stage, pipe: Pipeline) -> None:
    """As docs/checkpoints.md has it for memories that hold no two of them at once."""
    made = zoo.load(one.folder, device="cpu")
    with torch.no_grad():
        text, null = made.text_encoder.encode(["a corgi"]), made.text_encoder.null(1)
        generator, decoder, how = made.generator, made.decoder, replace(made.defaults, steps=3)
        del made
        pixels = generator.generate(text, null, ImageNoise([0]), how)
        images = decoder.decode(pixels, text, null, ImageNoise([0]))
    assert torch.equal(images, pipe("A corgi", n=1, seed=0, steps=3, progress=False).tensor)


def test_stage_two_alone_is_a_decoder(two: Stage, one: Stage) -> None:
    with pytest.raises(ValueError, match=r"if-2 has no text_encoder: it is a second stage.*decoder='.*if-2/decoder'"):
        zoo.load(two.folder, device="cpu")
    with pytest.raises(ValueError, match="has no decoder variant 'large'"):
        zoo.load(one.folder, decoder="large", device="cpu")


def test_a_model_is_read_once_for_all_its_parts(one: Stage, two: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is left of it is not looked at by the first call."""
    read: list[Path] = []
    load_folder = pretrained.load_folder

    def noted(folder: Path, **how: Any) -> Any:
        read.append(folder)
        return load_folder(folder, **how)

    monkeypatch.setattr(pretrained, "load_folder", noted)
    own = zoo.load(one.folder, device="cpu")
    taken = {role: f"{one.folder}/{role}" for role in ("text_encoder", "generator")}
    made = zoo.load(one.folder, decoder=f"{two.folder}/decoder", device="cpu", **taken)  # type: ignore[arg-type]
    assert read == [one.folder, one.folder, two.folder]
    assert own.unread is not None
    assert made.unread is not None
    whole = len(own.unread._tensors)
    assert whole >= 2
    replaced = zoo.load(one.folder, text_encoder=own.text_encoder, device="cpu")
    assert replaced.unread is not None
    assert len(replaced.unread._tensors) < whole


def test_an_option_that_nothing_heeds_is_refused(one: Stage) -> None:
    with pytest.raises(ValueError, match=r"heeds prediction: leave it out \(.*a single file: prediction, clip_skip"):
        zoo.load(one.folder, device="cpu", prediction="v")


def test_it_can_be_kept_as_a_model_of_the_zoo(pipe: Pipeline, both: Pipeline, tmp_path: Path) -> None:
    for name, made in (("one", pipe), ("both", both)):
        defaults = {
            field: getattr(made.defaults, field)
            for field in ("steps", "sampler", "spacing", "guidance", "threshold", "cap")
        }
        side = SIDE if made is pipe else 4 * SIDE
        parts = (made.text_encoder, made.generator, made.decoder)
        save_model(tmp_path / name, *parts, family="Imagen", resolution=(side, side), defaults=defaults)  # type: ignore[arg-type]
        again = zoo.load(tmp_path / name, device="cpu")
        how: dict[str, Any] = {"n": 1, "steps": 2, "progress": False}
        if made is both:
            how["stages"] = {"super-resolution": {"steps": 2}}
        assert (again("A Cat", **how).tensor - made("a cat", **how).tensor).abs().max() < 1 / 255


def test_bfloat16(one: Stage, two: Stage, both: Pipeline) -> None:
    half = zoo.load(one.folder, decoder=f"{two.folder}/decoder", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.generator.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert half.text_encoder.produces == both.text_encoder.produces  # the same space, whatever the precision
    how = {"steps": 4, "guidance": 1.0}
    settings: dict[str, Any] = {"n": 1, **how, "stages": {"super-resolution": how}, "progress": False}
    a, b = (made("a cat", **settings).tensor for made in (half, both))
    assert 0 < (a - b).abs().mean() < 0.05


@pytest.fixture
def copy(one: Stage, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one.folder, tmp_path / "copy"))


def change(path: Path, **said: object) -> None:
    write_json(path, json.loads(path.read_text("utf-8")) | said)


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, "unet in .* is a UNet2DModel: supported"),
        ("model_index.json", {"text_encoder": ["transformers", "BertModel"]}, "is a BertModel: supported is T5"),
        ("model_index.json", {"prior": ["diffusers", "X"]}, "components that are not known: prior"),
        ("model_index.json", {"tokenizer": None}, "does not name the class of 'tokenizer'"),
        ("scheduler/scheduler_config.json", {"variance_type": "fixed_small"}, "out_channels=6 of the U-Net"),
        ("scheduler/scheduler_config.json", {"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio=1.5"),
        ("unet/config.json", {"sample_size": 7}, "sample_size=7 is no size: a positive multiple of 2"),
        ("unet/config.json", {"encoder_hid_dim": 48}, "misshapen"),
        ("unet/config.json", {"only_cross_attention": True}, "unet.config.json: only_cross_attention=True"),
        ("text_encoder/config.json", {"model_type": "umt5"}, "not the config of a T5"),
        ("text_encoder/config.json", {"d_ff": 40}, "misshapen"),
    ],
)
def test_odd_folders_are_named(copy: Path, name: str, said: dict[str, object], message: str) -> None:
    change(copy / name, **said)
    with pytest.raises(ValueError, match=message) as caught:
        zoo.load(copy, device="cpu")
    assert str(copy) in str(caught.value)


def test_damaged_folders_are_named(copy: Path) -> None:
    with pytest.raises(ValueError, match="clip_skip=1 is for CLIP"):
        zoo.load(copy, clip_skip=1)
    for name in ("tokenizer", "text_encoder"):
        (copy / name / "spiece.model").write_bytes(b"odd")
        with pytest.raises(ValueError, match=rf"{name}/spiece\.model: not a sentencepiece model"):
            zoo.load(copy, device="cpu")
        (copy / name / "spiece.model").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer: tokenizer/spiece.model is needed"):
        zoo.load(copy, device="cpu")
    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet) | {"class_embedding.linear_1.weight": torch.ones(1)}, unet)
    shutil.copy(DATA / "README.md", copy / "tokenizer" / "spiece.model")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        zoo.load(copy, device="cpu")


def test_a_network_without_its_ports_is_no_second_stage(two: Stage, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two.folder, tmp_path / "copy"))
    change(copy / "unet" / "config.json", class_embed_type=None)
    state = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("class_embedding")}
    save_file(kept, copy / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="does not enlarge pictures"):
        zoo.load(copy, device="cpu")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("if-i-m-v1.0", 371_605_830), ("if-i-l-v1.0", 935_365_830), ("if-i-xl-v1.0", 4_304_695_110)],
)
def test_published_size(
    name: str, parameters: int, vocabulary: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name and shape of both networks finds its place on the way that a folder takes, on the meta device."""
    told = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    t5 = json.loads(gzip.decompress((DATA / "t5.json.gz").read_bytes()))
    index = {"_class_name": "IFPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    index |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    write_json(tmp_path / "model_index.json", index | {"unet": ["diffusers", "UNet2DConditionModel"]})
    write_json(tmp_path / "scheduler" / "scheduler_config.json", DDPM)
    write_json(tmp_path / "unet" / "config.json", told["configs"]["unet"])
    write_json(tmp_path / "text_encoder" / "config.json", t5["configs"]["t5-v1_1-xxl"])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(vocabulary)
    keys = {"unet": told["keys"]["unet"], "text_encoder": t5["keys"]["t5-v1_1-xxl"]}
    found = on_meta(monkeypatch, keys)
    made = pretrained.load_folder(tmp_path)
    assert found == {"AdmUNet": parameters, "T5EncoderModel": 4_762_310_656}
    assert made.size == (64, 64)
    assert made.generator is not None
    assert made.generator.needs.width == 4096


def test_published_size_of_stage_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(gzip.decompress((DATA / "if-ii-l-v1.0.json.gz").read_bytes()))
    index = {"_class_name": "IFSuperResolutionPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    index |= {"image_noising_scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": [None, None]}
    write_json(tmp_path / "model_index.json", index | {"unet": ["diffusers", "UNet2DConditionModel"]})
    write_json(tmp_path / "scheduler" / "scheduler_config.json", DDPM | {"sample_max_value": 1.0})
    write_json(tmp_path / "image_noising_scheduler" / "scheduler_config.json", NOISING)
    write_json(tmp_path / "unet" / "config.json", told["configs"]["unet"])
    found = on_meta(monkeypatch, {"unet": told["keys"]["unet"]})
    made = pretrained.load_folder(tmp_path)
    assert found == {"AdmUNet": 1_243_277_190}
    assert isinstance(made.decoder, CascadeDecoder)
    assert made.decoder.factor == 4


def on_meta(monkeypatch: pytest.MonkeyPatch, keys: dict[str, dict[str, list[int]]]) -> dict[str, int]:
    """Published names and shapes instead of files; what is filled, with the number of its parameters."""
    filled: dict[str, int] = {}

    def stored(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in keys[folder.name].items()}

    def assign(module: nn.Module, given: dict[str, Tensor], *, ignore: Sequence[str] = (), **_: object) -> None:
        wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
        assert {name: tensor.shape for name, tensor in given.items()} == wanted
        filled[type(module).__name__] = sum(p.numel() for p in module.parameters())

    monkeypatch.setattr(published, "weights", stored)
    monkeypatch.setattr(tensors, "assign", assign)
    monkeypatch.setattr(tensors, "fingerprint", lambda state: "published")
    return filled
