"""A whole Imagen with random weights: T5, base, and a cascade of two stages, the second without text."""

from __future__ import annotations

from pathlib import Path

from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from tests.conftest import shaken
from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cascade import Stage, StageConfig
from zoo.diffusion.schedule import Schedule
from zoo.efficient_unet import EfficientUNet, EfficientUNetConfig
from zoo.imagen.parts import BaseConfig, CascadeDecoder, PixelGenerator
from zoo.interface import Sampling, TextSpec
from zoo.text.t5 import T5TextEncoder
from zoo.text.tokenizer import Tokenizer
from zoo.weights import save_model

WIDTH = 16


def t5(vocabulary: bytes, seed: int = 1) -> T5TextEncoder:
    tokenizer = Tokenizer(vocabulary, 16, begin=False)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.padding,
    )
    model = T5EncoderModel(config)
    shaken(model, seed)
    return T5TextEncoder(model, tokenizer)


def base(text: TextSpec, seed: int = 2) -> PixelGenerator:
    unet = AdmUNetConfig(
        channels=(8, 16),
        blocks_per_level=1,
        attention=(False, True),
        head_width=8,
        context_width=WIDTH,
        pool_heads=2,
        groups=4,
    )
    network = AdmUNet(unet)
    shaken(network, seed)
    for parameter in network.head.parameters():  # so that what it says is near pictures, and noise and images show
        parameter.data.mul_(0.1)
    config = BaseConfig(unet=unet, text=text, factor=4, resolution=(8, 8), prediction="v")
    return PixelGenerator.of(network, config)


def stage(name: str, text: TextSpec | None, seed: int) -> Stage:
    attends = text is not None
    unet = EfficientUNetConfig(
        channels=(8, 16),
        blocks_per_level=(1, 1),
        self_attention=(False, attends),
        text_attention=(False, attends),
        heads=2,
        context_width=WIDTH if attends else None,
        text_channels=8,
        groups=4,
    )
    network = EfficientUNet(unet)
    shaken(network, seed)
    sampling = Sampling(steps=2, threshold=1.0, augmentation=0.1, guidance=2.0 if attends else 1.0)
    said = StageConfig(name=name, text=text, prediction="v", sampling=sampling, schedule=Schedule("cosine"))
    return Stage(network, said)


def write(folder: Path, vocabulary: bytes) -> Path:
    """The model folder of it."""
    encoder = t5(vocabulary)
    chain = CascadeDecoder([stage("first", encoder.produces, 3), stage("second", None, 4)])
    defaults = {"steps": 3, "guidance": 2.0, "threshold": 1.0}
    save_model(folder, encoder, base(encoder.produces), chain, family="Imagen", resolution=(32, 32), defaults=defaults)
    return folder
