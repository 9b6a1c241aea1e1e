"""The parts that adapters are tried on. Another family's part is one more entry in PARTS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from zoo.interface import Conditioning
from zoo.stable_diffusion.unet import UNet, UNetConfig
from zoo.stable_diffusion.vae import VAE, VAEConfig


@dataclass(frozen=True)
class Part:
    """How a part is built, called on a fixed batch of four, and which of its modules are adapted."""

    build: Callable[[], nn.Module]
    call: Callable[[nn.Module], Tensor]
    targets: tuple[str, ...] = ("*",)


def fixed(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet() -> UNet:
    config = {"channels": (8, 16), "blocks_per_level": 1, "attention": (False, True), "heads": 2, "groups": 4}
    return UNet(UNetConfig.model_validate(config | {"context_width": 12}))


def call_unet(network: nn.Module) -> Tensor:
    times = torch.tensor([1.0, 250.0, 500.0, 999.0])
    return network(fixed(4, 4, 8, 8), times, Conditioning(tokens=fixed(4, 5, 12, seed=1)))


def clip_text() -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 8}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 10}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **depth, **ends))


def call_clip_text(network: nn.Module) -> Tensor:
    ids = torch.randint(3, 40, (4, 10), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    return network(ids).text_embeds


def vae() -> VAE:
    return VAE(VAEConfig(channels=(8, 8), blocks_per_level=1, groups=4))


def call_vae(network: nn.Module) -> Tensor:
    return network(fixed(4, 3, 16, 16))[0]


PARTS = {
    "unet": Part(unet, call_unet),
    "text_encoder": Part(clip_text, call_clip_text),
    "vae": Part(vae, call_vae),
}


def built(part: Part) -> nn.Module:
    """The part with frozen random weights, none of them zero: the same at every call."""
    module = part.build().requires_grad_(False).eval()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=source)
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(noise / fan**0.5 + (parameter.dim() == 1) * 0.5)
    return module


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> Part:
    return PARTS[request.param]


@pytest.fixture
def build() -> Callable[[Part], nn.Module]:
    return built


@pytest.fixture
def parts() -> dict[str, Part]:
    return PARTS
