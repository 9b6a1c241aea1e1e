"""A whole DALL-E 2 with random weights: both towers of a CLIP, a prior, a decoder, an upsampler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from tests.conftest import shaken
from tests.imagen.tiny import stage
from zoo.adm import AdmUNetConfig
from zoo.cascade import Stage
from zoo.clip import Clip
from zoo.dalle2.decoder import UnclipConfig, UnclipDecoder, UnclipNetwork, UnclipNetworkConfig
from zoo.dalle2.prior import DiffusionPrior, DiffusionPriorConfig, PriorTransformer
from zoo.dalle2.projection import ImageProjectionConfig
from zoo.interface import Sampling, TextSpec
from zoo.text.clip import ClipTextEncoder
from zoo.text.tokenizer import Tokenizer

EMBEDDING = 8


def write_clip(folder: Path, vocabulary: bytes, *, window: int = 16, seed: int = 0) -> Path:
    """The folder of a CLIP whose pictures are 64x64."""
    torch.manual_seed(seed)
    words = Tokenizer(vocabulary, window)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    ids = {"bos_token_id": words.begin, "eos_token_id": words.end, "pad_token_id": words.padding}
    text = common | ids | {"vocab_size": len(words), "max_position_embeddings": window, "projection_dim": EMBEDDING}
    vision = common | {"patch_size": 16, "image_size": 64, "projection_dim": EMBEDDING}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING))
    for parameter in model.parameters():  # the towers start so alike that all pictures would be one
        nn.init.normal_(parameter, std=0.3)
    said = {"model_type": "clip", "projection_dim": EMBEDDING, "text_config": text, "vision_config": vision}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    (folder / "tokenizer" / "tokenizer.model").write_bytes(words.model)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def prior(clip: Clip, text: TextSpec, seed: int = 2) -> DiffusionPrior:
    network = {"embedding": EMBEDDING, "text_width": text.width, "length": text.length, "width": 16, "heads": 2}
    said = {"network": {**network, "layers": 1}, "text": text, "image_space": clip.image_space}
    config = DiffusionPriorConfig.model_validate(said)
    transformer = PriorTransformer(config.network)
    shaken(transformer, seed)
    return DiffusionPrior.of(transformer, config)


def decoder(
    clip: Clip,
    text: TextSpec | None,
    *,
    side: int = 8,
    upsamplers: Sequence[Stage] = (),
    seed: int = 3,
    learned: bool = False,
    loud: float = 0.1,
) -> UnclipDecoder:
    """`loud`: how much the network has to say beside what any picture would be."""
    unet = AdmUNetConfig(
        out_channels=6 if learned else 3,
        channels=(8, 16),
        blocks_per_level=1,
        attention=(False, True),
        head_width=8,
        context_width=12,
        vector=True,
        groups=4,
    )
    projection = ImageProjectionConfig(
        embedding_width=EMBEDDING,
        context_width=None if text is None else text.width,
        time_width=unet.embedding_width,
        text_channels=12,
        tokens=2,
    )
    network = UnclipNetwork(UnclipNetworkConfig(unet=unet, projection=projection))
    shaken(network, seed)
    for parameter in network.unet.head.parameters():
        parameter.data.mul_(loud)
    source = torch.Generator().manual_seed(seed)
    network.measure(clip.encode(torch.rand(32, 3, 64, 64, generator=source)).data)
    config = UnclipConfig(
        network=network.config,
        prediction="v",
        variance="learned_range" if learned else "fixed_small",
        image_space=clip.image_space,
        text=text,
        resolution=(side, side),
        sampling=Sampling(steps=3, guidance=2.0, threshold=1.0),
    )
    return UnclipDecoder.of(network, config, upsamplers)


def upsampler(name: str = "upsampler", seed: int = 4) -> Stage:
    return stage(name, None, seed)


def towers(folder: Path) -> tuple[Clip, ClipTextEncoder]:
    """Both, of a folder that `write_clip` wrote."""
    return Clip.load(folder), ClipTextEncoder.load(folder)
