"""Prefixes: no change at the start, trained, folded, stored, beside LoRA, on the right half of a guided batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.adapt.active import use
from zoo.adapt.lora import LoRA
from zoo.adapt.lora import inject as inject_lora
from zoo.adapt.prefix import Prefix, inject, reading
from zoo.nn.attention import Attention, attend
from zoo.nn.text import TextAttention, TextNorm

Build = Callable[[object], nn.Module]


def train(prefix: Prefix, call: Callable[[], Tensor], steps: int = 20) -> list[float]:
    optimiser, losses = torch.optim.Adam(prefix.parameters(), lr=3e-2), []
    for _ in range(steps):
        made = call()
        wanted = torch.randn(made.shape, generator=torch.Generator().manual_seed(9))
        loss = (made - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("hidden", [None, 6])
def test_the_life_of_a_prefix(hidden: int | None, parts, build: Build, tmp_path: Path) -> None:
    part = parts["unet"]
    module = build(part)
    before, plain = {name: t.clone() for name, t in module.state_dict().items()}, part.call(module)
    word = torch.randn(3, 12)  # what the text encoder made of the class word
    prefix = Prefix.build(module, features=word, hidden=hidden)
    crossing = [name for name, child in module.named_modules() if name.endswith("cross_attention")]
    assert list(prefix.layers) == crossing
    layer, attention = prefix.layers[crossing[0]], module.get_submodule(crossing[0])
    assert torch.equal(layer.final().detach(), torch.stack([attention.to_k(word), attention.to_v(word)]))

    injection, trained = learned(part, module, prefix, plain)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert all(layer.gate.all() for layer in prefix.layers.values())
    assert torch.equal(part.call(module), plain), "it acts only where it is said"

    prefix.save(tmp_path / "mine.safetensors", "unet")
    prefix.finish()
    assert not any("mlp" in name for name, _ in prefix.named_parameters())
    with use({"mine": 1.0}):
        assert torch.allclose(part.call(module), trained, atol=1e-6)
    fresh = build(part)
    name, loaded = Prefix.load(tmp_path / "mine.safetensors")
    assert (name, loaded.on_null) == ("unet", False)
    inject(fresh, loaded, "theirs")
    with use({"theirs": 1.0}):
        assert torch.allclose(part.call(fresh), trained, atol=1e-6)
    injection.remove()
    assert not any(child.beside for child in module.modules() if isinstance(child, Attention))


def learned(part, module, prefix, plain):
    """The prefix put into a module and trained there: what takes it out again, and what the module gives with it."""
    injection = inject(module, prefix, "mine")
    with use({"mine": 1.0}):
        assert torch.equal(part.call(module), plain), "no change at the start"
        losses = train(prefix, lambda: part.call(module))
        trained = part.call(module)
    assert losses[-1] < losses[0]
    return injection, trained


def shaken(prefix: Prefix) -> Prefix:
    for layer in prefix.requires_grad_(False).layers.values():
        layer.gate.copy_(torch.linspace(-1, 1, len(layer.gate)))
        layer.pairs.mul_(30)
    return prefix


def test_a_softmax_of_its_own_and_a_gate_per_head() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=2, head_width=4, context_width=6).requires_grad_(False)
    module = nn.ModuleDict({"cross_attention": attention})
    prefix = shaken(Prefix.build(module, length=3))
    inject(module, prefix, "mine")
    x, context = torch.randn(2, 5, 8), torch.randn(2, 7, 6)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (2, 4)).transpose(-2, -3)

    q, k, v = heads(attention.to_q(x)), heads(attention.to_k(context)), heads(attention.to_v(context))
    keys, values = heads(prefix.layers["cross_attention"].pairs)
    more = (q @ keys.transpose(-1, -2) / 2).softmax(-1) @ values
    seen = attend(q, k, v) + 0.5 * torch.tensor([-1.0, 1.0]).tanh().view(2, 1, 1) * more
    with use({"mine": 0.5}):
        made = attention(x, context)
    assert torch.allclose(made, attention.to_out(seen.transpose(1, 2).flatten(2)), atol=1e-6)


@pytest.mark.parametrize("on_null", [False, True])
def test_the_unconditional_half_is_left_alone(on_null: bool, parts, build: Build) -> None:
    """A batch of four rows that is two images and what they are led away from."""
    part = parts["unet"]
    module = build(part)
    plain = part.call(module)
    inject(module, shaken(Prefix.build(module, on_null=on_null)), "mine")
    with use({"mine": 1.0}):
        everywhere = part.call(module)
    assert not torch.allclose(everywhere[2:], plain[2:], atol=1e-3)
    for strength in (1.0, torch.ones(2)):
        with use({"mine": strength}, images=2):
            guided = part.call(module)
        assert torch.allclose(guided[:2], everywhere[:2], atol=1e-5)
        assert torch.allclose(guided[2:], everywhere[2:] if on_null else plain[2:], atol=1e-5)
    with use({"mine": torch.tensor([0.0, 1.0])}):
        guided = part.call(module)
    assert torch.allclose(guided[0], plain[0], atol=1e-5)
    assert torch.allclose(guided[1], everywhere[1], atol=1e-5)


def test_beside_lora(parts, build: Build) -> None:
    part = parts["unet"]
    module = build(part)
    lora = LoRA.build(module, ["*cross_attention.to_[qo]*"]).requires_grad_(False)
    for layer in lora.layers.values():
        nn.init.normal_(layer.up)
    inject_lora(module, lora, "low")
    inject(module, shaken(Prefix.build(module)), "mine")
    made = {}
    for names in (("low",), ("mine",), ("low", "mine")):
        with use(dict.fromkeys(names, 1.0)):
            made[names] = part.call(module)
    together = made["low", "mine"]
    assert min((together - other).abs().max() for names, other in made.items() if len(names) == 1) > 1e-2


def test_what_does_not_fit(parts, build: Build, tmp_path: Path) -> None:
    module = build(parts["unet"])
    with pytest.raises(ValueError, match=r"'\*query' matches none of the \d+ attentions of UNet, such as: down"):
        Prefix.build(module, ["*query"])
    with pytest.raises(ValueError, match=r"features have shape \[3, 9\].*projects \[length, 12\]"):
        Prefix.build(module, features=torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"features have shape \[3, 12\].*projects \[length, \d+\]"):
        Prefix.build(module, ["*.attention"], features=torch.zeros(3, 12))
    prefix = Prefix.build(module)
    inject(module, prefix, "mine")
    with pytest.raises(ValueError, match="cross_attention has a prefix called 'mine' already"):
        inject(module, prefix, "mine")
    with pytest.raises(ValueError, match="does not fit VAE: .*cross_attention is no attention"):
        inject(build(parts["vae"]), prefix, "mine")
    other = nn.ModuleDict({name.replace(".", "_"): nn.Identity() for name in prefix.layers})
    with pytest.raises(ValueError, match="is no attention"):
        inject(other, prefix, "mine")

    path = tmp_path / "mine.safetensors"
    prefix.save(path, "unet")
    said = {"format": "zoo", "kind": "prefix", "part": "unet"}
    stored = load_file(path)
    gate = next(key for key in stored if key.endswith(".gate"))
    save_file({key: tensor for key, tensor in stored.items() if key != gate}, path, said)
    with pytest.raises(ValueError, match=f"no whole prefix: .*{gate}"):
        Prefix.load(path)
    save_file(stored | {gate: stored[gate] * float("nan")}, path, said)
    with pytest.raises(ValueError, match=f"not finite: {gate}"):
        Prefix.load(path)
    save_file(stored, path)
    with pytest.raises(ValueError, match="no prefix written by zoo"):
        Prefix.load(path)


READING = {
    "unet": {"down.1.transformers.0.blocks.0.cross_attention", "middle.transformer.blocks.0.cross_attention"},
    "base": {"down.1.attentions.0", "middle.attention"},
    "stage": {"down.1.attention", "up.0.attention"},
    "unclip": {"unet.down.1.attentions.0", "unet.middle.attention"},
}


@pytest.mark.parametrize("name", READING)
def test_without_patterns_it_is_beside_what_looks_at_text_in_all_families(
    name: str, parts, build: Build, tmp_path: Path
) -> None:
    part = parts[name]
    module = build(part)
    plain, prefix = part.call(module), Prefix.build(module, length=3)
    assert READING[name] <= set(reading(module)) == set(prefix.layers)
    injection, trained = learned(part, module, prefix, plain)
    assert torch.equal(part.call(module), plain)
    prefix.save(tmp_path / "mine.safetensors", "part")
    injection.remove()
    fresh = build(part)
    inject(fresh, Prefix.load(tmp_path / "mine.safetensors")[1], "theirs")
    with use({"theirs": 1.0}):
        assert torch.equal(part.call(fresh), trained)


def test_without_patterns_something_has_to_look_at_text(parts, build: Build) -> None:
    for name in ("vae", "upsampler", "diffusion prior"):
        module = build(parts[name])
        assert reading(module) == []
        with pytest.raises(ValueError, match=r"'\*cross_attention' matches none"):
            Prefix.build(module)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_it_begins_with_what_an_attention_makes_of_text(norm: TextNorm) -> None:
    torch.manual_seed(0)
    attention = TextAttention(8, heads=2, head_width=4, groups=2, eps=1e-5, context_width=6, text_norm=norm)
    text = torch.randn(3, 6)
    prefix = Prefix.build(nn.ModuleDict({"attention": attention}), ["attention"], length=3, features=text)
    with torch.no_grad():
        normed = attention._normed(text[None])
        expected = torch.cat([attention.text_k(normed), attention.text_v(normed)])  # type: ignore[misc]
    assert torch.equal(prefix.layers["attention"].pairs, expected)
