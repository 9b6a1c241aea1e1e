"""The Efficient U-Net: the order of its blocks, its two readings of "skip", its ports, and the paper's sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.efficient_unet import SR_256, SR_1024, DBlock, EfficientUNet, EfficientUNetConfig, UBlock
from zoo.imagen.sizes import components, count, main, readings
from zoo.interface import Conditioning
from zoo.nn.resnet import ResidualBlock
from zoo.nn.text import TextAttention

SMALL: dict[str, Any] = {
    "channels": (16, 32, 48),
    "blocks_per_level": (1, 2, 3),
    "self_attention": (False, False, True),
    "text_attention": (False, False, True),
    "heads": 4,
    "context_width": 24,
    "text_channels": 16,
    "groups": 8,
}
NO_TEXT = {"context_width": None, "text_attention": (False, False, False)}
CONFIGS = {
    "as-256": SMALL,
    "as-1024": {**SMALL, "self_attention": (False, False, False)},
    "only-self-attention": {**SMALL, "text_attention": (False, False, False)},
    "self-attention-without-text": {**SMALL, **NO_TEXT},
    "only-convolutions": {**SMALL, **NO_TEXT, "self_attention": (False, False, False)},
    "text-and-self-apart": {**SMALL, "self_attention": (False, True, False)},
    "skip-concat": {**SMALL, "skip_scale": "concat"},
    "skip-none": {**SMALL, "skip_scale": "none"},
    "variance": {**SMALL, "out_channels": 6},
    "no-picture": {**SMALL, "in_channels": 3, "augmentation": False},
    "one-level": {
        **SMALL,
        "channels": (16,),
        "blocks_per_level": (2,),
        "self_attention": (True,),
        "text_attention": (True,),
    },
}


def inputs(
    config: EfficientUNetConfig, batch: int = 2, size: tuple[int, int] = (16, 24)
) -> tuple[Tensor, Tensor, Conditioning]:
    """Noisy images, times and all that the network asks for; the last three tokens of the first image are masked."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[0, -3:] = False
    text = config.context_width is not None
    conditioning = Conditioning(
        tokens=normal(batch, 7, config.context_width or 0) if text else None,
        mask=mask if text else None,
        concat=normal(batch, config.in_channels - 3, *size) if config.in_channels > 3 else None,
        augmentation=torch.linspace(0, 1, batch) if config.augmentation else None,
    )
    return normal(batch, 3, *size), torch.linspace(3.5, 800, batch), conditioning


def build(**changes: Any) -> EfficientUNet:
    torch.manual_seed(0)
    return EfficientUNet(EfficientUNetConfig(**{**SMALL, **changes})).eval()


@pytest.fixture
def small() -> EfficientUNet:
    return build()


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_gradients(name: str) -> None:
    network = build(**CONFIGS[name])
    x, t, c = inputs(network.config)
    out = network(x, t, c)
    assert out.shape == (2, network.config.out_channels, 16, 24)
    assert out.std() > 0.05
    out.square().mean().backward()
    still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias on all keys alike moves no softmax, so it can only be still where all keys share it.
    assert [key for key in still if not key.endswith(("to_k.bias", "text_k.bias"))] == []
    assert EfficientUNetConfig.model_validate_json(network.config.model_dump_json()) == network.config


