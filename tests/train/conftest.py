"""A tiny VAE that was trained and a tiny text encoder, between which tiny generators are trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from zoo.data.captions import caption
from zoo.data.scenes import random_scene
from zoo.text.clip import ClipTextEncoder
from zoo.text.tokenizer import Tokenizer
from zoo.train import cache, run, text_to_image, vae

COMMON = """
steps = 3
batch = 2
threads = 1
log_every = 1
[data]
scenes = 8
size = 64
workers = 1
"""
VAE = """
part = "vae"
adversarial = 0.1
adversarial_from = 0.5
model = {channels = [8, 16], groups = 4, blocks_per_level = 1}
"""
UNET = """
part = "unet"
judged = 1
model = {channels = [8, 16], attention = [false, true], groups = 4, heads = 2, blocks_per_level = 1, context_width = 16}
"""


@pytest.fixture(scope="session")
def scene_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a sentencepiece model that knows what captions of scenes say."""
    model = tmp_path_factory.mktemp("words") / "tokenizer.model"
    rng = np.random.default_rng(0)
    said = [caption(random_scene(rng), language, rng) for _ in range(1000) for language in text_to_image.LANGUAGES]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*said, *text_to_image.PROMPTS]),
        model_prefix=str(model.with_suffix("")),
        vocab_size=800,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        unk_id=1,
        bos_id=3,
        eos_id=4,
        minloglevel=2,
    )
    return model


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a cache, a tiny text encoder, a tiny trained VAE, and the recipes of tiny parts."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.setattr(cache, "PROBED", 2)
        patch.setattr(vae, "FRESH", 4)
        (home / "vae.toml").write_text(VAE + COMMON, encoding="utf-8")
        (home / "unet.toml").write_text(UNET + COMMON, encoding="utf-8")
        run(home / "vae.toml", [f"out={home / 'vae'}"], device="cpu")
    _text_encoder(home / "text", scene_words)
    return home


@pytest.fixture
def same_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test find what was drawn and encoded in `home`."""
    monkeypatch.setenv("ZOO_CACHE", str(home / "cache"))
    monkeypatch.setattr(cache, "PROBED", 2)


def _text_encoder(folder: Path, vocabulary: Path) -> None:
    tokenizer = Tokenizer(vocabulary.read_bytes(), 64)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.begin,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.padding,
    )
    ClipTextEncoder(CLIPTextModelWithProjection(config), tokenizer).save(folder)
