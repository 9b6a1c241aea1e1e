"""Low-rank adaptation (arXiv 2106.09685): beside a frozen weight W acts (alpha / rank) up down, of low rank.

Reaches every `nn.Linear` and `nn.Conv2d` of any module by its name. The matrices are held beside the network, never in
it: its modules, its parameters and their names stay what they were, and which adapters act is said per call, by
`zoo.adapt.active.use`.

    lora = LoRA.build(network, ["*.to_[qkv]", "*.to_out"])      # begins as no change at all
    injection = inject(network, lora, "mine")
    with use({"mine": 1.0}):
        network(...)                                            # train lora.parameters(), or just call
    injection.merge(0.8)                                        # into the weights: costs nothing any more
    injection.unmerge()                                         # the weights of before, to the bit
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoo.adapt.active import Strength, finite, strength

HALF = (torch.float16, torch.bfloat16)


class Target(BaseModel):
    """Modules to adapt, and how: a wildcard on their names ("*.to_[qkv]"), or "re:" and a regular expression.

    Higher `rank` can learn more. The change is multiplied by alpha / rank; None is alpha = rank, a factor of 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str
    rank: int = Field(default=4, ge=1)
    alpha: float | None = None

    def matches(self, name: str) -> bool:
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.pattern)


def adaptable(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The modules that LoRA can reach, by their names: linear layers, and convolutions in one group with zero padding.

    Those of which another module uses the weight without calling them, as `nn.MultiheadAttention` does, are not among
    them: nothing beside them would be heard.
    """
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, child in module.named_modules():
        plain = isinstance(child, nn.Conv2d) and child.groups == 1 and child.padding_mode == "zeros"
        called = isinstance(child, nn.Linear) and not isinstance(
            child, nn.modules.linear.NonDynamicallyQuantizableLinear
        )
        if name and (plain or called):
            found[name] = child
    return found


class LowRank(nn.Module):
    """The change of one weight: down [rank, in, ...] and up [out, rank], with 1x1 to the end beside a convolution."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float) -> None:
        super().__init__()
        self.down, self.up, self.alpha = nn.Parameter(down), nn.Parameter(up), float(alpha)
        self._exact: tuple[Tensor, Tensor] | None = None  # down and up as they were, where `cast` has rounded them

    @classmethod
    def fresh(cls, base: nn.Linear | nn.Conv2d, target: Target, source: torch.Generator | None = None) -> LowRank:
        """down from a Gaussian of standard deviation 1 / rank, up zero: no change yet."""
        weight, rank = base.weight, target.rank
        down = torch.randn(rank, *weight.shape[1:], generator=source) / rank
        up = torch.zeros(weight.shape[0], rank, *[1] * (weight.dim() - 2))
        return cls(down.to(weight.device), up.to(weight.device), rank if target.alpha is None else target.alpha)

    @classmethod
    def nearest(cls, change: Tensor, rank: int) -> LowRank:
        """The one of this rank that comes nearest to the change of a weight [out, in, ...], by its singular values."""
        left, values, right = torch.linalg.svd(change.float().flatten(1), full_matrices=False)
        rank = min(rank, len(values))
        root = values[:rank].sqrt()
        up = (left[:, :rank] * root).view(-1, rank, *[1] * (change.dim() - 2))
        return cls((root[:, None] * right[:rank]).view(rank, *change.shape[1:]), up, rank)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor, base: nn.Linear | nn.Conv2d, strength: Strength = 1.0) -> Tensor:
        """What is added to base(x), in the type of x; a tensor of strengths is [rows, 1, ...] as x has dimensions."""
        down, up = self.down.to(x.device, x.dtype), self.up.to(x.device, x.dtype)
        if isinstance(base, nn.Conv2d):
            narrow = F.conv2d(x, down, None, base.stride, base.padding, base.dilation)
            return F.conv2d(narrow * (strength * self.scale), up)
        return F.linear(F.linear(x, down) * (strength * self.scale), up)

    def change(self) -> Tensor:
        """What strength 1 adds to the weight, in its shape, float32."""
        down, up = (side.to(self.down.device, torch.float32) for side in self._unrounded())
        return self.scale * torch.tensordot(up.flatten(1), down, dims=1)

    def cast(self, dtype: torch.dtype) -> None:
        """Hold the matrices as a weight of this type needs them, so that no call casts them: in half precision if it
        is, in float32 if not. What the last cast rounded is taken from what it was before, here and in `change`.

        Not for matrices that are trained: those go on from what they are.
        """
        exact, wanted = self._unrounded(), dtype if dtype in HALF else torch.float32
        down, up = (side.to(self.down.device, wanted) for side in exact)
        self.down.data, self.up.data = down, up
        same = all(torch.equal(new.to(old), old) for new, old in zip((down, up), exact, strict=True))
        self._exact = None if same else exact

    def _unrounded(self) -> tuple[Tensor, Tensor]:
        return self._exact or (self.down.detach(), self.up.detach())


