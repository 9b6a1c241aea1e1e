"""The same model in every layout it is published in: variants, pickles, shards, single files; and as bfloat16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo.pipeline import Pipeline
from zoo.stable_diffusion import original
from zoo.stable_diffusion.configs import unet_config_from_diffusers
from zoo.weights import save_model

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> Path:
    """A Stable Diffusion 1.5 that a test may change."""
    return Path(shutil.copytree(checkpoints["sd15"].folder, tmp_path / "copy"))


def weights(pipe: Pipeline) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": tensor
        for role in ("text_encoder", "generator", "decoder")
        for name, tensor in getattr(pipe, role).state_dict().items()
    }


def same(a: Pipeline, b: Pipeline) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_pickles_hold_the_same(copy: Path) -> None:
    expected = zoo.load(copy, device="cpu")
    for path in list(copy.glob("*/*.safetensors")):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert same(zoo.load(copy, device="cpu"), expected)


def test_safetensors_are_preferred_and_variants_asked_for(copy: Path) -> None:
    unet = copy / "unet" / UNET
    stored = load_file(unet)
    torch.save({name: tensor + 1 for name, tensor in stored.items()}, unet.with_suffix(".bin"))
    half = {name: (tensor / 2).half() for name, tensor in stored.items()}
    save_file(half, copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    first = next(iter(stored.values()))

    def largest(**options: Any) -> float:
        pipe = zoo.load(copy, device="cpu", **options)
        return float(pipe.generator.denoiser.network.stem.weight.abs().max())  # type: ignore[attr-defined]

    assert first is not None
    assert largest() == pytest.approx(2 * largest(variant="fp16"), rel=1e-2)
    unet.unlink()
    unet.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=r"holds no weights.*there are variants: pass variant='fp16'"):
        zoo.load(copy, device="cpu")
    assert largest(variant="fp16") > 0
    with pytest.raises(ValueError, match=r"'\.\./x' is not the name of one"):
        zoo.load(copy, device="cpu", variant="../x")


def test_shards(copy: Path) -> None:
    expected = zoo.load(copy, device="cpu")
    unet = copy / "unet" / UNET
    stored, names = load_file(unet), [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {name: names[i % 2] for i, name in enumerate(stored)}
    for file in names:
        save_file({name: stored[name] for name in stored if place[name] == file}, copy / "unet" / file)
    index = copy / "unet" / f"{UNET}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}), "utf-8")
    unet.unlink()
    assert same(zoo.load(copy, device="cpu"), expected)
    for bad in ("../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "a\\b", "C:/x"):
        index.write_text(json.dumps({"weight_map": {**place, "conv_in.bias": bad}}), "utf-8")
        with pytest.raises(ValueError, match="is not a path inside the model folder"):
            zoo.load(copy, device="cpu")


def test_one_flat_buffer_is_let_go(checkpoints: dict[str, Checkpoint]) -> None:
    pipe = zoo.load(checkpoints["taiyi"].folder, device="cpu", dtype=torch.bfloat16)
    for tensor in weights(pipe).values():
        assert tensor.untyped_storage().nbytes() <= tensor.nbytes + 64
    assert {p.dtype for p in pipe.generator.parameters()} == {torch.bfloat16}


def test_bfloat16_is_near_and_fits(checkpoints: dict[str, Checkpoint]) -> None:
    folder = checkpoints["sd15"].folder
    full, half = (zoo.load(folder, device="cpu", dtype=dtype) for dtype in (None, torch.bfloat16))
    settings = {"n": 1, "steps": 4, "guidance": 2.0, "progress": False}
    a, b = (pipe("a cat", **settings).tensor for pipe in (full, half))
    assert 0 < (a - b).abs().mean() < 0.05
    assert half.decoder.needs == full.decoder.needs  # the same spaces, whatever the precision
    other = zoo.load(folder, device="cpu", text_encoder=full.text_encoder)
    assert same(other, full)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd21", "taiyi"])
def test_every_part_is_taken_in_the_type_asked_for(
    checkpoints: dict[str, Checkpoint], kind: str, dtype: torch.dtype
) -> None:
    """With the values that a cast gives, and the spaces of what is stored."""
    whole, made = (zoo.load(checkpoints[kind].folder, device="cpu", dtype=how) for how in (None, dtype))
    assert made.text_encoder.produces == whole.text_encoder.produces
    assert made.decoder.needs == whole.decoder.needs
    expected, found = weights(whole.to(dtype=dtype)), weights(made)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_folder_as_it_is_saved_today(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """By diffusers and transformers of now, with all their options and the new names of the text tower."""
    checkpoint = checkpoints["sd15"]
    reference = checkpoint.reference()
    reference.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(reference.scheduler.config)
    reference.save_pretrained(tmp_path / "today")
    assert "-Infinity" in (tmp_path / "today" / "scheduler" / "scheduler_config.json").read_text("utf-8")
    pipe = zoo.load(tmp_path / "today", device="cpu")
    assert same(pipe, zoo.load(checkpoint.folder, device="cpu"))
    assert pipe.defaults.sampler == "dpmpp_2m"


@pytest.mark.parametrize("kind", ["sd15", "taiyi", "inpaint"])
def test_it_can_be_kept_as_a_model_of_the_zoo(kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    pipe = zoo.load(checkpoints[kind].folder, device="cpu")
    parts = (pipe.text_encoder, pipe.generator, pipe.decoder)
    defaults = {name: getattr(pipe.defaults, name) for name in ("steps", "sampler", "spacing", "guidance")}
    save_model(tmp_path / "kept", *parts, family="Stable Diffusion", resolution=(64, 64), defaults=defaults)
    again = zoo.load(tmp_path / "kept", device="cpu")
    assert same(again, pipe)
    assert again.generator.config == pipe.generator.config  # type: ignore[attr-defined]
    with torch.no_grad():
        a, b = (p.text_encoder.encode(["a cat", ""]).tokens for p in (pipe, again))
    assert torch.equal(a, b)


def test_clip_skip_reads_an_earlier_layer(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["sd15"]
    pipe, reference = zoo.load(checkpoint.folder, device="cpu", clip_skip=1), checkpoint.reference()
    ids = reference.tokenizer(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        told = reference.text_encoder(ids, output_hidden_states=True)
        expected = reference.text_encoder.final_layer_norm(told.hidden_states[-2])
        torch.testing.assert_close(pipe.text_encoder.encode(["a cat"]).tokens, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="clip_skip=1 is for CLIP"):
        zoo.load(checkpoints["taiyi"].folder, clip_skip=1)


def test_prompts_that_are_too_long(checkpoints: dict[str, Checkpoint]) -> None:
    pipe = zoo.load(checkpoints["sd15"].folder, device="cpu")
    with pytest.raises(ValueError, match=r"at most 75: shorten"):
        pipe("cat " * 90, n=1, steps=1, progress=False)


# --- one original file -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def pair(request: pytest.FixtureRequest, write: Callable[..., Checkpoint]) -> tuple[Path, Checkpoint]:
    """An original file, and the checkpoint in the diffusers layout that holds the same weights."""
    v2 = request.param == "sd21"
    options = {
        **{"block_out_channels": (64, 128), "norm_num_groups": 32, "cross_attention_dim": 64},
        **{"attention_head_dim": (1, 2) if v2 else 8},
    }
    groups = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32}
    checkpoint = write(request.param, unet=options, vae=groups, text={"width": 64, "heads": 1})
    shaped = unet_config_from_diffusers(json.loads((checkpoint.folder / "unet" / "config.json").read_text("utf-8")))
    pipe = zoo.load(checkpoint.folder, device="cpu")
    unet = original.unet_to_original(pipe.generator.denoiser.network.state_dict(), shaped)  # type: ignore[attr-defined]
    vae = original.vae_to_original(pipe.decoder.vae.state_dict(), pipe.decoder.vae.config)  # type: ignore[attr-defined]
    state = {original.UNET + name: tensor for name, tensor in unet.items()}
    state |= {original.VAE + name: tensor for name, tensor in vae.items()}
    text = load_file(checkpoint.folder / "text_encoder" / "model.safetensors")
    if v2:
        state |= {original.OPEN_CLIP_TEXT + name: tensor for name, tensor in open_clip_of(text).items()}
    else:
        state |= {original.TRANSFORMERS_TEXT + name: tensor for name, tensor in text.items()}
    state |= {
        "betas": torch.ones(3),
        "model_ema.decay": torch.ones(()),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
    }
    path = checkpoint.folder / "whole.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path, checkpoint


def open_clip_of(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text tower in the open_clip layout, with the last block that Stable Diffusion 2 never runs."""
    from zoo.clip import APART, BLOCK, FUSED, PLAIN

    state = {ours: text[theirs] for ours, theirs in PLAIN.items() if theirs in text}
    for block in range(4):
        theirs, ours = f"text_model.encoder.layers.{min(block, 2)}.", f"transformer.resblocks.{block}."
        for kind in ("weight", "bias"):
            state |= {f"{ours}{a}.{kind}": text[f"{theirs}{b}.{kind}"].clone() for a, b in BLOCK.items()}
            state[f"{ours}{FUSED}{kind}"] = torch.cat([text[f"{theirs}{part}.{kind}"] for part in APART])
    return state | {"text_projection": torch.ones(64, 64), "logit_scale": torch.ones(())}


