"""Prefix tuning (arXiv 2101.00190) for attention: trained keys and values that the queries look at besides the context.

In the paper the prefix shares one softmax with the context, so that even values of zero change the outcome. Here it has
a softmax of its own, and what is seen there is added through tanh(gate), as in arXiv 2303.16199, with one gate per head
that starts at zero: nothing changes at the start. While training, the pairs may come from a small MLP (the paper:
"unstable" without), which `finish` folds away. Under classifier-free guidance a prefix acts on the conditional branch
alone unless it was trained otherwise (`on_null`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

from zoo import tensors
from zoo.adapt.active import strength
from zoo.adapt.lora import HALF, Target
from zoo.nn.attention import Attention, attend
from zoo.nn.text import TextAttention

CROSS_ATTENTION = "*cross_attention"  # of Stable Diffusion; pixels and text are one attention in the others' U-Nets
Looking: TypeAlias = Attention | TextAttention


class PrefixLayer(nn.Module):
    """One attention's prefix: pairs of keys and values [2, length, heads * width], one gate per head."""

    def __init__(self, pairs: Tensor, gate: Tensor, hidden: int | None = None) -> None:
        super().__init__()
        self.pairs, self.gate = nn.Parameter(pairs), nn.Parameter(gate)
        width = pairs.shape[-1]
        self.mlp = None
        if hidden is not None:
            last = nn.Linear(hidden, width)
            nn.init.zeros_(last.weight)  # the pairs begin as they were given
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), last).to(pairs.device)

    def final(self) -> Tensor:
        """The pairs that act: with an MLP, P = P' + MLP(P')."""
        return self.pairs if self.mlp is None else self.pairs + self.mlp(self.pairs)

    def forward(self, q: Tensor) -> Tensor:
        """What queries [batch, heads, queries, width] see of the prefix, before any strength."""
        pairs = rearrange(self.final(), "two n (h d) -> two h n d", h=len(self.gate)).to(q.device, q.dtype)
        k, v = (side.expand(len(q), -1, -1, -1) for side in pairs)
        return self.gate.tanh().to(q.device, q.dtype).view(1, -1, 1, 1) * attend(q, k, v)