def test_downsampling_first_and_upsampling_last(small: EfficientUNet) -> None:
    """Every residual block and attention of level i works at size / 2^(i + 1), on the way down and up."""
    seen: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen[module] = tuple(args[0].shape[2:])
        assert output.shape[2:] == args[0].shape[2:]

    levels = [*enumerate(small.down), *zip(range(2, -1, -1), small.up, strict=True)]
    for _, block in levels:
        assert isinstance(block, DBlock | UBlock)
        for layer in (*block.blocks, *([] if block.attention is None else [block.attention])):
            layer.register_forward_hook(note)
    with torch.no_grad():
        small(*inputs(small.config))
    for level, block in levels:
        found = [seen[layer] for layer in block.blocks]
        assert found == [(16 // 2 ** (level + 1), 24 // 2 ** (level + 1))] * SMALL["blocks_per_level"][level]
        assert (block.attention is not None) == (level == 2)
    assert len(seen) == 2 * (1 + 2 + 3) + 2
    residuals = [m for m in small.modules() if isinstance(m, ResidualBlock)]
    assert len(residuals) == 2 * (1 + 2 + 3)  # and there are none outside the levels


def test_skips_join_levels_of_one_size(small: EfficientUNet) -> None:
    skips: list[Tensor] = []
    joined: list[Tensor | None] = []
    for block in small.down:
        block.register_forward_hook(lambda _, __, output: skips.append(output))
    for block in small.up:
        block.register_forward_pre_hook(lambda _, args: joined.append(args[1]))
    with torch.no_grad():
        small(*inputs(small.config))
    assert joined[0] is None  # the coarsest: its skip would be its own input
    assert joined[1] is skips[1]
    assert joined[2] is skips[0]


def test_residual_reading_keeps_the_variance_of_independent_branches() -> None:
    """A block's sum is scaled, so a chain of blocks neither grows nor shrinks; unscaled, each adds its branch's."""
    torch.manual_seed(0)
    spread = {}
    for reading in ("residual", "none"):
        config = EfficientUNetConfig(**{**SMALL, "skip_scale": reading, "blocks_per_level": (1, 8, 1)})
        h = torch.randn(4, 32, 16, 16)
        for block in config.blocks(1, 32):
            assert isinstance(block, ResidualBlock)
            assert block.shortcut is None
            nn.init.normal_(block.conv2.weight, std=1.0)  # then measured, and set so that the branch has variance 1
            branch = block(h, torch.zeros(4, 64)) / block.scale - h
            nn.init.zeros_(block.conv2.bias)
            with torch.no_grad():
                block.conv2.weight /= (branch - branch.mean()).std()
                h = block(h, torch.zeros(4, 64))
        spread[reading] = h.var().item()
    assert spread["residual"] == pytest.approx(1, rel=0.15)
    assert spread["none"] == pytest.approx(9, rel=0.15)


def test_concat_reading_halves_the_variance_of_the_skip() -> None:
    joined = {}
    for reading in ("concat", "none", "residual"):
        block = UBlock(EfficientUNetConfig(**{**SMALL, "skip_scale": reading}), 1)
        first = block.blocks[0]
        assert isinstance(first, ResidualBlock)
        found: list[Tensor] = []
        first.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0]))
        source = torch.Generator().manual_seed(0)
        h, skip = torch.randn(4, 48, 16, 16, generator=source), torch.randn(4, 32, 16, 16, generator=source)
        block(h, skip, torch.zeros(4, 64), None, None)
        assert torch.equal(found[0][:, :48], h)
        joined[reading] = found[0][:, 48:]
        assert first.scale == (0.5**0.5 if reading == "residual" else 1)
    assert torch.equal(joined["none"], joined["residual"])
    assert (joined["concat"].var() / joined["none"].var()).item() == pytest.approx(0.5, rel=1e-5)


def test_readings_differ_with_the_same_weights() -> None:
    outputs = []
    for reading in ("residual", "concat", "none"):
        network = build(skip_scale=reading)
        with torch.no_grad():
            outputs.append(network(*inputs(network.config)))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (outputs[i] - outputs[j]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["as-256", "as-1024", "text-and-self-apart", "only-self-attention"])
def test_masked_text_changes_nothing(name: str) -> None:
    network = build(**CONFIGS[name])
    x, t, c = inputs(network.config)
    assert c.tokens is not None
    assert c.mask is not None
    tokens = c.tokens.clone()
    tokens[0, -3:] = 100.0
    with torch.no_grad():
        base = network(x, t, c)
        assert torch.equal(network(x, t, replace(c, tokens=tokens)), base)
        short = replace(c, tokens=c.tokens[:1, :-3], mask=None, concat=c.concat[:1], augmentation=c.augmentation[:1])  # type: ignore[index]
        torch.testing.assert_close(network(x[:1], t[:1], short), base[:1], atol=1e-5, rtol=0)
        tokens[0, 0] *= -1  # and what is not masked matters
        assert (network(x, t, replace(c, tokens=tokens)) - base)[0].abs().max() > 1e-4


