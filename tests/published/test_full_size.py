"""At the published size, on the meta device: every key and shape of the published files has its place, and no other."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from zoo.keys import KeyTable
from zoo.stable_diffusion import keys, original
from zoo.stable_diffusion.configs import (
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    vae_config_from_diffusers,
)
from zoo.stable_diffusion.unet import UNet
from zoo.stable_diffusion.vae import VAE
from zoo.text import bert, clip

DATA = Path(__file__).parent.parent / "data" / "published"
V1, V2, TAIYI = "stable-diffusion-v1-5", "stable-diffusion-2-1", "taiyi-sd-1b-anime-chinese-v0.1"


def read(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def on_meta(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def wanted(module: nn.Module) -> dict[str, list[int]]:
    return shapes(module.state_dict())


def without(state: Mapping[str, Tensor], ignored: Iterable[str]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if not any(re.fullmatch(pattern, name) for pattern in ignored)}


@pytest.mark.parametrize("name", [V1, V2, TAIYI])
def test_networks(name: str) -> None:
    told = read(name)
    with torch.device("meta"):
        unet = UNet(unet_config_from_diffusers(told["configs"]["unet"]))
        vae = VAE(vae_config_from_diffusers(told["configs"]["vae"]))
    assert shapes(keys.unet_from_diffusers(on_meta(told["keys"]["unet"]))) == wanted(unet)
    for spelling in ("vae", "vae_old"):
        assert shapes(keys.vae_from_diffusers(on_meta(told["keys"][spelling]))) == wanted(vae)


@pytest.mark.parametrize(("name", "parameters"), [(V1, 123_060_480), (V2, 340_387_840)])
def test_clip_text_towers(name: str, parameters: int) -> None:
    told = read(f"{name}-text")
    config = CLIPTextConfig(**{field: told["config"][field] for field in clip.FIELDS if field in told["config"]})
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    model.text_projection = nn.Identity()
    assert shapes(without(on_meta(told["keys"]), clip.LEFT_OVER)) == wanted(model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_chinese_text_encoder() -> None:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    told = read(TAIYI)
    said = told["configs"]["text_encoder"]
    with torch.device("meta"):
        model = BertModel(BertConfig(**{field: said[field] for field in bert.FIELDS if field in said}))
    assert shapes(without(on_meta(told["keys"]["text_encoder"]), bert.LEFT_OVER)) == wanted(model)
    assert sum(p.numel() for p in model.parameters()) == 102_267_648


def test_the_safety_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import published, tensors
    from zoo.safety import ConceptChecker

    told = read(f"{V1}-safety-checker")
    found: dict[str, Any] = {}

    def assign(module: nn.Module, stored: Mapping[str, Tensor], *, source: object, ignore: Iterable[str]) -> None:
        found.update(wanted=wanted(module), stored=shapes(without(stored, ignore)))

    monkeypatch.setattr(published, "options", lambda folder, name: told["config"])
    monkeypatch.setattr(published, "weights", lambda folder, variant: on_meta(told["keys"]))
    monkeypatch.setattr(tensors, "assign", assign)
    ConceptChecker.load(Path("nowhere"))
    assert found["stored"] == found["wanted"]


@pytest.mark.parametrize("name", [V1, V2])
def test_single_files(name: str) -> None:
    told, single = read(name), read(f"{name}-single-file")
    parts = original.split(on_meta(single["shapes"]))
    unet, vae = original.unet_config(parts[original.UNET]), original.vae_config(parts[original.VAE])
    published = unet_config_from_diffusers(told["configs"]["unet"])
    ours, theirs = unet_config_to_diffusers(unet), unet_config_to_diffusers(published)
    per_level = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim")
    for option in per_level:  # one number for all levels, or the same for each
        ours[option], theirs[option] = (
            said[option] if isinstance(said[option], list) else [said[option]] * 4 for said in (ours, theirs)
        )
    assert ours == theirs
    assert vae == vae_config_from_diffusers(told["configs"]["vae"])
    with torch.device("meta"):
        networks = {original.UNET: UNet(unet), original.VAE: VAE(vae)}
    assert shapes(original.unet_from_original(parts[original.UNET], unet)) == wanted(networks[original.UNET])
    assert shapes(original.vae_from_original(parts[original.VAE], vae)) == wanted(networks[original.VAE])
    # The same places as by way of the diffusers names, and back again.
    tables: dict[str, tuple[KeyTable, KeyTable]] = {
        original.UNET: (original.unet_table(unet), keys.UNET),
        original.VAE: (original.vae_table(vae), keys.VAE),
    }
    for prefix, (table, diffusers) in tables.items():
        for key in parts[prefix]:
            assert table.ours(key) == diffusers.ours(single["names"][prefix + key])
        back = {theirs for key in networks[prefix].state_dict() if (theirs := table.theirs(key))}
        assert back == parts[prefix].keys()


@pytest.mark.parametrize("name", [V1, V2])
def test_text_towers_of_single_files(name: str) -> None:
    told, single = read(f"{name}-text"), read(f"{name}-single-file")
    parts = original.split(on_meta(single["shapes"]))
    open_clip = bool(parts[original.OPEN_CLIP_TEXT])
    assert open_clip == (name == V2)
    text = parts[original.TRANSFORMERS_TEXT]
    if open_clip:
        text = original.text_from_open_clip(parts[original.OPEN_CLIP_TEXT])
        for key, place in single["names"].items():  # every tensor where the published conversion puts it
            if key.startswith(original.OPEN_CLIP_TEXT) and place is not None:
                assert set(place if isinstance(place, list) else [place]) <= text.keys()
    expected = {key: shape for key, shape in told["keys"].items() if not key.endswith("position_ids")}
    assert shapes(without(text, clip.LEFT_OVER)) == expected
    options = original.text_options(text, open_clip=open_clip)
    assert {option: told["config"][option] for option in options} == options


def test_moving_averages_are_left_out_by_name() -> None:
    single = read(f"{V1}-single-file")["shapes"]
    average = {f"model_ema.{k.removeprefix('model.').replace('.', '')}": v for k, v in single.items() if "diff" in k}
    parts = original.split(on_meta({**single, **average, "model_ema.decay": [], "global_step": []}))
    assert len(parts[original.UNET]) == 686
    with pytest.raises(ValueError, match=r"1 tensors belong to no part of Stable Diffusion: control_model\.input"):
        original.split(on_meta({**single, "control_model.input": [1]}))
    with pytest.raises(ValueError, match=r"nothing is called first_stage_model\."):
        original.split(on_meta({k: v for k, v in single.items() if not k.startswith("first")}))