class LoRA(nn.Module):
    """The low-rank changes of one network, by the names of its modules. Its parameters are what is trained."""

    def __init__(self, layers: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in layers.items()})

    @classmethod
    def build(cls, module: nn.Module, targets: Sequence[Target | str], *, seed: int | torch.Generator = 0) -> LoRA:
        """Fresh adapters that change nothing yet; a module belongs to the first target that matches its name.

        Raises:
            ValueError: a target matches no linear layer or convolution; the message gives names there are.
        """
        source = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        wanted = [Target(pattern=target) if isinstance(target, str) else target for target in targets]
        bases = adaptable(module)
        for target in wanted:
            if not any(target.matches(name) for name in bases):
                some = ", ".join(list(bases)[:8]) or "none"
                raise ValueError(
                    f"{target.pattern!r} matches none of the {len(bases)} linear layers and convolutions of "
                    f"{type(module).__name__}, such as: {some}"
                )
        chosen = {name: next((t for t in wanted if t.matches(name)), None) for name in bases}
        return cls({name: LowRank.fresh(bases[name], target, source) for name, target in chosen.items() if target})

    @classmethod
    @torch.no_grad()
    def between(cls, before: nn.Module, after: nn.Module, rank: int) -> LoRA:
        """What changes one network into another of its shape, as nearly as a LoRA of this rank can.

        Biases and norms, which no LoRA reaches, stay as they are in `before`. Layers that only `after` has, such as
        those of one input more, are left aside.

        Raises:
            ValueError: a layer is missing in `after` or of another shape there, or all weights are the same.
        """
        old, new = adaptable(before), adaptable(after)
        odd = [name for name in old if name not in new or old[name].weight.shape != new[name].weight.shape]
        if odd:
            raise ValueError(f"layers that the other network lacks, or has in another shape: {', '.join(odd[:8])}")
        changes = {name: new[name].weight.float() - module.weight.float() for name, module in old.items()}
        layers = {name: LowRank.nearest(change, rank) for name, change in changes.items() if change.any()}
        if not layers:
            raise ValueError("the networks have the same weights: there is nothing to extract")
        return cls(layers)

    @torch.no_grad()
    def begin_as(self, other: LoRA) -> None:
        """Take over another's layers, of this one's rank or less; what is left of the rank changes nothing yet.

        Raises:
            ValueError: the other has a layer more, of a higher rank, or of another shape.
        """
        for name, theirs in other.layers.items():
            mine = self.layers.get(name)
            if mine is None or theirs.rank > mine.rank or theirs.down.shape[1:] != mine.down.shape[1:]:
                own = "there is none here" if mine is None else f"here it is {list(mine.down.shape)}"
                raise ValueError(f"a LoRA cannot begin as one whose {name} is {list(theirs.down.shape)}: {own}")
            mine.down[: theirs.rank] = theirs.down
            mine.up.zero_()
            mine.up[:, : theirs.rank] = theirs.up * (theirs.scale / mine.scale)

    @property
    def layers(self) -> dict[str, LowRank]:
        return {name.replace("/", "."): layer for name, layer in self.by_name.items()}  # type: ignore[misc]


def inject(module: nn.Module, lora: LoRA, name: str) -> Injection:
    """Put `lora` beside the modules that it names; it acts where `active.use` names it, and several add up.

    Raises:
        ValueError: the network lacks a module that the LoRA names, one has another shape, or there is an adapter of
            this name already.
    """
    return Injection(name, _pairs(module, lora, name))


@torch.no_grad()
def fold(module: nn.Module, lora: LoRA) -> None:
    """Add a LoRA to the weights of the modules that it names, for good; `Injection.merge` can be undone.

    Raises:
        ValueError: as `inject`.
    """
    for base, layer in _pairs(module, lora, "to fold"):
        _add(base, layer)


def _add(base: nn.Linear | nn.Conv2d, layer: LowRank, strength: float = 1.0) -> None:
    base.weight.copy_(base.weight.float() + strength * layer.change().to(base.weight.device))