def test_a_text_without_tokens_stays_finite() -> None:
    for name in ("as-256", "as-1024"):
        network = build(**CONFIGS[name])
        x, t, c = inputs(network.config)
        assert c.mask is not None
        with torch.no_grad():
            assert network(x, t, replace(c, mask=torch.zeros_like(c.mask))).isfinite().all()


def test_every_input_matters(small: EfficientUNet) -> None:
    x, t, c = inputs(small.config)
    assert c.tokens is not None
    assert c.augmentation is not None
    assert c.concat is not None
    changes = {
        "x": (x + 1, t, c),
        "t": (x, t + 40, c),
        "tokens": (x, t, replace(c, tokens=-c.tokens)),
        "concat": (x, t, replace(c, concat=c.concat + 1)),
        "augmentation": (x, t, replace(c, augmentation=(c.augmentation - 0.3).abs())),
    }
    with torch.no_grad():
        base = small(x, t, c)
        for name, changed in changes.items():
            assert (small(*changed) - base).abs().flatten(1).amax(1).min() > 1e-4, name


def test_text_is_seen_by_pixels_and_not_only_pooled() -> None:
    """The order of tokens leaves the pooled vector as it is; what one token says to the pixels does not."""
    for name in ("as-256", "as-1024"):
        network = build(**CONFIGS[name])
        assert network.pool is not None
        with torch.no_grad():
            network.pool.norm_out.weight.zero_()
            x, t, c = inputs(network.config)
            assert c.tokens is not None
            assert (network(x, t, replace(c, tokens=-c.tokens)) - network(x, t, c)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["as-256", "only-convolutions"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    network = build(**CONFIGS[name])
    x, t, c = inputs(network.config, batch=3)
    ports = ("tokens", "mask", "concat", "augmentation")
    with torch.no_grad():
        together = network(x, t, c)
        for i in range(3):
            one = slice(i, i + 1)
            own = {port: None if getattr(c, port) is None else getattr(c, port)[one] for port in ports}
            torch.testing.assert_close(together[one], network(x[one], t[one], Conditioning(**own)), atol=1e-5, rtol=0)


def test_half_precision(small: EfficientUNet) -> None:
    x, t, c = inputs(small.config, size=(24, 24))
    with torch.no_grad():
        full = small(x, t, c)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = small(x, t, c)
        half = small.to(torch.bfloat16)(x, t, c)
    assert half.dtype == autocast.dtype == torch.float32  # the precision of x
    for found in (autocast, half):
        assert 0 < (found - full).square().mean().sqrt() < 0.05 * full.std()


def test_dropout_acts_in_training_only() -> None:
    network = build(dropout=0.5)
    x, t, c = inputs(network.config)
    with torch.no_grad():
        assert torch.equal(network(x, t, c), network(x, t, c))
        network.train()
        assert not torch.equal(network(x, t, c), network(x, t, c))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (16, 32, 44)}, "multiples of groups"),
        ({"blocks_per_level": (1, 2)}, "2 entries"),
        ({"self_attention": (True,)}, "1 entries"),
        ({"heads": 5}, r"2 \* 48 wide, which heads=5 does not divide"),
        ({"context_width": None}, "needs a context_width"),
        ({"text_channels": 18}, "multiple of heads"),
        ({"skip_scale": "half"}, "'residual', 'concat' or 'none'"),
        ({"stride": 2}, "Extra inputs"),
    ],
)
def test_impossible_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EfficientUNetConfig.model_validate(SMALL | change)


