"""Low-rank adapters on every part: no change at the start, trained, stored, merged, and the same as PEFT's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from zoo.adapt import lora as lora_module
from zoo.adapt.active import use
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA, LowRank, Target, adaptable, inject
from zoo.adapt.report import load

Build = Callable[[object], nn.Module]


def tree(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shaken(lora: LoRA, seed: int = 5) -> LoRA:
    """A LoRA that changes something, as after training."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora.layers.values():
            layer.up.copy_(0.1 * torch.randn(layer.up.shape, generator=source))
    return lora


def train(parameters: list[Tensor], call: Callable[[], Tensor], steps: int, lr: float = 1e-2) -> list[float]:
    """Towards fixed noise; the loss of every step."""
    optimiser = torch.optim.Adam(parameters, lr=lr)
    losses = []
    for _ in range(steps):
        made = call()
        wanted = torch.randn(made.shape, generator=torch.Generator().manual_seed(9))
        loss = (made - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_the_life_of_an_adapter(part, build: Build, tmp_path: Path) -> None:
    """Inject, train, save, load into a fresh module, merge, unmerge."""
    module = build(part)
    before, plain = tree(module), part.call(module)
    lora = LoRA.build(module, part.targets)
    injection = inject(module, lora, "mine")
    assert lora.layers.keys() == adaptable(module).keys()
    assert equal(tree(module), before), "names and parameters of the base"
    with use({"mine": 1.0}):
        assert torch.equal(part.call(module), plain), "no change at the start"

        losses = train(list(lora.parameters()), lambda: part.call(module), 20)
        trained = part.call(module)
    assert losses[-1] < 0.9 * losses[0]
    assert equal(tree(module), before), "only the adapter was trained"
    assert all(layer.up.any() for layer in lora.layers.values()), "every module learned something"
    assert torch.equal(part.call(module), plain), "it acts only where it is said"

    write(tmp_path / "mine.safetensors", {"part": lora})
    fresh = build(part)
    loras, report = load(tmp_path / "mine.safetensors", {"part": fresh})
    assert report.format == "zoo"
    assert report.fits
    inject(fresh, loras["part"], "theirs")
    with use({"theirs": 1.0}):
        assert torch.equal(part.call(fresh), trained)

    with use({"mine": 0.7}):
        weaker = part.call(module)
    injection.merge(0.7)
    assert injection.merged == 0.7
    assert not any(child._forward_hooks for child in module.modules()), "nothing is left on the path"
    assert (part.call(module) - weaker).abs().max() <= 1e-5
    assert (weaker - plain).abs().max() > 1e-2
    injection.unmerge()
    assert equal(tree(module), before), "to the bit"
    with use({"mine": 1.0}):
        assert torch.equal(part.call(module), trained)
    injection.remove()
    assert not any(child._forward_hooks for child in module.modules())


def peft_twin(module: nn.Module, lora: LoRA) -> nn.Module:
    """The module with PEFT's layers of the same weights injected."""
    some = next(iter(lora.layers.values()))
    config = LoraConfig(r=some.rank, lora_alpha=int(some.alpha), target_modules=list(lora.layers))
    twin = inject_adapter_in_model(config, module)
    with torch.no_grad():
        for name, layer in lora.layers.items():
            theirs = twin.get_submodule(name)
            assert isinstance(theirs, LoraLayer)
            theirs.lora_A["default"].weight.copy_(layer.down)
            theirs.lora_B["default"].weight.copy_(layer.up)
    return twin


def test_the_same_as_peft(part, build: Build) -> None:
    module = build(part)
    lora = shaken(LoRA.build(module, [Target(pattern=pattern, rank=3, alpha=6) for pattern in part.targets]))
    twin = peft_twin(build(part), lora)
    injection = inject(module, lora, "mine")
    with use({"mine": 1.0}):
        assert (part.call(module) - part.call(twin)).abs().max() <= 1e-5
    injection.merge()
    for name in lora.layers:
        theirs = twin.get_submodule(name)
        theirs.merge()
        assert (theirs.get_base_layer().weight - module.get_submodule(name).weight).abs().max() <= 1e-6


def test_training_as_in_peft(part, build: Build) -> None:
    """The same start, the same data: the same loss at each of 50 steps."""
    module = build(part)
    lora = LoRA.build(module, part.targets)
    twin = peft_twin(build(part), lora)
    inject(module, lora, "mine")
    with use({"mine": 1.0}):
        ours = train(list(lora.parameters()), lambda: part.call(module), 50, lr=2e-3)
    theirs = train([p for p in twin.parameters() if p.requires_grad], lambda: part.call(twin), 50, lr=2e-3)
    assert ours[-1] < ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1e-3


def test_rank_and_alpha_by_pattern(parts, build: Build) -> None:
    module = build(parts["unet"])
    targets = [
        Target(pattern=r"re:.*cross_attention\.to_[kv]", rank=2, alpha=1),
        Target(pattern="*.to_?", rank=8),
        "stem",
    ]
    layers = LoRA.build(module, targets).layers
    assert {(layer.rank, layer.scale) for name, layer in layers.items() if "cross" in name and "to_q" not in name} == {
        (2, 0.5)
    }
    assert {(layer.rank, layer.scale) for name, layer in layers.items() if ".attention.to_" in name} == {(8, 1.0)}
    assert (layers["stem"].rank, layers["stem"].down.shape, layers["stem"].up.shape) == (4, (4, 4, 3, 3), (8, 4, 1, 1))
    assert not any("to_out" in name or "conv" in name for name in layers)
    with pytest.raises(
        ValueError, match=r"'\*\.query' matches none of the \d+ linear layers .* of UNet, such as: stem"
    ):
        LoRA.build(module, ["*.to_q", "*.query"])


def test_seeds_decide_the_start(parts, build: Build) -> None:
    module = build(parts["text_encoder"])
    first, again, other = (LoRA.build(module, ["*"], seed=seed).state_dict() for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_unheard_modules_are_not_adapted() -> None:
    """A weight that is used without a call of its module, and convolutions in groups or with other padding."""
    module = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            "line": nn.Conv1d(4, 4, 3),
            "heard": nn.Linear(4, 4),
        }
    )
    assert list(adaptable(module)) == ["heard"]


