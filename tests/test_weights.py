from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file

import zoo
from tests.pictures import apart
from zoo import config as configs
from zoo import tensors, weights
from zoo.config import Defaults
from zoo.interface import Sampling
from zoo.pipeline import Pipeline
from zoo.weights import load_part, save_part


@pytest.fixture
def copy(tiny_models: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_models / "tiny", tmp_path / "tiny"))


def change(folder: Path, value: JsonValue, *keys: str) -> None:
    """Set one entry of a model's config."""
    path = folder / "config.json"
    said = json.loads(path.read_text("utf-8"))
    inner = said
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(said), "utf-8")


def test_what_is_saved_is_what_is_loaded(tiny: Pipeline, tmp_path: Path) -> None:
    for part in (tiny.text_encoder, tiny.generator, tiny.decoder):
        again = load_part(tmp_path, save_part(tmp_path, part, subfolder="variants/one"))
        assert type(again) is type(part)
        before, after = part.state_dict(), again.state_dict()  # type: ignore[union-attr]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float32}
        assert not any(parameter.requires_grad for parameter in again.parameters())  # type: ignore[union-attr]


def test_weights_of_eight_bits_still_define_the_spaces_that_others_were_trained_for(
    tiny: Pipeline, tmp_path: Path
) -> None:
    parts = (tiny.text_encoder, tiny.generator, tiny.decoder)
    for name, dtype in (("small", torch.int8), ("again", torch.float16)):  # and through the files of another precision
        weights.save_model(tmp_path / name, *parts, family="tiny", resolution=(32, 32), dtype=dtype)
        pipe = zoo.load(tmp_path / name, device="cpu")
        parts = (pipe.text_encoder, pipe.generator, pipe.decoder)
        assert pipe.text_encoder.produces == tiny.text_encoder.produces
        assert pipe.decoder.needs == tiny.decoder.needs
        how = {"n": 2, "steps": 4, "guidance": 5.0, "progress": False}
        full, rounded = (made("a red star", **how).tensor for made in (tiny, pipe))  # type: ignore[arg-type]
        assert 0 < apart(full, rounded) < 0.1 * apart(full, full.flip(0)), "far less than another seed's"
    before, after = (part.state_dict() for part in (tiny.text_encoder, pipe.text_encoder))  # type: ignore[attr-defined]
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_header_that_names_no_space_is_refused(copy: Path) -> None:
    path = copy / "vae" / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "space.latents": "../x"})
    change(copy, tensors.sha256(path), "decoder", "files", "vae/model.safetensors")
    with pytest.raises(ValueError, match=r"its header names a space '\.\./x', not sixteen hexadecimal digits"):
        zoo.load(copy, device="cpu")


def test_defaults_are_those_of_sampling() -> None:
    assert Defaults().model_dump() == {f.name: getattr(Sampling(), f.name) for f in fields(Sampling)}


def test_a_changed_file_is_refused(copy: Path) -> None:
    path = copy / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its SHA-256 is [0-9a-f]{64}, the config says"):
        zoo.load(copy, device="cpu")
    path.unlink()
    with pytest.raises(ValueError, match="is missing: fetch the model again"):
        zoo.load(copy, device="cpu")


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "a/../../b", "C:/b", "a\\b", ""])
def test_paths_that_leave_the_folder_are_refused(copy: Path, path: str) -> None:
    change(copy, {path: "0" * 64}, "decoder", "files")
    with pytest.raises(ValueError, match="is not a path inside the model folder"):
        zoo.load(copy, device="cpu")
    change(copy, {}, "decoder", "files")
    change(copy, path, "decoder", "folder")
    with pytest.raises(ValueError, match="is not a path inside the model folder"):
        zoo.load(copy, device="cpu")


def test_weights_that_the_config_does_not_list_are_refused(copy: Path) -> None:
    said = json.loads((copy / "config.json").read_text("utf-8"))
    for part, file in (("generator", "unet/model.safetensors"), ("text_encoder", "text_encoder/model.safetensors")):
        listed = {name: sum for name, sum in said[part]["files"].items() if name != file}
        change(copy, listed, part, "files")
        with pytest.raises(ValueError, match=rf"{file} cannot be checked: the files of this '[a-z-]+' in the config"):
            zoo.load(copy, device="cpu")
        change(copy, said[part]["files"], part, "files")
    assert zoo.load(copy, device="cpu")


def test_a_lora_is_one_of_the_files(copy: Path) -> None:
    change(copy, "lora.safetensors", "generator", "lora")
    with pytest.raises(ValueError, match=r"generator: .*the LoRA lora\.safetensors is not among the files"):
        zoo.load(copy, device="cpu")


def test_nothing_but_the_table_is_imported(copy: Path) -> None:
    change(copy, "os:system", "decoder", "kind")
    with pytest.raises(ValueError, match="unknown kind of part 'os:system'"):
        zoo.load(copy, device="cpu")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "format: Input should be 1"),
        (("surprise",), 1, "surprise: Extra inputs are not permitted"),
        (("defaults", "steps"), 0, "defaults.steps: Input should be greater than or equal to 1"),
        (("decoder", "arguments", "latent_channels"), "four", "arguments of 'vae' .*latent_channels"),
        (("decoder", "arguments", "channels"), [8, 16, 24], "misshapen"),
        (("generator", "arguments", "text", "width"), 48, "the U-Net attends to 32"),
    ],
)
def test_configs_that_are_not_valid(copy: Path, keys: tuple[str, ...], value: JsonValue, message: str) -> None:
    change(copy, value, *keys)
    with pytest.raises(ValueError, match=message):
        zoo.load(copy, device="cpu")


def test_broken_and_missing_config(copy: Path) -> None:
    (copy / "config.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="is not a valid model config"):
        zoo.load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="is not a model folder"):
        zoo.load(copy)


def test_only_known_classes_are_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear cannot be stored"):
        save_part(tmp_path, torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_variants(copy: Path) -> None:
    declared = json.loads((copy / "config.json").read_text("utf-8"))
    change(copy, {"decoder": {"twin": declared["decoder"]}}, "variants")
    assert zoo.load(copy, device="cpu", decoder="twin").decoder.needs == zoo.load(copy, device="cpu").decoder.needs
    with pytest.raises(ValueError, match=r"tiny has no decoder variant 'twins' \(declared: twin\)"):
        zoo.load(copy, decoder="twins")


def test_config_survives_writing(copy: Path) -> None:
    config = configs.read(copy)
    assert configs.ModelConfig.model_validate_json(config.model_dump_json()) == config
