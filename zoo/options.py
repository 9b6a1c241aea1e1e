"""Options of published checkpoints (diffusers' config.json), read by tables.

Each option of theirs is in one of three tables: those with a counterpart here, those that must have the one value that
our network is built with, and those that change nothing in the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TypeAlias

Options: TypeAlias = Mapping[str, object]
Fields: TypeAlias = dict[str, tuple[str, object]]  # their option: (our field, the value that its absence means)
BuiltIn: TypeAlias = dict[str, tuple[object, ...]]  # their option: the values that our network has built in


def read(options: Options) -> dict[str, object]:
    """A published config as it is used here: lists as tuples, and without the notes, which begin with "_"."""
    return {name: tuples(value) for name, value in options.items() if not name.startswith("_")}


def take(options: dict[str, object], table: Fields) -> dict[str, object]:
    """Our fields out of their options, which are taken away."""
    return {ours: options.pop(theirs, default) for theirs, (ours, default) in table.items()}


def refuse_others(options: Options, built_in: BuiltIn, harmless: Set[str], part: str) -> None:
    """Refuse what is left and would change the network; an unknown option that is None or False is off.

    Raises:
        ValueError: naming the option and what is supported; `part` says of which network.
    """
    for name, value in options.items():
        if name in built_in and value not in built_in[name]:
            supported = " or ".join(repr(v) for v in built_in[name])
            raise ValueError(f"{name}={value!r} makes another network than {part}: supported is {supported}")
        if name not in built_in and name not in harmless and value is not None and value is not False:
            raise ValueError(f"{name}={value!r} is no known option of {part}: supported is to leave it out")


def levels_of(down: object, up: object, attending: tuple[str, str], plain: tuple[str, str]) -> tuple[bool, ...]:
    """Which levels attend, finest first, from the kinds of their (down, up) blocks.

    Raises:
        ValueError: for other kinds, or levels going up that do not mirror those going down.
    """
    kinds = sequence(down)
    attention = tuple(kind == attending[0] for kind in kinds)
    mirrored = tuple(attending[1] if attends else plain[1] for attends in reversed(attention))
    if not set(kinds) <= {attending[0], plain[0]} or sequence(up) != mirrored:
        raise ValueError(
            f"down_block_types={down}, up_block_types={up}: supported are {attending[0]!r} and {plain[0]!r}, "
            f"mirrored by {attending[1]!r} and {plain[1]!r}"
        )
    return attention


def sequence(value: object) -> tuple[object, ...]:
    """A single value as a sequence of one."""
    return value if isinstance(value, tuple) else (value,)


def tuples(value: object) -> object:
    """Lists within a value as tuples."""
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def lists(value: object) -> object:
    """A tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value
