"""The ADM U-Net's own promises; `tests/imagen` and `tests/dalle2` hold it against published networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.adm_size import count_parameters
from zoo.interface import Conditioning

PLAIN = AdmUNetConfig(channels=(8, 16), blocks_per_level=1, attention=(False, False), groups=4)
FULL = AdmUNetConfig(
    in_channels=6,
    out_channels=6,
    channels=(8, 16, 24),
    blocks_per_level=(1, 2, 1),
    attention=(False, True, True),
    head_width=4,
    context_width=12,
    text_channels=8,
    text_norm="layer",
    pool_heads=3,
    vector=True,
    augmentation=True,
    time_width=20,
    groups=4,
)


def inputs(
    config: AdmUNetConfig, batch: int = 2, size: int = 8, length: int = 5
) -> tuple[Tensor, Tensor, Conditioning]:
    """Noisy images, times and all that the network asks for; the last two tokens of the first text are masked."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, -2:] = False
    text = config.context_width
    conditioning = Conditioning(
        tokens=torch.randn(batch, length, text, generator=generator) if text else None,
        mask=mask if text else None,
        concat=torch.randn(batch, 3, size, size, generator=generator) if config.in_channels == 6 else None,
        vector=torch.randn(batch, config.embedding_width, generator=generator) if config.vector else None,
        augmentation=torch.linspace(0.1, 0.8, batch) if config.augmentation else None,
    )
    x = torch.randn(batch, 3, size, size, generator=generator)
    return x, torch.linspace(7.0, 999.0, batch), conditioning


@pytest.fixture
def full(shake) -> AdmUNet:
    torch.manual_seed(0)
    return shake(AdmUNet(FULL))


def difference(a: Tensor, b: Tensor) -> list[float]:
    """The largest difference of each image."""
    return (a - b).abs().flatten(1).amax(1).tolist()


def test_fresh_networks_say_nothing_and_pass_their_input_on() -> None:
    torch.manual_seed(0)
    network = AdmUNet(FULL).eval()
    x, t, c = inputs(FULL)
    with torch.no_grad():
        assert torch.equal(network(x, t, c), torch.zeros(2, 6, 8, 8))
        level, h = network.down[1], torch.randn(2, 16, 4, 4)
        assert torch.equal(level.attentions[0](h, torch.randn(2, 5, 8)), h)
        assert torch.equal(level.blocks[1](h, torch.randn(2, 20)), h)


@pytest.mark.parametrize("config", [PLAIN, FULL, FULL.model_copy(update={"text_norm": "group", "text_channels": None})])
def test_gradient_reaches_every_parameter(config: AdmUNetConfig, shake) -> None:
    torch.manual_seed(0)
    network = shake(AdmUNet(config)).train()
    network(*inputs(config)).pow(2).mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A key's bias moves all scores of a query alike where all its keys have that bias: only for pooling's tokens.
    assert [name for name in silent if name != "pool.to_k.bias"] == []


@pytest.mark.parametrize("port", ["tokens", "mask", "concat", "vector", "augmentation"])
def test_every_port_matters(port: str, full: AdmUNet) -> None:
    x, t, c = inputs(FULL)
    given = getattr(c, port)
    other = ~given if given.dtype == torch.bool else given.flip(0)
    with torch.no_grad():
        assert min(difference(full(x, t, c), full(x, t, replace(c, **{port: other})))) > 1e-3


def test_time_matters_between_its_steps(full: AdmUNet) -> None:
    x, _, c = inputs(FULL)
    with torch.no_grad():
        whole, half = (full(x, torch.full((2,), t), c) for t in (3.0, 3.5))
    assert min(difference(whole, half)) > 1e-3


def test_masked_tokens_have_no_influence(full: AdmUNet) -> None:
    x, t, c = inputs(FULL)
    assert c.tokens is not None
    assert c.mask is not None
    other = torch.where(c.mask[..., None], c.tokens, torch.randn(c.tokens.shape))
    shorter = Conditioning(c.tokens[:1, :3], None, c.vector[:1], c.concat[:1], c.augmentation[:1])
    with torch.no_grad():
        found = full(x, t, c)
        torch.testing.assert_close(full(x, t, replace(c, tokens=other)), found, atol=1e-6, rtol=0)
        torch.testing.assert_close(full(x[:1], t[:1], shorter), found[:1], atol=1e-5, rtol=0)


def test_without_any_visible_token_only_the_image_is_seen(full: AdmUNet) -> None:
    x, t, c = inputs(FULL)
    assert c.tokens is not None
    nothing = replace(c, mask=torch.zeros(2, 5, dtype=torch.bool))
    with torch.no_grad():
        found = full(x, t, nothing)
        assert found.isfinite().all()
        torch.testing.assert_close(full(x, t, replace(nothing, tokens=c.tokens.flip(0))), found, atol=1e-6, rtol=0)
        assert min(difference(full(x.flip(0), t, nothing), found)) > 1e-3


def test_a_text_may_be_as_long_as_the_image_has_pixels(full: AdmUNet) -> None:
    x, t, c = inputs(FULL, length=16)  # 4x4 pixels where attention begins
    with torch.no_grad():
        assert full(x, t, c).isfinite().all()


