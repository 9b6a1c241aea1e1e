"""How many parameters an ADM U-Net has, by component, beside what a paper says. Nothing is allocated for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from zoo.adm import AdmUNet, AdmUNetConfig


def count_parameters(config: AdmUNetConfig) -> dict[str, int]:
    """How many parameters each component of such a network has, in the network's order."""
    with torch.device("meta"):
        network = AdmUNet(config)
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        counts[_component(name, len(config.channels))] += parameter.numel()
    return dict(counts)


def _component(name: str, levels: int) -> str:
    """The component that a parameter belongs to: `down.1.attentions.0.to_q.weight` is of "down 1 self-attention"."""
    module, *rest = name.split(".")
    if module not in ("down", "middle", "up"):
        return {"norm": "head", "pool": "text pooling", "text": "text projection"}.get(module, module)
    level = "" if module == "middle" else f" {rest[0] if module == 'down' else levels - 1 - int(rest[0])}"
    text = ".text_" in name
    kind = "text attention" if text else "self-attention" if "attention" in name else "residual"
    return f"{module}{level} {kind}"


def parameter_table(
    name: str,
    config: AdmUNetConfig,
    published: int,
    *,
    beside: Mapping[str, int] | None = None,
    variants: Mapping[str, AdmUNetConfig] | None = None,
) -> str:
    """A network's components in millions of parameters, their sum, and how far that is from what the paper says.

    Args:
        beside: parameters of what the paper's number counts too, by name.
        variants: other readings of the paper, whose sums follow.
    """
    counts = count_parameters(config) | dict(beside or {})
    total = sum(counts.values())
    rows = [(component, f"{count / 1e6:10.1f} {count / total:7.1%}") for component, count in counts.items()]
    rows.append(("all", _compared(total, published)))
    for variant, other in (variants or {}).items():
        sum_of_it = sum((count_parameters(other) | dict(beside or {})).values())
        rows.append((f"  {variant}", _compared(sum_of_it, published)))
    return "\n".join([f"{name}, millions of parameters", *(f"  {left:32}{right}" for left, right in rows)])


def _compared(total: int, published: int) -> str:
    more = total - published
    return f"{total / 1e6:10.1f}   published {published / 1e6:.0f}: {more / 1e6:+.1f} ({more / published:+.1%})"