def test_wrong_inputs_are_named(small: EfficientUNet) -> None:
    x, t, c = inputs(small.config)
    assert c.tokens is not None
    with pytest.raises(ValueError, match=r"\[2, 3, 16, 20\].*multiples of 8"):
        small(x[..., :20], t, c)
    with pytest.raises(ValueError, match=r"3 channels and Conditioning.concat 0; this U-Net needs 6"):
        small(x, t, replace(c, concat=None))
    with pytest.raises(ValueError, match="they differ; enlarge the low-resolution picture"):
        small(x, t, replace(c, concat=torch.zeros(2, 3, 4, 6)))
    with pytest.raises(ValueError, match=r"times have shape \[1\]"):
        small(x, t[:1], c)
    with pytest.raises(ValueError, match="tokens is missing"):
        small(x, t, replace(c, tokens=None))
    with pytest.raises(ValueError, match=r"needs \[2, length, 24\]"):
        small(x, t, replace(c, tokens=c.tokens[..., :20]))
    with pytest.raises(ValueError, match="mask has shape"):
        small(x, t, replace(c, mask=torch.ones(2, 5, dtype=torch.bool)))
    with pytest.raises(ValueError, match="vector has shape"):
        small(x, t, replace(c, vector=torch.zeros(2, 20)))
    with pytest.raises(ValueError, match=r"augmentation has shape None; this U-Net was built for \(2,\)"):
        small(x, t, replace(c, augmentation=None))
    with pytest.raises(ValueError, match="guidance has shape"):
        small(x, t, replace(c, guidance=torch.ones(2)))


def test_text_is_refused_by_a_network_without() -> None:
    network = build(**NO_TEXT)
    x, t, c = inputs(network.config)
    with pytest.raises(ValueError, match="built without text"):
        network(x, t, replace(c, tokens=torch.zeros(2, 7, 24)))
    with pytest.raises(ValueError, match="there are none"):
        network(x, t, replace(c, mask=torch.ones(2, 7)))


def test_sizes_of_the_paper() -> None:
    """The paper rounds to 600M and 400M and leaves details open; `python -m zoo.imagen.sizes` itemises ours."""
    counts = {}
    for name, config in (("256", SR_256), ("1024", SR_1024)):
        with torch.device("meta"):
            network = EfficientUNet(config)
        assert network.down[3].blocks[7].conv2.weight.shape == (1024, 1024, 3, 3)
        assert network.down[3].attention.to_q.weight.shape == (2048, 1024)  # hidden_size = 2 x channels
        assert [block.attention is None for block in network.down] == [True, True, True, False]
        assert [len(block.blocks) for block in network.up] == [8, 8, 4, 2]
        counts[name] = sum(p.numel() for p in network.parameters())
    self_attention = 2 * 2 * (1024 * 2048 + 2048)  # keys and values, on the way down and up
    assert counts["256"] - counts["1024"] == self_attention
    assert counts == {"256": 475_958_403, "1024": 467_561_603}


def test_sizes_are_itemised(small: EfficientUNet, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(components(small).values()) == count(small)
    shortcut, skips, attention = readings(small).values()
    assert shortcut == 2 * 16 * 17 - 16 * 17 + 4 * 32 * 33 - 32 * 33 + 6 * 48 * 49  # but two blocks, which have theirs
    joined = {c: 2 * c + 9 * c * c + (2 * c + 1) * c for c in (32, 48)}  # norm, convolution, shortcut for c inputs more
    assert skips == joined[32] + 2 * joined[48]
    assert attention == 2 * 2 * count(small.down[2].attention)
    main()
    printed = capsys.readouterr().out
    assert "476.0M parameters; the paper says 600M" in printed
    assert "467.6M parameters; the paper says 400M" in printed


def test_attention_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="look at nothing"):
        TextAttention(16, heads=2, head_width=8, groups=8, eps=1e-5, self_attention=False)
    attention = TextAttention(16, heads=2, head_width=8, groups=8, eps=1e-5, context_width=4)
    with pytest.raises(ValueError, match="pass tokens"):
        attention(torch.zeros(1, 16, 2, 2))


def test_exported_lazily() -> None:
    import zoo.imagen

    assert zoo.imagen.EfficientUNet is EfficientUNet
    assert zoo.imagen.EfficientUNetConfig is EfficientUNetConfig
