"""The zoo's CLIP against open_clip, and what it says of bad folders."""

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPConfig, CLIPModel

from tests.dalle2.unclip import write_clip
from zoo.clip import Clip, from_open_clip, to_open_clip
from zoo.config import PartConfig
from zoo.weights import load_part, save_part

WIDTH, WINDOW, VOCABULARY, END = 64, 16, 100, 3


def reference() -> CLIP:
    torch.manual_seed(0)
    text = CLIPTextCfg(
        context_length=WINDOW, vocab_size=VOCABULARY, width=WIDTH, heads=2, layers=3, pool_type="eos", eos_id=END
    )
    vision = CLIPVisionCfg(layers=2, width=WIDTH, head_width=32, patch_size=8, image_size=32)
    model = CLIP(48, vision, text).eval()
    for parameter in model.parameters():  # open_clip starts projections and biases at values that hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def config() -> CLIPConfig:
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "hidden_act": "gelu", "num_attention_heads": 2}
    text = {"num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": WINDOW}
    ids = {"eos_token_id": END, "pad_token_id": 0, "bos_token_id": 2}
    vision = {"num_hidden_layers": 2, "patch_size": 8, "image_size": 32}
    return CLIPConfig(text_config=common | text | ids, vision_config=common | vision, projection_dim=48)


def test_weights_trained_with_open_clip_give_the_same_embeddings_in_transformers() -> None:
    theirs, ours = reference(), CLIPModel(config()).eval()
    ours.load_state_dict(from_open_clip(theirs.state_dict()))
    images = torch.randn(3, 3, 32, 32)
    tokens = torch.randint(4, VOCABULARY, (3, WINDOW))
    for row, end in enumerate((5, 9, 15)):
        tokens[row, end], tokens[row, end + 1 :] = END, 0
    with torch.no_grad():
        pooled = ours.vision_model(pixel_values=images).pooler_output
        assert torch.allclose(ours.visual_projection(pooled), theirs.encode_image(images), atol=1e-5)
        pooled = ours.text_model(input_ids=tokens).pooler_output
        assert torch.allclose(ours.text_projection(pooled), theirs.encode_text(tokens), atol=1e-5)


def test_every_open_clip_tensor_is_accounted_for() -> None:
    theirs = reference().state_dict()
    turned = from_open_clip(theirs)
    assert set(turned) == set(CLIPModel(config()).state_dict()) - {
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
    }
    assert sum(t.numel() for t in turned.values()) == sum(t.numel() for t in theirs.values())


def test_there_and_back_is_the_identity() -> None:
    state = reference().state_dict()
    back = to_open_clip(from_open_clip(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_clip_is_stored_as_a_part(tmp_path: Path, vocabulary: bytes) -> None:
    one = Clip.load(write_clip(tmp_path / "given", vocabulary))
    config = save_part(tmp_path, one, subfolder="image_encoder")
    assert config.kind == "clip"
    again = load_part(tmp_path, config)
    assert isinstance(again, Clip)
    assert again.image_space == one.image_space
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.encode(images).data, one.encode(images).data)
    assert torch.equal(again.embed_texts(["a red star"]), one.embed_texts(["a red star"]))
    with pytest.raises(ValueError, match="takes no arguments, got {'layer': -2}"):
        load_part(tmp_path, PartConfig.model_validate(config.model_dump() | {"arguments": {"layer": -2}}))
