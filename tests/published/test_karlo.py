"""Published Karlo folders (unCLIP): networks equal the reference, and so do the pictures of the whole pipeline."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers import UnCLIPScheduler as Scheduler
from diffusers.pipelines.deprecated.unclip import UnCLIPImageVariationPipeline, UnCLIPPipeline
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import zoo
from tests.published.conftest import (
    old_text_names,
    random_weights,
    said_by,
    save_tensors,
    write_clip_tokenizer,
    write_json,
)
from zoo import published, tensors
from zoo.dalle2 import pretrained
from zoo.dalle2.karlo import KarloDecoder, LastStep
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import make_grid
from zoo.interface import Conditioning, Representation
from zoo.pipeline import Pipeline
from zoo.text.clip import ClipTextEncoder
from zoo.weights import save_model

DATA = Path(__file__).parent.parent / "data" / "published"
DOWN, JOINT_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, JOINT_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
PROMPTS = ["a pink cat!", "two cats, on a roof"]
SEEDS, SIDE, WIDTH = (5, 6), 16, 24
STEPS = {"prior": 10, "decoder": 10, "super-resolution": 7}
UNCLIP = {"_class_name": "UnCLIPScheduler", "clip_sample": True, "num_train_timesteps": 1000}

CONFIGS: dict[str, dict[str, Any]] = {
    "prior_scheduler": {
        **UNCLIP,
        **{"clip_sample_range": 5.0, "prediction_type": "sample", "variance_type": "fixed_small_log"},
    },
    "decoder_scheduler": {
        **UNCLIP,
        **{"clip_sample_range": 1.0, "prediction_type": "epsilon", "variance_type": "learned_range"},
    },
    "super_res_scheduler": {
        **UNCLIP,
        **{"clip_sample_range": 1.0, "prediction_type": "epsilon", "variance_type": "fixed_small_log"},
    },
    "prior": {
        **{"additional_embeddings": 4, "attention_head_dim": 8, "dropout": 0.0, "embedding_dim": WIDTH},
        **{"num_attention_heads": 4, "num_embeddings": 77, "num_layers": 2},
    },
    "text_proj": {
        **{"clip_embeddings_dim": WIDTH, "clip_extra_context_tokens": 4, "cross_attention_dim": 40},
        "time_embed_dim": 64,
    },
    "decoder": {
        **{"sample_size": SIDE, "in_channels": 3, "out_channels": 6, "block_out_channels": [16, 32]},
        **{"down_block_types": [DOWN, JOINT_DOWN], "up_block_types": [JOINT_UP, UP], "layers_per_block": 1},
        **{"norm_num_groups": 8, "cross_attention_dim": 40, "attention_head_dim": 8, "class_embed_type": "identity"},
        **{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift"},
    },
    "super_res_first": {
        **{"sample_size": 4 * SIDE, "in_channels": 6, "out_channels": 3, "block_out_channels": [16, 32]},
        **{"down_block_types": [DOWN] * 2, "up_block_types": [UP] * 2, "layers_per_block": 1, "norm_num_groups": 8},
        "add_attention": False,
    },
}
CONFIGS["super_res_last"] = CONFIGS["super_res_first"]
CLASSES = {
    **{"decoder": ("diffusers", "UNet2DConditionModel"), "decoder_scheduler": ("diffusers", "UnCLIPScheduler")},
    **{"prior": ("diffusers", "PriorTransformer"), "prior_scheduler": ("diffusers", "UnCLIPScheduler")},
    **{"super_res_first": ("diffusers", "UNet2DModel"), "super_res_last": ("diffusers", "UNet2DModel")},
    **{"super_res_scheduler": ("diffusers", "UnCLIPScheduler"), "text_proj": ("unclip", "UnCLIPTextProjModel")},
    **{"text_encoder": ("transformers", "CLIPTextModelWithProjection"), "tokenizer": ("transformers", "CLIPTokenizer")},
}
VARIATIONS = {name: said for name, said in CLASSES.items() if not name.startswith("prior")} | {
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}


class Karlo:
    """A folder in the published layout, and the modules that it was written from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prior: Any = random_weights(PriorTransformer(**CONFIGS["prior"]), 1)
        self.prior.clip_std.data.abs_().add_(0.5)
        self.text_proj: Any = random_weights(UnCLIPTextProjModel(**CONFIGS["text_proj"]), 2)
        self.decoder = quiet(random_weights(UNet2DConditionModel(**CONFIGS["decoder"]), 3), 0.3)
        self.super_res_first = quiet(random_weights(UNet2DModel(**CONFIGS["super_res_first"]), 4), 0.5)
        self.super_res_last = quiet(random_weights(UNet2DModel(**CONFIGS["super_res_last"]), 5), 0.5)
        write_clip_tokenizer(folder / "tokenizer", "!")
        vocabulary = len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
        config = CLIPTextConfig(
            **{"vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3},
            **{"num_attention_heads": 3, "max_position_embeddings": 77, "hidden_act": "quick_gelu"},
            **{"projection_dim": WIDTH, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        )
        self.text_encoder: Any = random_weights(CLIPTextModelWithProjection(config), 6)
        self.write()

    def write(self) -> None:
        write_json(self.folder / "model_index.json", {"_class_name": "UnCLIPPipeline", **as_lists(CLASSES)})
        for name in ("prior", "text_proj", "decoder", "super_res_first", "super_res_last"):
            module = getattr(self, name)
            write_json(self.folder / name / "config.json", said_by(module) if name != "prior" else CONFIGS["prior"])
            save_tensors(self.folder / name, "diffusion_pytorch_model", module.state_dict(), ".safetensors")
        for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
            write_json(self.folder / name / "scheduler_config.json", CONFIGS[name])
        told = json.loads(self.text_encoder.config.to_json_string())
        write_json(self.folder / "text_encoder" / "config.json", told)
        state = self.text_encoder.state_dict()
        projection = {"text_projection.weight": state.pop("text_projection.weight")}
        save_tensors(self.folder / "text_encoder", "model", old_text_names(state) | projection, ".safetensors")

    def parts(self, *names: str, exact: bool = True) -> dict[str, Any]:
        schedulers = {name: Scheduler.from_config(said) for name, said in CONFIGS.items() if name.endswith("scheduler")}
        for scheduler in schedulers.values() if exact else ():
            in_double(scheduler)
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
        own = {name: getattr(self, name) for name in CLASSES if hasattr(self, name)}
        every = {**own, **schedulers, "tokenizer": tokenizer}
        return {name: every[name] for name in names or CLASSES}

    def reference(self, *, exact: bool) -> Any:
        """diffusers' own pipeline of the same modules; it cannot load such a folder any more."""
        made = UnCLIPPipeline(**self.parts(exact=exact))
        made.set_progress_bar_config(disable=True)
        return made


def in_double(scheduler: Any) -> None:
    """The scheduler's tables in double precision, as ours are.

    In single precision its last step gives 0.9995 of the clean estimate; the decoder, which begins where sigma / alpha
    is 20,000, makes of such a difference in the embedding another colour of a pixel now and then.
    """
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)


def as_lists(classes: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
    return {name: list(said) for name, said in classes.items()}


def quiet(network: Any, gain: float) -> Any:
    """What the network says is small, so that pictures are not black and white by clipping."""
    network.conv_out.weight.data.mul_(gain)
    network.conv_out.bias.data.mul_(gain)
    return network


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Karlo:
    return Karlo(tmp_path_factory.mktemp("karlo") / "karlo")


@pytest.fixture(scope="module")
def pipe(karlo: Karlo) -> Pipeline:
    return zoo.load(karlo.folder, device="cpu")


def same_noise(monkeypatch: pytest.MonkeyPatch, steps: dict[str, int]) -> None:
    """The scheduler draws what our samplers draw, stage by stage, but for the last step of each, which draws none."""
    turns: Iterator[tuple[str, int]] = chain.from_iterable(((s, i) for i in range(n - 1)) for s, n in steps.items())

    def draw(shape: Sequence[int], **_: object) -> Tensor:
        return ImageNoise(SEEDS).draw(*next(turns), shape)

    monkeypatch.setattr("diffusers.schedulers.scheduling_unclip.randn_tensor", draw)


def beginnings(*stages: str) -> dict[str, Tensor]:
    shapes = {"prior": (2, WIDTH), "decoder": (2, 3, SIDE, SIDE), "super-resolution": (2, 3, 4 * SIDE, 4 * SIDE)}
    names = {"super-resolution": "super_res"}
    return {f"{names.get(s, s)}_latents": ImageNoise(SEEDS).draw(s, -1, shapes[s]) for s in stages}


def same_pictures(found: Tensor, expected: Any, within: float = 2.0) -> None:
    reference = torch.from_numpy(expected).movedim(-1, 1)
    assert found.shape == reference.shape
    assert reference.std() > 0.05
    assert ((reference > 0) & (reference < 1)).float().mean() > 0.5  # not black and white by clipping
    assert (found - reference).abs().max() * 255 <= within


def test_networks_equal_the_reference(pipe: Pipeline, karlo: Karlo) -> None:
    words = CLIPTokenizer.from_pretrained(karlo.folder / "tokenizer")
    said = words(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    source = torch.Generator().manual_seed(0)
    x, embedding = torch.randn(2, 3, SIDE, SIDE, generator=source), torch.randn(2, WIDTH, generator=source)
    large, shown = torch.randn(2, 2, 3, 4 * SIDE, 4 * SIDE, generator=source)
    times, decoder = torch.tensor([3.0, 801.0]), pipe.decoder
    assert isinstance(decoder, KarloDecoder)
    close = {"atol": 1e-4, "rtol": 0}
    with torch.no_grad():
        text, found = karlo.text_encoder(said.input_ids), pipe.text_encoder.encode(PROMPTS)
        torch.testing.assert_close(found.tokens, text.last_hidden_state, **close)
        torch.testing.assert_close(found.pooled, text.text_embeds, **close)
        mask = said.attention_mask.bool()
        assert found.mask is not None
        assert torch.equal(found.mask, mask)
        assert not mask.all()
        tokens, pooled = text.last_hidden_state, text.text_embeds
        given = {"proj_embedding": pooled, "encoder_hidden_states": tokens, "attention_mask": mask}
        expected = karlo.prior(embedding, timestep=times, **given).predicted_image_embedding
        prior = pipe.generator.denoiser.network  # type: ignore[attr-defined]
        ours = prior(embedding, times, Conditioning(tokens=tokens, mask=mask, vector=pooled))
        torch.testing.assert_close(ours, expected, **close)
        torch.testing.assert_close(prior.restore(ours), karlo.prior.post_process_latents(expected), **close)

        context, added = karlo.text_proj(
            image_embeddings=embedding,
            prompt_embeds=pooled,
            text_encoder_hidden_states=tokens,
            do_classifier_free_guidance=False,
        )
        seen = nn.functional.pad(mask, (4, 0), value=True)
        expected = karlo.decoder(x, times, context, class_labels=added, attention_mask=seen).sample
        asked = decoder.condition(Representation(embedding, "clip_image", decoder.needs.space), found)
        torch.testing.assert_close(decoder.network(x, times, asked), expected, **close)
        upsampler = decoder.upsamplers[0].denoiser.network
        for time, theirs in ((166.0, karlo.super_res_first), (0.0, karlo.super_res_last)):
            expected = theirs(torch.cat([large, shown], 1), torch.tensor([time] * 2)).sample
            ours = upsampler(large, torch.tensor([time] * 2), Conditioning(concat=shown))
            torch.testing.assert_close(ours, expected, **close)


def test_what_the_folder_says_is_the_default(pipe: Pipeline) -> None:
    assert isinstance(pipe.text_encoder, ClipTextEncoder)
    assert isinstance(pipe.decoder, KarloDecoder)
    assert pipe.size == (4 * SIDE, 4 * SIDE)
    chained = {"prior": pipe.defaults, **pipe.decoder.defaults}
    assert {s: (how.steps, how.guidance, how.threshold) for s, how in chained.items()} == {
        "prior": (25, 4.0, None),
        "decoder": (25, 8.0, 1.0),
        "super-resolution": (7, 1.0, 1.0),
    }
    assert {(how.sampler, how.spacing) for how in chained.values()} == {("ddpm", "linspace")}
    config = pipe.generator.config  # type: ignore[attr-defined]
    assert (config.clamp, config.prediction, config.candidates, config.unit) == (5.0, "x0", 1, False)


def test_its_times_are_those_of_the_published_scheduler() -> None:
    scheduler = Scheduler.from_config(CONFIGS["decoder_scheduler"])
    for steps in range(2, 60):
        scheduler.set_timesteps(steps)
        grid = make_grid(Schedule("cosine"), steps, "linspace")
        assert grid.t.tolist() == [*scheduler.timesteps.tolist(), -1]


@pytest.mark.parametrize("exact", [True, False], ids=["tables-in-double", "tables-as-they-are"])
def test_pictures_of_prompts(exact: bool, pipe: Pipeline, karlo: Karlo, monkeypatch: pytest.MonkeyPatch) -> None:
    same_noise(monkeypatch, STEPS)
    expected = karlo.reference(exact=exact)(
        PROMPTS,
        prior_num_inference_steps=STEPS["prior"],
        decoder_num_inference_steps=STEPS["decoder"],
        super_res_num_inference_steps=STEPS["super-resolution"],
        **beginnings(*STEPS),
        output_type="np",
    ).images
    stages = {name: {"steps": STEPS[name]} for name in ("decoder", "super-resolution")}
    settings: dict[str, Any] = {"n": 1, "seed": list(SEEDS), "steps": STEPS["prior"], "progress": False}
    found = pipe(PROMPTS, **settings, stages=stages).tensor
    if not exact:  # all but single pixels
        apart = 255 * (found - torch.from_numpy(expected).movedim(-1, 1)).abs()
        assert (apart > 2).float().mean() < 0.005
        assert apart.mean() < 0.2
        return
    same_pictures(found, expected)
    for other in ({"guidance": 1.0}, {"stages": {"decoder": {"steps": 10, "guidance": 1.0}}}):  # guidance shows
        assert (pipe(PROMPTS, **{**settings, "stages": stages, **other}).tensor - found).abs().max() > 4 / 255


@pytest.fixture(scope="module")
def variations(karlo: Karlo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is published for variations of pictures: without a prior."""
    copy = Path(shutil.copytree(karlo.folder, tmp_path_factory.mktemp("karlo") / "variations"))
    index = {"_class_name": "UnCLIPImageVariationPipeline", **as_lists(VARIATIONS)}
    write_json(copy / "model_index.json", index)
    for name in ("prior", "prior_scheduler"):
        shutil.rmtree(copy / name)
    return copy


def test_variations_of_pictures(
    pipe: Pipeline, karlo: Karlo, variations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in CLASSES if not name.startswith("prior")]
    parts = karlo.parts(*names) | {"feature_extractor": None, "image_encoder": None}
    monkeypatch.setattr(UnCLIPImageVariationPipeline, "_encode_image", lambda self, image, device, n, given: given)
    reference = UnCLIPImageVariationPipeline(**parts)
    reference.set_progress_bar_config(disable=True)
    embedding = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(9))
    steps = {name: STEPS[name] for name in ("decoder", "super-resolution")}
    same_noise(monkeypatch, steps)
    expected = reference(
        image_embeddings=embedding,
        decoder_num_inference_steps=steps["decoder"],
        super_res_num_inference_steps=steps["super-resolution"],
        **beginnings(*steps),
        output_type="np",
    ).images
    made = zoo.load(karlo.folder, decoder=f"{variations}/decoder", device="cpu").decoder
    assert isinstance(made, KarloDecoder)
    null = pipe.text_encoder.null(2)
    with torch.no_grad():
        found = made.decode(
            Representation(embedding, "clip_image", made.needs.space),
            null,
            null,
            ImageNoise(SEEDS),
            list(pipe.stages({name: {"steps": n} for name, n in steps.items()}).values()),
        )
    same_pictures(found, expected)
    with pytest.raises(ValueError, match="has no generator: it makes variations of pictures"):
        zoo.load(variations, device="cpu")


def test_it_can_be_kept_as_a_model_of_the_zoo(pipe: Pipeline, tmp_path: Path) -> None:
    defaults = {name: getattr(pipe.defaults, name) for name in ("steps", "sampler", "spacing", "guidance")}
    parts = (pipe.text_encoder, pipe.generator, pipe.decoder)
    save_model(tmp_path / "kept", *parts, family="DALL-E 2", resolution=pipe.size or (0, 0), defaults=defaults)
    again = zoo.load(tmp_path / "kept", device="cpu")
    stages = {name: {"steps": 3} for name in ("decoder", "super-resolution")}
    a, b = (made("a cat", n=1, steps=3, stages=stages, progress=False).tensor for made in (pipe, again))
    assert (a - b).abs().max() < 1 / 255
    for role in ("text_encoder", "generator", "decoder"):
        kept, loaded = (getattr(made, role).state_dict() for made in (pipe, again))
        assert kept.keys() == loaded.keys()
        assert all(torch.equal(kept[name], loaded[name]) for name in kept)


def test_bfloat16(karlo: Karlo, pipe: Pipeline) -> None:
    half = zoo.load(karlo.folder, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.decoder.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert half.decoder.needs == pipe.decoder.needs  # the same spaces, whatever the precision
    stages = {"decoder": {"steps": 4, "guidance": 1.0}, "super-resolution": {"steps": 4}}
    how: dict[str, Any] = {"n": 1, "steps": 4, "guidance": 1.0, "stages": stages, "progress": False}
    a, b = (made("a cat", **how).tensor for made in (half, pipe))
    assert 0 < (a - b).abs().mean() < 0.05


def test_its_upsampler_puts_no_noise_on_the_smaller_picture(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"augmentation 0\.1: Karlo's upsampler trusts the smaller picture"):
        pipe("a cat", n=1, steps=2, augmentation=0.1, stages={"decoder": {"steps": 2}}, progress=False)


@pytest.fixture
def copy(karlo: Karlo, tmp_path: Path) -> Path:
    return Path(shutil.copytree(karlo.folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("model_index.json", {"prior": ["diffusers", "X"]}, "the prior in .* is a X: supported is PriorTransformer"),
        ("model_index.json", {"decoder_scheduler": ["diffusers", "DDIMScheduler"]}, "is a DDIMScheduler: supported"),
        ("model_index.json", {"movq": ["diffusers", "VQModel"]}, "components that are not known: movq"),
        ("prior/config.json", {"num_embeddings": 70}, "does not fit the parts around it: .*the text has"),
        ("prior_scheduler/scheduler_config.json", {"clip_sample_range": -1.0}, "does not fit .* greater than 0"),
        ("prior_scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule='linear'"),
        ("decoder/config.json", {"sample_size": 15}, "sample_size=15 is no size"),
        ("decoder/config.json", {"sample_size": 12}, "from 12 to 64 pixels"),
        ("decoder_scheduler/scheduler_config.json", {"variance_type": "fixed_small_log"}, "needs out_channels=3"),
        ("super_res_scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "needs a network"),
        ("super_res_last/config.json", {"layers_per_block": 2}, "networks of two shapes"),
        ("text_proj/config.json", {"time_embed_dim": 60}, "vectors 60 wide, the U-Net takes 64"),
        ("text_proj/config.json", {"clip_extra_context_tokens": 3}, "misshapen"),
    ],
)
def test_odd_folders_are_named(copy: Path, name: str, said: dict[str, object], message: str) -> None:
    write_json(copy / name, json.loads((copy / name).read_text("utf-8")) | said)
    with pytest.raises(ValueError, match=message) as caught:
        zoo.load(copy, device="cpu")
    assert str(copy) in str(caught.value)


def test_tensors_of_no_place_are_named(copy: Path) -> None:
    with pytest.raises(ValueError, match="clip_skip=1: Karlo reads the last layer"):
        zoo.load(copy, clip_skip=1)
    for part in ("prior", "text_proj", "decoder", "super_res_last"):
        path = copy / part / "diffusion_pytorch_model.safetensors"
        stored = load_file(path)
        save_file(stored | {"ema.weight": torch.ones(1)}, path)
        with pytest.raises(ValueError, match=rf"{part}: 1 of .*ema\.weight"):
            zoo.load(copy, device="cpu")
        missing = next(iter(stored))
        save_file({name: tensor for name, tensor in stored.items() if name != missing}, path)
        with pytest.raises(ValueError, match=rf"{part}.*does not fit(.|\n)*missing \(1\)"):
            zoo.load(copy, device="cpu")
        save_file(stored, path)


def test_published_size(karlo: Karlo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name and shape of all six networks finds its place on the way that a folder takes, on the meta device."""
    told, prior, text = (
        json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
        for name in ("karlo-v1-alpha", "karlo-v1-alpha-prior", "stable-diffusion-v1-5-text")
    )
    keys = {**told["keys"], **prior["keys"], "text_encoder": text["keys"] | {"text_projection.weight": [768, 768]}}
    for name, said in {**told["configs"], **prior["configs"]}.items():
        write_json(tmp_path / name / "config.json", said)
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        write_json(tmp_path / name / "scheduler_config.json", CONFIGS[name])
    write_json(tmp_path / "model_index.json", {"_class_name": "UnCLIPPipeline", **as_lists(CLASSES)})
    write_json(tmp_path / "text_encoder" / "config.json", text["config"] | {"projection_dim": 768})
    shutil.copytree(karlo.folder / "tokenizer", tmp_path / "tokenizer")
    filled: dict[str, int] = {}

    def stored(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in keys[folder.name].items()}

    def assign(module: nn.Module, given: dict[str, Tensor], *, ignore: Sequence[str] = (), **_: object) -> None:
        wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
        left = {name for name in given if any(re.fullmatch(pattern, name) for pattern in ignore)}
        assert {name: tensor.shape for name, tensor in given.items() if name not in left} == wanted
        filled[type(module).__name__] = sum(p.numel() for p in module.parameters())

    monkeypatch.setattr(published, "weights", stored)
    monkeypatch.setattr(tensors, "assign", assign)
    monkeypatch.setattr(tensors, "fingerprint", lambda state: "published")
    made = pretrained.load_folder(tmp_path)
    statistics = 2 * 768  # of the embeddings: parameters there, buffers here
    assert filled == {
        "CLIPTextModelWithProjection": 123_060_480 + 768 * 768,
        "PriorTransformer": 1_022_030_080 - statistics,
        "UnclipNetwork": 885_439_686 + 7_878_400,
        LastStep.__name__: 2 * 691_579_523,
    }
    assert made.size == (256, 256)