def test_noise_levels_are_steps_of_a_thousand(full: AdmUNet) -> None:
    """With the time's own weights, a level of 0.25 is embedded as the time 250."""
    x, t, c = inputs(FULL)
    assert full.augmentation is not None
    full.augmentation.load_state_dict(full.time.state_dict())
    t = torch.tensor([250.0, 500.0])
    with torch.no_grad():
        found = full(x, t, replace(c, augmentation=torch.tensor([0.75, 0.1])))
        swapped = full(x, torch.tensor([750.0, 100.0]), replace(c, augmentation=torch.tensor([0.25, 0.5])))
    torch.testing.assert_close(found, swapped, atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_its_batch(full: AdmUNet) -> None:
    x, t, c = inputs(FULL, batch=3)
    ports = {name: getattr(c, name) for name in ("tokens", "mask", "concat", "vector", "augmentation")}
    with torch.no_grad():
        together = full(x, t, c)
        for i in range(3):
            one = slice(i, i + 1)
            alone = full(x[one], t[one], Conditioning(**{name: port[one] for name, port in ports.items()}))
            torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)


def test_half_precision_answers_in_the_precision_of_the_input(full: AdmUNet) -> None:
    x, t, c = inputs(FULL)
    with torch.no_grad():
        expected = full(x, t, c)
        found = full.bfloat16()(x, t, c)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.std()


def test_dropout_acts_in_training_only(shake) -> None:
    torch.manual_seed(0)
    network = shake(AdmUNet(PLAIN.model_copy(update={"dropout": 0.5})))
    x, t, c = inputs(PLAIN)
    with torch.no_grad():
        assert torch.equal(network(x, t, c), network(x, t, c))
        network.train()
        assert not torch.equal(network(x, t, c), network(x, t, c))


@torch.no_grad()
def test_patches_are_folded_into_channels(shake) -> None:
    folded = FULL.model_copy(update={"patch": 2})
    torch.manual_seed(0)
    network = shake(AdmUNet(folded)).eval()
    plain = AdmUNet(FULL.model_copy(update={"in_channels": 24, "out_channels": 24})).eval()
    plain.load_state_dict(network.state_dict())
    x, t, c = inputs(FULL, size=16)
    assert c.concat is not None
    # Channel by channel, a square's pixels in reading order: those of x come before those of `concat`.
    fold = nn.PixelUnshuffle(2)
    expected = nn.PixelShuffle(2)(plain(fold(x), t, replace(c, concat=fold(c.concat))))
    assert torch.equal(network(x, t, c), expected)
    with pytest.raises(ValueError, match=r"\[2, 3, 12, 16\].*multiples of 8"):
        network(x[:, :, :12], t, c)


@pytest.mark.parametrize("config", [PLAIN, FULL])
def test_components_are_all_parameters(config: AdmUNetConfig) -> None:
    counts = count_parameters(config)
    assert sum(counts.values()) == sum(p.numel() for p in AdmUNet(config).parameters())
    assert next(iter(counts)) == "stem"
    assert counts["head"] == 2 * 8 + 9 * 8 * config.out_channels + config.out_channels
    if config is FULL:
        assert counts["text projection"] == 12 * 8 + 8
        assert counts["down 1 text attention"] == 2 * (2 * 8 + 2 * (8 * 16 + 16))
        assert counts["middle self-attention"] == 2 * 24 + 4 * (24 * 24 + 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (8, 18, 24)}, "multiples of groups"),
        ({"attention": (True,)}, "1 entries"),
        ({"blocks_per_level": (1, 1)}, "2 entries"),
        ({"head_width": 5}, "divide into heads"),
        ({"pool_heads": 5}, "divide into pool_heads"),
        ({"context_width": None}, "set context_width"),
        ({"attention": (False,) * 3}, "no level has attention"),
        ({"attention": (False,) * 3, "text_channels": None, "text_norm": None, "pool_heads": None}, "reaches nothing"),
        ({"text_norm": "group", "text_channels": 10}, "multiple of groups=4"),
        ({"patch": 0}, "greater than or equal to 1"),
        ({"an_option_of_tomorrow": 3}, "Extra inputs"),
    ],
)
def test_impossible_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdmUNetConfig.model_validate(FULL.model_dump() | change)


def test_wrong_inputs_are_named(full: AdmUNet) -> None:
    x, t, c = inputs(FULL)
    assert c.tokens is not None
    with pytest.raises(ValueError, match=r"\[2, 3, 6, 8\].*multiples of 4"):
        full(x[:, :, :6], t, c)
    with pytest.raises(ValueError, match=r"2 channels and Conditioning.concat 3.*needs 6"):
        full(x[:, :2], t, c)
    with pytest.raises(ValueError, match=r"concat 0.*needs 6"):
        full(x, t, replace(c, concat=None))
    with pytest.raises(ValueError, match="they differ"):
        full(x, t, replace(c, concat=torch.zeros(2, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"times have shape \[1\]"):
        full(x, t[:1], c)
    with pytest.raises(ValueError, match="tokens is missing"):
        full(x, t, replace(c, tokens=None))
    with pytest.raises(ValueError, match=r"needs \[2, length, 12\]"):
        full(x, t, replace(c, tokens=c.tokens[..., :10]))
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\], not \[2, 5\]"):
        full(x, t, replace(c, mask=torch.ones(2, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"vector has shape None; this U-Net was built for \(2, 20\)"):
        full(x, t, replace(c, vector=None))
    with pytest.raises(ValueError, match=r"augmentation has shape \(1,\)"):
        full(x, t, replace(c, augmentation=torch.zeros(1)))
    with pytest.raises(ValueError, match="guidance has shape"):
        full(x, t, replace(c, guidance=torch.ones(2)))


def test_a_network_without_text_says_so() -> None:
    network = AdmUNet(PLAIN)
    x, t, c = inputs(PLAIN)
    with pytest.raises(ValueError, match="built without text"):
        network(x, t, replace(c, tokens=torch.zeros(2, 5, 12)))
    with pytest.raises(ValueError, match="there are none"):
        network(x, t, replace(c, mask=torch.ones(2, 5)))
