"""The parts of all families that adapters are tried on. Another family's part is one more entry in PARTS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from tests.dalle2.conftest import SMALL
from tests.dalle2.unclip import upsampler
from tests.gan.conftest import SIZES, generator_network
from tests.imagen.tiny import WIDTH, base, stage
from zoo.adm import AdmUNetConfig
from zoo.dalle2.autoregressive_prior import AutoregressiveConfig, AutoregressiveTransformer
from zoo.dalle2.decoder import UnclipNetwork, UnclipNetworkConfig
from zoo.dalle2.prior import PriorConfig, PriorTransformer
from zoo.dalle2.projection import ImageProjectionConfig
from zoo.interface import Conditioning, TextSpec
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
    return network(fixed(4, 4, 8, 8), times(), Conditioning(tokens=fixed(4, 5, 12, seed=1)))


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


TEXT = TextSpec(WIDTH, "words")
MASK = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])


def times() -> Tensor:
    return torch.tensor([1.0, 250.0, 500.0, 999.0])


def t5() -> nn.Module:
    sizes = {"vocab_size": 40, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", eos_token_id=1, pad_token_id=0))


def call_t5(network: nn.Module) -> Tensor:
    ids = torch.randint(2, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    return network(ids, attention_mask=MASK).last_hidden_state


def call_base(network: nn.Module) -> Tensor:
    return network(fixed(4, 3, 8, 8), times(), Conditioning(tokens=fixed(4, 6, WIDTH, seed=1), mask=MASK))


def call_stage(network: nn.Module) -> Tensor:
    """Of a cascade that reads text, as Imagen's; `call_upsampler` of one that does not."""
    said = Conditioning(tokens=fixed(4, 6, WIDTH, seed=1), mask=MASK)
    return network(fixed(4, 3, 16, 16), times(), replace(said, **smaller()))


def call_upsampler(network: nn.Module) -> Tensor:
    return network(fixed(4, 3, 16, 16), times(), Conditioning(**smaller()))


def smaller() -> dict[str, Tensor]:
    return {"concat": fixed(4, 3, 16, 16, seed=2), "augmentation": torch.tensor([0.0, 0.1, 0.2, 0.9])}


def said_to_a_prior() -> Conditioning:
    tokens = fixed(4, SMALL["length"], SMALL["text_width"], seed=1)
    return Conditioning(tokens=tokens, vector=fixed(4, SMALL["embedding"], seed=2))


def autoregressive() -> nn.Module:
    more = {"dimensions": 4, "buckets": 6, "levels": 4}
    return AutoregressiveTransformer(AutoregressiveConfig.model_validate(SMALL | more))


def call_autoregressive(network: nn.Module) -> Tensor:
    codes = torch.randint(6, (4, 3), generator=torch.Generator().manual_seed(0))
    return network(codes, torch.arange(4), said_to_a_prior())


def unclip() -> nn.Module:
    shape = {"channels": (8, 16), "blocks_per_level": 1, "attention": (False, True), "head_width": 8, "groups": 4}
    unet = AdmUNetConfig.model_validate(shape | {"context_width": 12, "vector": True})
    widths = {"embedding_width": 8, "context_width": 10, "time_width": unet.embedding_width, "text_channels": 12}
    projection = ImageProjectionConfig(**widths, tokens=2)
    return UnclipNetwork(UnclipNetworkConfig(unet=unet, projection=projection))


def call_unclip(network: nn.Module) -> Tensor:
    said = Conditioning(tokens=fixed(4, 6, 10, seed=1), mask=MASK, vector=fixed(4, 16, seed=2))
    return network(fixed(4, 3, 8, 8), times(), said)


def call_gan(network: nn.Module) -> Tensor:
    said = Conditioning(tokens=fixed(4, 6, SIZES["context_width"], seed=1), mask=MASK)
    return network(fixed(4, 6), said)


PARTS = {
    "unet": Part(unet, call_unet),
    "text_encoder": Part(clip_text, call_clip_text),
    "vae": Part(vae, call_vae),
    "t5": Part(t5, call_t5),
    "base": Part(lambda: base(TEXT).denoiser.network, call_base),
    "stage": Part(lambda: stage("first", TEXT, 0).denoiser.network, call_stage),
    "diffusion prior": Part(
        lambda: PriorTransformer(PriorConfig.model_validate(SMALL)),
        lambda network: network(fixed(4, SMALL["embedding"]), times(), said_to_a_prior()),
    ),
    "one-step prior": Part(
        lambda: PriorTransformer(PriorConfig.model_validate(SMALL | {"timed": False})),
        lambda network: network(fixed(4, SMALL["embedding"]), None, said_to_a_prior()),
    ),
    "autoregressive prior": Part(autoregressive, call_autoregressive),
    "unclip": Part(unclip, call_unclip),
    "upsampler": Part(lambda: upsampler().denoiser.network, call_upsampler),
    "gan": Part(generator_network, call_gan),
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
