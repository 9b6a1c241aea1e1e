"""Parameter names: ours, and those of published checkpoints, by tables of patterns that are read in both directions.

A table is a list of pairs (our module, their module), with {} for numbers; the parameter's own name (weight, bias) is
the same on both sides. What can be loaded can therefore be exported. The tables here are those of the diffusers layout
that several families are made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

Pairs = list[tuple[str, str]]


def inside(ours: str, theirs: str, pairs: Pairs) -> Pairs:
    """The pairs of a block, as they are called within that block's place in the network."""
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in pairs]


def same(*names: str) -> Pairs:
    """Modules that both sides call the same."""
    return [(name, name) for name in names]


RESIDUAL: Pairs = [*same("norm1", "conv1", "norm2", "conv2"), ("time", "time_emb_proj"), ("shortcut", "conv_shortcut")]
MLP: Pairs = [("first", "linear_1"), ("second", "linear_2")]
PROJECTIONS: Pairs = [*same("to_q", "to_k", "to_v"), ("to_out", "to_out.0")]

# `zoo.adm.AdmUNet`, but for what becomes of the text before attention: alike in every published network of that kind.
ADM_ATTENTION: Pairs = [
    ("norm", "group_norm"),
    *PROJECTIONS,
    ("text_norm", "norm_cross"),
    ("text_k", "add_k_proj"),
    ("text_v", "add_v_proj"),
]
ADM: Pairs = [
    ("stem", "conv_in"),
    *inside("time", "time_embedding", MLP),
    *inside("down.{}.blocks.{}", "down_blocks.{}.resnets.{}", RESIDUAL),
    *inside("down.{}.attentions.{}", "down_blocks.{}.attentions.{}", ADM_ATTENTION),
    *inside("down.{}.resample", "down_blocks.{}.downsamplers.0", RESIDUAL),
    *inside("middle.first", "mid_block.resnets.0", RESIDUAL),
    *inside("middle.attention", "mid_block.attentions.0", ADM_ATTENTION),
    *inside("middle.second", "mid_block.resnets.1", RESIDUAL),
    *inside("up.{}.blocks.{}", "up_blocks.{}.resnets.{}", RESIDUAL),
    *inside("up.{}.attentions.{}", "up_blocks.{}.attentions.{}", ADM_ATTENTION),
    *inside("up.{}.resample", "up_blocks.{}.upsamplers.0", RESIDUAL),
    ("norm", "conv_norm_out"),
    ("head", "conv_out"),
]


class KeyTable:
    """Renames parameters, or modules, by a list of pairs: `theirs` exports, `ours` imports."""

    def __init__(self, pairs: Pairs) -> None:
        self._rules = [(_pattern(ours), theirs + "{}", _pattern(theirs), ours + "{}") for ours, theirs in pairs]

    def theirs(self, name: str) -> str | None:
        """The published name of our parameter or module; None if the table knows no such name."""
        return next(
            (template.format(*m.groups()) for ours, template, _, _ in self._rules if (m := ours.fullmatch(name))), None
        )

    def ours(self, name: str) -> str | None:
        """Our name of a published parameter or module; None if the table knows no such name."""
        return next(
            (template.format(*m.groups()) for _, _, theirs, template in self._rules if (m := theirs.fullmatch(name))),
            None,
        )

    def published(self, module: nn.Module) -> dict[str, tuple[str, ...]]:
        """The published names of all modules inside `module` that the table knows, by ours."""
        named = ((name, self.theirs(name)) for name, _ in module.named_modules())
        return {ours: (theirs,) for ours, theirs in named if theirs is not None}


def _pattern(module: str) -> re.Pattern[str]:
    return re.compile(re.escape(module).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias|)")


def rename(
    state: Mapping[str, Tensor], readings: Sequence[Callable[[str], str | None]], part: str
) -> dict[str, Tensor]:
    """Every tensor of a part (named in errors) under the first reading of its name that succeeds.

    Raises:
        ValueError: listing names that no reading knows, or for two spellings of one parameter.
    """
    names = {key: next((new for read in readings if (new := read(key)) is not None), None) for key in state}
    unknown = sorted(key for key, new in names.items() if new is None)
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(names)} names are no parameters of a {part}: "
            f"{', '.join(unknown[:20])}{' ...' if len(unknown) > 20 else ''}"
        )
    renamed = {new: state[key] for key, new in names.items() if new is not None}
    if len(renamed) < len(names):
        raise ValueError(f"the tensors of the {part} hold the same parameter under two spellings: keep one of them")
    return renamed
