"""What may be compared, in one line of text: a model, its parts, its adapters, its sampler.

MODEL [PART=CHOICE,...] +ADAPTER:STRENGTH ... @SAMPLER:STEPS        (without the spaces)

stable-diffusion-small                          a name, a folder, a file or a hub id, as for `zoo.load`
stable-diffusion-small@ddim:10                  by another sampler, in 10 steps
stable-diffusion-small@:10                      by its own sampler, in 10 steps
stable-diffusion-small+style.safetensors:0.8    with a LoRA, a prefix or a word, by default at strength 1
stable-diffusion-small[decoder=other/decoder]   with a part of another model, or a variant that it declares
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.adapt.files import split
from zoo.config import ROLES, Role

GRAMMAR = "MODEL[PART=CHOICE,...]+ADAPTER:STRENGTH@SAMPLER:STEPS"
_PLAIN = r"[^\[\]+@]"
_SPEC = re.compile(rf"({_PLAIN}+)(?:\[([^\[\]]*)\])?((?:\+{_PLAIN}*)*)(?:@({_PLAIN}*))?")


@dataclass(frozen=True)
class Spec:
    """One thing to compare; `said` is the text that it was read from, by which it goes in the report."""

    said: str
    model: str
    parts: Mapping[Role, str] = field(default_factory=dict)
    adapters: tuple[tuple[str, float], ...] = ()  # source and strength
    sampler: str | None = None
    steps: int | None = None


def parse(said: str | os.PathLike[str]) -> Spec:
    """Read what is to be compared; a path that exists is a model, whatever characters it has.

    Raises:
        ValueError: the text is not of the form above; the message says where and shows what was expected.
    """
    if not isinstance(said, str) or (said and Path(said).exists()):
        return Spec(os.fspath(said), os.fspath(said))
    match = _SPEC.fullmatch(said.strip())
    if match is None:
        raise ValueError(
            f"cannot read {said!r} as a model to compare: expected {GRAMMAR}, all but MODEL left out at will"
        )
    model, parts, adapters, sampled = match.groups()
    sampler, steps = _sampled(said, sampled)
    return Spec(
        said=said.strip(),
        model=model,
        parts=_parts(said, parts),
        adapters=tuple(_adapter(said, text) for text in (adapters or "").split("+")[1:]),
        sampler=sampler,
        steps=steps,
    )


def parse_all(said: Sequence[str | os.PathLike[str]]) -> list[Spec]:
    """Read everything that is to be compared, in its order.

    Raises:
        ValueError: nothing, the same twice, or a text that `parse` refuses.
    """
    if isinstance(said, str):
        raise ValueError(f"models are a list, such as [{said!r}], not one text")
    specs = [parse(one) for one in said]
    if not specs:
        raise ValueError(f"no models to compare: name some, each as {GRAMMAR}")
    names = [spec.said for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named twice: {', '.join(twice)}. Each model, sampler or adapter is compared once")
    return specs


def _parts(said: str, text: str | None) -> dict[Role, str]:
    found: dict[Role, str] = {}
    for piece in [] if text is None else text.split(","):
        role, equals, choice = (part.strip() for part in piece.partition("="))
        if role not in ROLES or not equals or not choice:
            raise ValueError(
                f"cannot read [{text}] in {said!r}: expected PART=CHOICE with a part of {', '.join(ROLES)} and for the "
                "choice a variant, or another model's part such as other/decoder"
            )
        if role in found:
            raise ValueError(f"[{text}] in {said!r} says {role} twice")
        found[role] = choice
    return found


def _adapter(said: str, text: str) -> tuple[str, float]:
    source, strength = split(text)
    if not source:
        raise ValueError(
            f"cannot read {said!r}: after + comes an adapter's file, folder or hub id, as ADAPTER:STRENGTH"
        )
    return source, strength


def _sampled(said: str, text: str | None) -> tuple[str | None, int | None]:
    if text is None:
        return None, None
    sampler, colon, steps = text.partition(":")
    if (not sampler and not colon) or (colon and not steps.isdecimal()) or steps == "0":
        raise ValueError(
            f"cannot read @{text} in {said!r}: expected @SAMPLER, @SAMPLER:STEPS or @:STEPS with at least 1 step"
        )
    return sampler or None, int(steps) if colon else None