class Prefix(nn.Module):
    """The prefixes of one network, by the names of its attention modules. Its parameters are what is trained."""

    def __init__(self, layers: dict[str, PrefixLayer], *, on_null: bool = False) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in layers.items()})
        self.on_null = on_null

    @classmethod
    def build(
        cls,
        module: nn.Module,
        patterns: Sequence[str] | None = None,
        *,
        length: int = 8,
        features: Tensor | None = None,
        hidden: int | None = None,
        on_null: bool = False,
        seed: int = 0,
    ) -> Prefix:
        """Fresh prefixes that change nothing yet, at every attention whose name matches (see `lora.Target`); without
        patterns, at those that look at text.

        features [length, context width]: begin from what the network's own projections make of them, such as the class
        word's tokens, instead of from small random numbers; their number is then the length. hidden: the width of the
        MLP that the pairs go through while training, None for none.

        Raises:
            ValueError: a pattern matches no attention, or the features do not fit one.
        """
        attentions = {name: child for name, child in module.named_modules() if isinstance(child, Looking)}
        chosen = (reading(module) or [CROSS_ATTENTION]) if patterns is None else patterns
        wanted = [Target(pattern=pattern) for pattern in chosen]
        for target in wanted:
            if not any(target.matches(name) for name in attentions):
                known = ", ".join(list(attentions)[:8]) or "none"
                raise ValueError(
                    f"{target.pattern!r} matches none of the {len(attentions)} attentions of {type(module).__name__}, "
                    f"such as: {known}"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = {
                name: PrefixLayer(_start(name, attention, length, features), _gate(attention), hidden)
                for name, attention in attentions.items()
                if any(target.matches(name) for target in wanted)
            }
        return cls(layers, on_null=on_null)

    @property
    def layers(self) -> dict[str, PrefixLayer]:
        return {name.replace("/", "."): layer for name, layer in self.by_name.items()}  # type: ignore[misc]

    @torch.no_grad()
    def finish(self) -> Prefix:
        """Fold the MLP into the pairs, after training; returns the prefix, which acts as before."""
        for layer in self.layers.values():
            layer.pairs.copy_(layer.final())
            layer.mlp = None
        return self

    @torch.no_grad()
    def begin_as(self, other: Prefix) -> None:
        """Take over the pairs and gates of another prefix, of this one's shape; an MLP begins where they are.

        Raises:
            ValueError: it is of other attentions, or of another length or width.
        """
        shapes = [{name: layer.pairs.shape for name, layer in one.layers.items()} for one in (self, other)]
        if shapes[0] != shapes[1]:
            apart = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
            raise ValueError(f"a prefix cannot begin as one that differs in {', '.join(apart)}")
        for name, layer in other.layers.items():
            self.layers[name].pairs.copy_(layer.final())
            self.layers[name].gate.copy_(layer.gate)

    def save(self, path: str | Path, part: str, dtype: torch.dtype | None = None) -> None:
        """Write a small safetensors file for the network called `part`; an MLP is folded in what is written."""
        stored: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            stored |= {f"{part}.{name}.pairs": layer.final(), f"{part}.{name}.gate": layer.gate}
        said = {"format": "zoo", "kind": "prefix", "part": part, "on_null": json.dumps(self.on_null)}
        tensors.write(Path(path), stored, dtype, said)

    @classmethod
    def load(cls, path: str | Path) -> tuple[str, Prefix]:
        """The part that a file of `save` was written for, and the prefix.

        Raises:
            ValueError: the file is damaged, or no prefix; the message names the keys.
        """
        path = Path(path)
        said, stored = tensors.metadata(path), tensors.read(path)
        if said.get("format") != "zoo" or said.get("kind") != "prefix" or "part" not in said:
            raise ValueError(f"{path} is no prefix written by zoo: its header says {said or 'nothing'}")
        start = f"{said['part']}."
        names = [key[len(start) : -len(".pairs")] for key in stored if key.startswith(start) and key.endswith(".pairs")]
        wanted = {f"{start}{name}.{what}" for name in names for what in ("pairs", "gate")}
        wrong = sorted(wanted ^ stored.keys())
        wrong += sorted(key for key in wanted & stored.keys() if not stored[key].isfinite().all())
        if wrong or not names:
            raise ValueError(f"{path} is no whole prefix: missing, unexpected or not finite: {', '.join(wrong)}")
        layers = {
            name: PrefixLayer(stored[f"{start}{name}.pairs"].float(), stored[f"{start}{name}.gate"].float())
            for name in names
        }
        return said["part"], cls(layers, on_null=said.get("on_null") == "true")


def reading(module: nn.Module) -> list[str]:
    """The names of a network's attentions that look at text, alone or beside pixels."""
    crossing = Target(pattern=CROSS_ATTENTION)
    return [
        name
        for name, child in module.named_modules()
        if (isinstance(child, TextAttention) and child.text_k is not None)
        or (isinstance(child, Attention) and crossing.matches(name))
    ]


def inject(module: nn.Module, prefix: Prefix, name: str) -> PrefixInjection:
    """Put `prefix` beside the attentions that it names; it acts where `active.use` names it, and several add up.

    Raises:
        ValueError: the network lacks an attention that the prefix names, one has another shape, or there is a prefix of
            this name already.
    """
    modules, faults = dict(module.named_modules()), []
    for where, layer in prefix.layers.items():
        attention = modules.get(where)
        if not isinstance(attention, Looking):
            faults.append(f"{where} is no attention")
        elif (attention.heads, attention.to_q.out_features) != (len(layer.gate), layer.pairs.shape[-1]):
            faults.append(
                f"{where} has {attention.heads} heads and width {attention.to_q.out_features}, the prefix "
                f"{len(layer.gate)} and {layer.pairs.shape[-1]}"
            )
        elif any(isinstance(look, _Look) and look.name == name for look in attention.beside):
            faults.append(f"{where} has a prefix called {name!r} already")
    if faults:
        raise ValueError(f"prefix {name!r} does not fit {type(module).__name__}: {'; '.join(faults)}")
    return PrefixInjection(name, [(modules[where], layer) for where, layer in prefix.layers.items()], prefix)


class _Look:
    """One adapter at one attention: see `zoo.nn.attention.Beside`."""

    def __init__(self, name: str, layer: PrefixLayer, on_null: bool) -> None:
        self.name, self.layer, self.on_null = name, layer, on_null

    def __call__(self, q: Tensor, seen: Tensor) -> Tensor:
        acts = strength(self.name, seen, first=not self.on_null)
        return seen if acts is None else seen + acts * self.layer(q)


class PrefixInjection:
    """A prefix beside the attentions of one network, as `inject` put it there. It cannot be merged: queries see it."""

    merged: None = None

    def __init__(self, name: str, pairs: Sequence[tuple[nn.Module, PrefixLayer]], prefix: Prefix) -> None:
        self.name = name
        self._looks = [(attention, _Look(name, layer, prefix.on_null)) for attention, layer in pairs]
        for attention, look in self._looks:
            attention.beside.append(look)  # type: ignore[union-attr, operator]

    def cast(self) -> None:
        """Hold what acts in half precision where its attention is, so that no call casts it; otherwise in float32."""
        for attention, look in self._looks:
            dtype = attention.to_q.weight.dtype  # type: ignore[union-attr]
            look.layer.to(dtype if dtype in HALF else torch.float32)

    def remove(self) -> None:
        """Take the prefix off the network."""
        while self._looks:
            attention, look = self._looks.pop()
            attention.beside.remove(look)  # type: ignore[union-attr, operator]


def _start(name: str, attention: Looking, length: int, features: Tensor | None) -> Tensor:
    weight = attention.sources[0].weight
    inner, width = weight.shape
    if features is None:
        return 0.02 * torch.randn(2, length, inner).to(weight.device)
    if features.dim() != 2 or features.shape[1] != width:
        raise ValueError(f"the features have shape {list(features.shape)}, but {name} projects [length, {width}]")
    with torch.no_grad():
        return torch.cat(attention.keys_values(features.to(weight)[None])).float()


def _gate(attention: Looking) -> Tensor:
    return torch.zeros(attention.heads, device=attention.to_q.weight.device)