def test_strides_and_dilations_are_those_of_the_base() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2)).requires_grad_(False)
    injection = inject(module, shaken(LoRA.build(module, ["0"])), "mine")
    x = torch.randn(2, 3, 9, 9)
    with use({"mine": 1.0}):
        beside = module(x)
    injection.merge()
    assert (module(x) - beside).abs().max() <= 1e-6


def test_several_add_up_and_come_off_in_order(parts, build: Build) -> None:
    part = parts["text_encoder"]
    module = build(part)
    before, plain = tree(module), part.call(module)
    loras = [shaken(LoRA.build(module, ["*_proj"], seed=seed), seed) for seed in (1, 2)]
    first, second = (inject(module, lora, name) for lora, name in zip(loras, ("first", "second"), strict=True))
    layer = adaptable(module)["text_model.encoder.layers.0.self_attn.q_proj"]
    x = torch.randn(1, 3, 16)
    with use({"first": 1.0, "second": -0.5}):
        both, sum_ = part.call(module), layer(x)
    parts_of_it = [lora.layers["text_model.encoder.layers.0.self_attn.q_proj"](x, layer) for lora in loras]
    assert torch.allclose(sum_, layer(x) + parts_of_it[0] - 0.5 * parts_of_it[1], atol=1e-6)
    assert not torch.allclose(both, plain, atol=1e-2)
    first.merge(1.0)
    second.merge(-0.5)
    assert torch.allclose(part.call(module), both, atol=1e-5)
    with pytest.raises(ValueError, match="merged on top of 'first': second"):
        first.unmerge()
    with pytest.raises(ValueError, match="merged already, with strength 1"):
        first.merge()
    with pytest.raises(ValueError, match="unmerge it before"):
        second.remove()
    second.unmerge()
    first.unmerge()
    assert equal(tree(module), before)
    with pytest.raises(ValueError, match="not merged"):
        first.unmerge()


def test_a_lora_that_does_not_fit_is_not_injected(parts, build: Build) -> None:
    module = build(parts["text_encoder"])
    lora = LoRA.build(module, ["*q_proj"])
    inject(module, lora, "mine")
    with pytest.raises(ValueError, match="layers.0.self_attn.q_proj has an adapter called 'mine' already"):
        inject(module, lora, "mine")
    wrong = LoRA(
        {
            "text_projection": LowRank(torch.zeros(2, 15), torch.zeros(8, 2), 2),
            "nowhere": LowRank(*[torch.zeros(1, 1)] * 2, 1),
        }
    )
    with pytest.raises(ValueError, match=r"text_projection has weight \[8, 16\], .*\[2, 15\].*; nowhere is no linear"):
        inject(module, wrong, "other")
    assert sum(len(child._forward_hooks) for child in module.modules()) == len(lora.layers)


