"""Blocks that are computed again say and learn what blocks that keep everything do, and keep less."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.adapt.conftest import PARTS, built
from tests.train.ends import check_recomputed
from zoo.adapt.active import use
from zoo.adapt.lora import LoRA, Target, inject
from zoo.train import run
from zoo.train.recipe import RecipeError
from zoo.train.recompute import recompute

BLOCKY = [name for name in PARTS if name != "gan"]


class Kept(TorchDispatchMode):
    """Counts the bytes of what was computed in the block and still lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.made[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return out

    @property
    def bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def learned(name: str, again: bool, act: Callable[[nn.Module], dict[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
    """What `act` says of the part, which is recomputed or not, and how much was kept for its backward pass."""
    network = built(PARTS[name])
    if again:
        assert recompute(network) > 0
    with Kept() as kept:
        said = act(network)
    return said, kept.bytes


@pytest.mark.parametrize("name", BLOCKY)
def test_outputs_and_gradients_are_the_same_to_the_bit(name: str) -> None:
    def act(network: nn.Module) -> dict[str, Tensor]:
        network.requires_grad_(True)
        output = PARTS[name].call(network)
        output.square().mean().backward()
        gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
        return {"output": output.detach(), **gradients}

    (plain, _), (again, _) = (learned(name, recomputed, act) for recomputed in (False, True))
    assert plain.keys() == again.keys()
    assert len(plain) > 1
    assert all(plain[key].equal(again[key]) for key in plain)


@pytest.mark.parametrize("name", BLOCKY)
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    def act(network: nn.Module) -> dict[str, Tensor]:
        return {"output": PARTS[name].call(network.requires_grad_(True))}

    (_, plain), (_, again) = (learned(name, recomputed, act) for recomputed in (False, True))
    assert 0 < again < 0.7 * plain


@pytest.mark.parametrize("name", BLOCKY)
def test_adapters_act_in_the_backward_pass_as_they_did(name: str) -> None:
    """Though it runs when they are no longer chosen, and by then others are."""

    def act(network: nn.Module) -> dict[str, Tensor]:
        lora = LoRA.build(network, [Target(pattern="*", rank=2)], seed=0)
        for parameter in lora.parameters():
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        inject(network, lora, "mine")
        with use({"mine": torch.tensor([0.0, 0.5, 1.0, 2.0])}):
            output = PARTS[name].call(network)
        with use({"mine": -1.0}):
            output.square().mean().backward()
        return {key: p.grad for key, p in lora.named_parameters() if p.grad is not None}

    (plain, _), (again, _) = (learned(name, recomputed, act) for recomputed in (False, True))
    assert len(plain) > 1
    assert all(plain[key].equal(again[key]) for key in plain)


def test_a_copy_recomputes_itself() -> None:
    network = built(PARTS["unet"])
    recompute(network)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not PARTS["unet"].call(other.requires_grad_(True)).any()
    assert PARTS["unet"].call(network).any()


@pytest.mark.usefixtures("same_cache")
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_run_that_recomputes_learns_the_same(home: Path, part: str, tmp_path: Path) -> None:
    between = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"] if part == "unet" else []
    check_recomputed(home / f"{part}.toml", tmp_path, *between)


@pytest.mark.usefixtures("same_cache")
def test_what_cannot_be_recomputed_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recompute = true and compile = true do not go together"):
        run(home / "vae.toml", [f"out={tmp_path}", "recompute=true", "compile=true"], device="cpu")