def _pairs(module: nn.Module, lora: LoRA, name: str) -> list[tuple[nn.Linear | nn.Conv2d, LowRank]]:
    bases, faults = adaptable(module), []
    for where, layer in lora.layers.items():
        base = bases.get(where)
        if base is None:
            faults.append(f"{where} is no linear layer or convolution")
        elif (layer.up.shape[0], *layer.down.shape[1:]) != tuple(base.weight.shape):
            shapes = f"down {list(layer.down.shape)}, up {list(layer.up.shape)}"
            faults.append(f"{where} has weight {list(base.weight.shape)}, which {shapes} do not change")
        elif any(isinstance(hook, _Beside) and hook.name == name for hook in base._forward_hooks.values()):
            faults.append(f"{where} has an adapter called {name!r} already")
    if faults:
        raise ValueError(f"LoRA {name!r} does not fit {type(module).__name__}: {'; '.join(faults)}")
    return [(bases[where], layer) for where, layer in lora.layers.items()]


class _Beside:
    """The forward hook of one adapter on one module."""

    def __init__(self, name: str, layer: LowRank) -> None:
        self.name, self.layer = name, layer

    def __call__(self, base: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        acts = strength(self.name, args[0])
        return None if acts is None else output + self.layer(args[0], base, acts)


@dataclass(frozen=True, eq=False)
class _Mark:
    """That an adapter of this name is merged. It is no `Injection`, which would hold the module itself."""

    name: str


# What is merged into a module, the latest last. It belongs to the weights, and goes with them.
_MERGED: WeakKeyDictionary[nn.Module, list[_Mark]] = WeakKeyDictionary()


class Injection:
    """A LoRA beside the modules of one network, as `inject` put it there."""

    def __init__(self, name: str, pairs: Sequence[tuple[nn.Linear | nn.Conv2d, LowRank]]) -> None:
        self.name = name
        self.merged: float | None = None
        self._pairs = list(pairs)
        self._mark = _Mark(name)
        self._originals: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = []  # each module, and its weights of before
        self._handles: list[RemovableHandle] = []
        self._hook()

    def _hook(self) -> None:
        self._handles = [base.register_forward_hook(_Beside(self.name, layer)) for base, layer in self._pairs]

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def cast(self) -> None:
        """Hold what acts as the modules' types need it: see `LowRank.cast`."""
        for base, layer in self._pairs:
            layer.cast(base.weight.dtype)

    @torch.no_grad()
    def merge(self, strength: float = 1.0) -> None:
        """Add the change to the weights; the adapter then acts in every call, at no cost, and is not said any more.

        The weights of before are kept for `unmerge`: as much memory as the adapted modules take. If that or the sum
        fails halfway (memory, Ctrl-C), all weights are as they were.

        Raises:
            ValueError: it is merged already, or the strength is no finite number.
        """
        if self.merged is not None:
            raise ValueError(f"adapter {self.name!r} is merged already, with strength {self.merged:g}")
        strength = finite(self.name, strength)
        self._unhook()
        try:
            for base, layer in self._pairs:
                self._originals.append((base, base.weight.detach().clone()))
                _MERGED.setdefault(base, []).append(self._mark)
                _add(base, layer, strength)
        except BaseException:
            self._restore()
            raise
        self.merged = strength

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the weights of before back, to the bit; the adapter again acts where it is said.

        Raises:
            ValueError: it is not merged, or another one was merged on top of it and has to be unmerged first.
        """
        if self.merged is None:
            raise ValueError(f"adapter {self.name!r} is not merged")
        later = {_MERGED[base][-1].name for base, _ in self._pairs if _MERGED[base][-1] is not self._mark}
        if later:
            raise ValueError(f"merged on top of {self.name!r}: {', '.join(sorted(later))}. Unmerge that first")
        self._restore()
        self.merged = None

    def _restore(self) -> None:
        """Put back what there is of the weights of before, and act from beside again."""
        for base, original in self._originals:
            base.weight.copy_(original)
            if self._mark in _MERGED.get(base, []):
                _MERGED[base].remove(self._mark)
        self._originals.clear()
        self._hook()

    def remove(self) -> None:
        """Take the adapter off the network.

        Raises:
            ValueError: it is merged.
        """
        if self.merged is not None:
            raise ValueError(f"adapter {self.name!r} is merged: unmerge it before it is taken off")
        self._unhook()