def test_half_precision(parts, build: Build) -> None:
    """Adapters stay float32 beside a half-precision network, and merging is done in float32."""
    part = parts["text_encoder"]
    module = build(part).bfloat16()
    before = tree(module)
    lora = shaken(LoRA.build(module, ["*"]))
    injection = inject(module, lora, "mine")
    with use({"mine": 1.0}):
        beside = part.call(module)
    assert beside.dtype == torch.bfloat16
    injection.merge(0.7)
    for name, layer in lora.layers.items():
        assert layer.up.dtype == torch.float32
        base = before[f"{name}.weight"]
        added = (base.float() + 0.7 * layer.change().view_as(base)).bfloat16()
        assert torch.equal(module.get_submodule(name).weight, added), "rounded once, at the end"
    injection.unmerge()
    assert equal(tree(module), before)


def test_merging_that_fails_halfway_leaves_all_as_it_was(parts, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    part = parts["text_encoder"]
    module = build(part)
    before = tree(module)
    first, second = (inject(module, shaken(LoRA.build(module, ["*"], seed=s), s), str(s)) for s in (0, 1))
    first.merge()
    with_first = tree(module)
    done: list[nn.Module] = []
    add = lora_module._add

    def failing(base: nn.Linear, layer: LowRank, strength: float) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        add(base, layer, strength)
        done.append(base)

    monkeypatch.setattr(lora_module, "_add", failing)
    with pytest.raises(KeyboardInterrupt):
        second.merge()
    monkeypatch.undo()
    assert len(done) == 2
    assert equal(tree(module), with_first)
    with use({"1": 1.0}):
        beside = part.call(module)
    second.merge()
    assert torch.allclose(part.call(module), beside, atol=1e-5), "it acted from beside, and can be merged"
    second.unmerge()
    first.unmerge()
    assert equal(tree(module), before)
    for strength in (float("nan"), "much"):
        with pytest.raises(ValueError, match="a strength is a finite number"):
            first.merge(strength)


def test_a_lora_between_two_networks_is_what_was_merged_into_one(part, build: Build) -> None:
    before, after = build(part), build(part)
    lora = shaken(LoRA.build(before, [Target(pattern=target, rank=3) for target in part.targets]))
    inject(after, lora, "mine").merge()
    found = LoRA.between(before, after, rank=3)
    assert found.layers.keys() == lora.layers.keys()
    for name, layer in found.layers.items():
        torch.testing.assert_close(layer.change(), lora.layers[name].change(), rtol=0, atol=1e-5)
    coarse = LoRA.between(before, after, rank=1)
    assert all(layer.rank == 1 for layer in coarse.layers.values())


def test_a_lora_between_networks_needs_a_difference_in_weights_alone() -> None:
    one = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="the same weights"):
        LoRA.between(one, one, rank=2)
    with pytest.raises(ValueError, match="lacks, or has in another shape: 0, 1"):
        LoRA.between(one, nn.Sequential(nn.Linear(4, 5)), rank=2)
    more = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.Linear(2, 2))
    assert LoRA.between(one, more, rank=2).layers.keys() == {"0", "1"}


def test_a_lora_begins_as_one_of_a_lower_rank() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Conv2d(4, 4, 3))
    small = shaken(LoRA.build(network, [Target(pattern="*", rank=2, alpha=3.0)]))
    large = shaken(LoRA.build(network, [Target(pattern="*", rank=5)]), seed=6)
    large.begin_as(small)
    for name, layer in large.layers.items():
        assert layer.rank == 5
        torch.testing.assert_close(layer.change(), small.layers[name].change())
    with pytest.raises(ValueError, match=r"whose 0 is \[5, 4\]: here it is \[2, 4\]"):
        small.begin_as(large)
    with pytest.raises(ValueError, match="there is none here"):
        LoRA.build(network, ["0"]).begin_as(LoRA.build(network, ["*"]))


def test_what_is_merged_goes_with_its_module() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    injection = inject(module, shaken(LoRA.build(module, [Target(pattern="*", rank=2)])), "mine")
    injection.merge()
    alive = weakref.ref(module[0])
    del module, injection
    gc.collect()
    assert alive() is None
