"""Do three parts fit? Width, length, kind, shape and trained space are compared before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import Role
from zoo.interface import ANY, Decoder, Generator, RepresentationSpec, TextEncoder, TextSpec

MEND = {
    "text_encoder": "leave out text_encoder= to use the one it was trained with, or train the generator on this one",
    "decoder": "leave out decoder= to use the one it was trained with, or take the generator that was trained with it",
}


def check_fit(text_encoder: TextEncoder, generator: Generator, decoder: Decoder, labels: Mapping[Role, str]) -> None:
    """The parts can be joined.

    Raises:
        ValueError: they cannot; the message names both parts, every mismatch, and the mend.
    """
    parts: dict[Role, object] = {"text_encoder": text_encoder, "generator": generator, "decoder": decoder}
    protocols = {"text_encoder": TextEncoder, "generator": Generator, "decoder": Decoder}
    for role, part in parts.items():
        if not isinstance(part, protocols[role]):
            what = protocols[role].__name__
            raise ValueError(
                f"{labels.get(role, type(part).__name__)} cannot be the {role}: it is no zoo.interface.{what}"
            )
    names = {
        role: f"{labels[role]} ({type(p).__name__})" if role in labels else type(p).__name__
        for role, p in parts.items()
    }
    _join(
        (f"text encoder {names['text_encoder']}", f"generator {names['generator']}"),
        _text_faults(text_encoder.produces, generator.needs),
        MEND["text_encoder"],
    )
    _join(
        (f"generator {names['generator']}", f"decoder {names['decoder']}"),
        _representation_faults(generator.produces, decoder.needs),
        MEND["decoder"],
    )
    if decoder.needs_text is not None:
        _join(
            (f"text encoder {names['text_encoder']}", f"decoder {names['decoder']}"),
            _text_faults(text_encoder.produces, decoder.needs_text),
            MEND["text_encoder"],
        )


def check_image_encoder(image_encoder: object, decoder: Decoder) -> None:
    """The decoder reads what this image encoder makes of pictures, as far as it says what that is.

    Raises:
        ValueError: it does not; the message says what differs, and the mend.
    """
    produces = getattr(image_encoder, "produces", decoder.needs)
    _join(
        (f"image encoder {type(image_encoder).__name__}", f"decoder {type(decoder).__name__}"),
        _representation_faults(produces, decoder.needs),
        "take the CLIP that it was trained with, or the decoder that was trained with this one",
    )


def _join(parts: tuple[str, str], faults: list[str], mend: str) -> None:
    if faults:
        raise ValueError(f"{parts[0]} and {parts[1]} do not fit: {'; '.join(faults)}. To mend it, {mend}.")


def _text_faults(given: TextSpec, needed: TextSpec) -> list[str]:
    faults = []
    if given.width != needed.width:
        faults.append(f"tokens are {given.width} wide, {needed.width} are needed")
    if needed.length is not None and given.length != needed.length:
        faults.append(f"{given.length or 'any number of'} tokens a prompt, {needed.length} are needed")
    if needed.pooled is not None and given.pooled != needed.pooled:
        faults.append(f"the pooled vector is {given.pooled or 'not there'}, width {needed.pooled} is needed")
    if not faults and needed.space not in (given.space, ANY):
        faults.append(f"the sizes agree, but the text space is {given.space}, and {needed.space} is needed")
    return faults


def _representation_faults(given: RepresentationSpec, needed: RepresentationSpec) -> list[str]:
    if given.kind != needed.kind:
        return [f"the one makes {given.kind}, the other decodes {needed.kind}"]
    pairs = list(zip(given.shape, needed.shape, strict=False))
    if len(given.shape) != len(needed.shape) or any(a != b and a is not None and b is not None for a, b in pairs):
        return [f"the shape is {_shape(given.shape)}, {_shape(needed.shape)} is needed"]
    if needed.space not in (given.space, ANY):
        return [f"the sizes agree, but the {given.kind} space is {given.space}, and {needed.space} is needed"]
    return []


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if side is None else str(side) for side in shape) + "]"
