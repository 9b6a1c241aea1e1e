from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

from zoo.interface import TextEncoder
from zoo.text.clip import ClipTextEncoder
from zoo.text.tokenizer import Tokenizer

PROMPTS = ["a large pink butterfly on a mint background", "a star", "", "红色的圆形"]


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / "tiny"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipTextEncoder:
    return ClipTextEncoder.load(folder)


def test_is_a_text_encoder(encoder: ClipTextEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    text = encoder.encode(PROMPTS)
    spec = encoder.produces
    assert text.tokens.shape == (4, spec.length, spec.width) == (4, 16, 32)
    assert text.pooled is not None
    assert text.pooled.shape == (4, spec.pooled) == (4, 24)
    assert text.mask is None
    assert text.space == spec.space
    assert not text.tokens.requires_grad


def test_penultimate_layer_as_transformers_computes_it(encoder: ClipTextEncoder, folder: Path) -> None:
    """What ships is read by transformers itself, and gives the same features there."""
    theirs = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    ids = encoder.tokenizer.encode(PROMPTS)
    with torch.no_grad():
        out = theirs(ids, output_hidden_states=True)
        tokens = theirs.text_model.final_layer_norm(out.hidden_states[-2])
    text = encoder.encode(PROMPTS)
    torch.testing.assert_close(text.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled, out.text_embeds, atol=1e-5, rtol=1e-5)
    last = ClipTextEncoder.load(folder, {"layer": -1})
    torch.testing.assert_close(last.encode(PROMPTS).tokens, out.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert last.produces.space != encoder.produces.space, "two layers are two spaces"


def test_a_prompt_does_not_depend_on_its_batch(encoder: ClipTextEncoder) -> None:
    together = encoder.encode(PROMPTS).tokens
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(encoder.encode([prompt]).tokens[0], together[i], atol=1e-5, rtol=1e-5)


def test_null_is_the_empty_prompt(encoder: ClipTextEncoder) -> None:
    assert torch.equal(encoder.null(2).tokens, encoder.encode(["", ""]).tokens)


def test_space_survives_half_precision_and_tells_weights_apart(tiny_models: Path, encoder: ClipTextEncoder) -> None:
    assert json.loads((tiny_models / "tiny" / "config.json").read_text())["generator"]["arguments"]["text"][
        "space"
    ] == (encoder.produces.space)
    assert ClipTextEncoder.load(tiny_models / "other").produces.space != encoder.produces.space


def test_a_whole_clip(tmp_path: Path, encoder: ClipTextEncoder) -> None:
    """The text tower is found in a CLIP with both towers, and is the same space there."""
    text = encoder.model.config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    clip.text_model.load_state_dict(encoder.model.text_model.state_dict())
    clip.text_projection.load_state_dict(encoder.model.text_projection.state_dict())
    clip.save_pretrained(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.model").write_bytes(encoder.tokenizer.model)
    found = ClipTextEncoder.load(tmp_path)
    assert found.produces == encoder.produces
    assert torch.equal(found.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens)


def test_layout_without_projection(folder: Path, tmp_path: Path, encoder: ClipTextEncoder) -> None:
    """As Stable Diffusion 1 and 2 are published, and with the buffer that old checkpoints carry."""
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.model").write_bytes(encoder.tokenizer.model)
    (tmp_path / "text_encoder/config.json").write_bytes((folder / "text_encoder/config.json").read_bytes())
    stored = load_file(folder / "text_encoder/model.safetensors")
    del stored["text_projection.weight"]
    stored["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(stored, tmp_path / "text_encoder/model.safetensors")
    plain = ClipTextEncoder.load(tmp_path)
    assert plain.produces.pooled is None
    assert plain.encode(["a star"]).pooled is None
    torch.testing.assert_close(plain.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens)


def test_errors(encoder: ClipTextEncoder, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer must be from -3 to -1"):
        ClipTextEncoder.load(folder, {"layer": -4})
    with pytest.raises(ValueError, match="takes the integer"):
        ClipTextEncoder.load(folder, {"depth": 3})
    with pytest.raises(ValueError, match="not the config of a CLIP text tower"):
        ClipTextEncoder.load(tmp_path)
    with pytest.raises(ValueError, match=r"window 9\) is not the one this text tower was made for"):
        ClipTextEncoder(encoder.model, Tokenizer(encoder.tokenizer.model, 9))