def test_single_files_hold_the_same(pair: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    path, checkpoint = pair
    v2 = checkpoint.kind == "sd21"
    expected = zoo.load(checkpoint.folder, device="cpu")
    options: dict[str, Any] = {"prediction": "v"} if v2 else {}
    found = zoo.load(path, device="cpu", **options)
    assert same(found, expected)
    assert (found.name, found.defaults) == ("whole", expected.defaults)
    with torch.no_grad():
        a, b = (pipe.text_encoder.encode(["a pink cat", ""]).tokens for pipe in (found, expected))
    assert torch.equal(a, b)
    settings = {"n": 1, "steps": 2, "height": 64, "width": 64, "progress": False}
    assert torch.equal(found("a cat", **settings).tensor, expected("a cat", **settings).tensor)
    if v2:
        with pytest.raises(ValueError, match="pass prediction='v'"):
            zoo.load(path)
    checkpointed = tmp_path / "whole.ckpt"
    torch.save({"state_dict": load_file(path), "global_step": 7, "epoch": 1}, checkpointed)
    shutil.copytree(checkpoint.folder / "tokenizer", tmp_path / "tokenizer")
    assert same(zoo.load(checkpointed, device="cpu", **options), expected)


def test_a_single_file_without_a_tokenizer(
    pair: tuple[Path, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, checkpoint = pair
    alone = Path(shutil.copy(path, tmp_path / "alone.safetensors"))
    asked: list[str] = []

    def fetch(repository: str) -> Path:
        asked.append(repository)
        return checkpoint.folder / "tokenizer"

    monkeypatch.setattr("zoo.hub.fetch_tokenizer", fetch)
    zoo.load(alone, device="cpu", prediction="v")
    assert asked == ["openai/clip-vit-large-patch14"]
