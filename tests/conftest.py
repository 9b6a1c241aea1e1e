"""A whole model with random weights, written by the code that writes the shipped ones: small, but nothing is mocked."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import sentencepiece
import torch
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from zoo.diffusion.schedule import Schedule
from zoo.pipeline import Pipeline
from zoo.stable_diffusion.parts import GeneratorConfig, LatentGenerator, VaeDecoder
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE, VAEConfig
from zoo.text.clip import ClipTextEncoder
from zoo.text.tokenizer import Tokenizer
from zoo.weights import save_model

WINDOW = 16


def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """What several tests share is the same whichever of them asks first."""
    if fixturedef.scope != "function":
        seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws depends neither on the tests before it nor on what they made already."""
    seed()


def captions() -> list[str]:
    english = [
        f"a {size} {colour} {thing} on a {ground} background"
        for size in ("small", "large")
        for colour in ("red", "green", "pink")
        for thing in ("butterfly", "circle", "circles", "star", "stars")
        for ground in ("white", "mint")
    ]
    return english + ["粉色的蝴蝶,小精灵,卡通", "红色的圆形", "绿色的星星"] * 10


def wordpieces(reserved: Sequence[str] = ()) -> bytes:
    """A sentencepiece model that knows the words of `captions`, and pieces that are kept free."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions()),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        user_defined_symbols=list(reserved),
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def vocabulary() -> bytes:
    """A sentencepiece model that knows the words of `captions`."""
    return wordpieces()


Network = TypeVar("Network", bound=nn.Module)


@pytest.fixture
def shake() -> Callable[[Network], Network]:
    """Give every parameter a random value, those that start at zero or one included, so that each one shows."""

    def shake(network: Network) -> Network:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.2 if parameter.ndim == 1 else 0.02)
        return network.eval()

    return shake


def shaken(module: nn.Module, seed: int, scale: float = 0.12) -> nn.Module:
    """The module with every weight random, also those that training begins at zero; linear ones so that text tells."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.5 if parameter.dim() == 2 else scale
            parameter.copy_(torch.randn(parameter.shape, generator=source) * spread + (parameter.dim() == 1) * 0.5)
    return module


def text_encoder(vocabulary: bytes, *, width: int = 32, seed: int = 1, layer: int = -2) -> ClipTextEncoder:
    tokenizer = Tokenizer(vocabulary, WINDOW)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.begin,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.padding,
    )
    model = CLIPTextModelWithProjection(config)
    shaken(model, seed)
    return ClipTextEncoder(model, tokenizer, layer=layer)


def vae_decoder(seed: int = 2) -> VaeDecoder:
    vae = VAE(VAEConfig(channels=(8, 16, 16), blocks_per_level=1, groups=4, scaling_factor=0.8))
    shaken(vae, seed)
    return VaeDecoder(vae)


def latent_generator(encoder: ClipTextEncoder, decoder: VaeDecoder, seed: int = 3) -> LatentGenerator:
    unet = UNetConfig(
        channels=(16, 32),
        blocks_per_level=1,
        attention=(False, True),
        heads=2,
        context_width=encoder.produces.width,
        groups=4,
    )
    network = UNet(unet)
    shaken(network, seed)
    config = GeneratorConfig(
        unet=unet,
        schedule=Schedule("cosine"),
        text=encoder.produces,
        latent_space=decoder.needs.space,
        factor=4,
        resolution=(32, 32),
        prediction="v",
    )
    return LatentGenerator.of(network, config)


def write_model(folder: Path, vocabulary: bytes, *, seed: int = 0, width: int = 32, side: int = 32) -> Path:
    """A model folder below `folder`, every weight from `seed`."""
    encoder, decoder = text_encoder(vocabulary, seed=seed + 1, width=width), vae_decoder(seed + 2)
    save_model(
        folder,
        encoder,
        latent_generator(encoder, decoder, seed + 3),
        decoder,
        family="stable-diffusion",
        resolution=(side, side),
        defaults={"steps": 3, "guidance": 5.0},
        dtype=torch.float16,
        summary="Random weights, for tests.",
        languages=("en", "zh"),
        papers=("arXiv:2112.10752",),
        recipes=("recipes/unet.toml",),
        examples=("a large pink butterfly",),
        results={"overall": {"seen": 0.8125}, "images": 1200},
    )
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """A folder with the models tiny, other (other weights) and wide (a wider text encoder, larger images)."""
    shelf = tmp_path_factory.mktemp("models")
    write_model(shelf / "tiny", vocabulary)
    write_model(shelf / "other", vocabulary, seed=10)
    write_model(shelf / "wide", vocabulary, seed=20, width=48, side=64)
    return shelf


@pytest.fixture
def shelf(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, where `zoo.load("tiny")` finds it."""
    monkeypatch.setenv("ZOO_MODELS", str(tiny_models))
    return tiny_models


@pytest.fixture(scope="session")
def tiny(tiny_models: Path) -> Pipeline:
    """The model tiny, loaded from its folder onto the CPU."""
    import zoo

    return zoo.load(tiny_models / "tiny", device="cpu")


Lend = Callable[[Pipeline], Pipeline]


@pytest.fixture
def lend() -> Iterator[Lend]:
    """Lend a pipeline that other tests use too: whatever becomes of the test, it comes back without adapters."""
    lent: list[Pipeline] = []

    def lend(pipe: Pipeline) -> Pipeline:
        lent.append(pipe)
        return pipe

    yield lend
    for pipe in lent:
        pipe.unmerge()
        for name in list(pipe.adapters()):
            pipe.unload(name)


@pytest.fixture(scope="session")
def imagen_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Path:
    """A whole Imagen with random weights."""
    from tests.imagen.tiny import write  # which takes `shaken` from here

    return write(tmp_path_factory.mktemp("models") / "tiny-imagen", vocabulary)
