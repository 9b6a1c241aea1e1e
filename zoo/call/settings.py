"""How a call is sampled: what it says, over what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from numbers import Real

from torch import Tensor

from zoo.call.abilities import Checking, Enlarging, Multiple, OneSize, Shaped, Staged
from zoo.diffusion.guidance import check_settings
from zoo.diffusion.inputs import check_size
from zoo.diffusion.samplers import find_sampler
from zoo.interface import Decoder, Generator, Sampling


class Own(Enum):
    """What stands for the model's own setting where None is a setting: it turns thresholds, caps and intervals off."""

    OWN = "the model's own"

    def __repr__(self) -> str:
        return self.name


OWN = Own.OWN
OFF_BY_NONE = ("threshold", "cap", "interval")


def sampling_of(defaults: Sampling, given: Mapping[str, object]) -> Sampling:
    """The settings that a call gives, and the defaults where it says `OWN`, or None of what cannot be off.

    Raises:
        ValueError: a setting that cannot be.
    """
    said = {
        key: value for key, value in given.items() if value is not OWN and (value is not None or key in OFF_BY_NONE)
    }
    return _checked(replace(defaults, **said))  # type: ignore[arg-type]


def stages_of(
    decoder: Decoder, name: str, stages: Mapping[str, Mapping[str, object]] | None, augmentation: float | None
) -> dict[str, Sampling]:
    """How each stage of the decoder is sampled in a call of the model `name`.

    Raises:
        ValueError: it has no such stage, a stage no such setting, or nothing is enlarged that augmentation is for.
    """
    defaults = dict(decoder.defaults) if isinstance(decoder, Staged) else {}
    if not defaults and (stages or augmentation is not None):
        raise ValueError(f"{name} has no stages that are sampled after its generator: leave out stages=")
    if stages is not None and not isinstance(stages, Mapping):
        raise ValueError(f"stages are settings by the stages' names ({', '.join(defaults)}), not {stages!r}")
    for stage, said in (stages or {}).items():
        if stage not in defaults:
            raise ValueError(f"{name} has no stage {stage!r}; there are: {', '.join(defaults)}")
        if not isinstance(said, Mapping):
            raise ValueError(f'settings of stage {stage!r} are given by name, such as {{"steps": 4}}, not {said!r}')
        if unknown := said.keys() - {field.name for field in fields(Sampling)}:
            raise ValueError(f"stage {stage!r} knows no setting {', '.join(sorted(unknown))}")
        defaults[stage] = replace(defaults[stage], **said)  # type: ignore[arg-type]
    enlarging = decoder.enlarging if isinstance(decoder, Enlarging) else defaults
    if augmentation is not None:
        if not enlarging:
            raise ValueError(f"{name} enlarges no picture: leave out augmentation=")
        defaults |= {stage: replace(defaults[stage], augmentation=augmentation) for stage in enlarging}
    for stage, how in defaults.items():
        if how.augmentation is not None and stage not in enlarging:
            raise ValueError(f"stage {stage!r} begins with noise alone, not with a picture: leave out its augmentation")
    found = {stage: _checked(how) for stage, how in defaults.items()}
    if isinstance(decoder, Checking):
        decoder.check(list(found.values()))
    return found


def size_of(
    generator: Generator,
    decoder: Decoder,
    name: str,
    default: tuple[int, int] | None,
    height: int | None,
    width: int | None,
) -> tuple[int, int] | None:
    """Height and width in pixels of what the model `name` draws: those of a call, over the default ones; None for the
    generator's own.

    Raises:
        ValueError: the generator or the decoder cannot make it.
    """
    if height is None and width is None:
        size = default
    else:
        own = default or (height or width or 0, width or height or 0)
        size = (own[0] if height is None else height, own[1] if width is None else width)
    if size is not None and min(size) < 1:
        raise ValueError(f"impossible size {size[0]} x {size[1]}: height and width are counted in pixels, from 1")
    if isinstance(decoder, Multiple) and size is not None:
        check_size(*size, decoder.multiple)
    if isinstance(generator, Shaped):
        generator.shape(size)  # raises where the generator cannot make it
    if isinstance(decoder, OneSize) and size not in (None, decoder.size):
        made, asked = (" x ".join(map(str, sides)) for sides in (decoder.size, size or ()))
        raise ValueError(f"{name} makes pictures of {made} pixels only, not of {asked}: leave out height= and width=")
    return size


def check_noise(generator: Generator, noise: Tensor | None, count: int, size: tuple[int, int] | None) -> None:
    """Initial noise that was given fits what the generator makes.

    Raises:
        ValueError: its shape does not.
    """
    if noise is None or not isinstance(generator, Shaped):
        return
    wanted = (count, *generator.shape(size))
    if tuple(noise.shape) != wanted:
        raise ValueError(f"noise has shape {list(noise.shape)}, but these {count} images start from {list(wanted)}")


NUMBERS = ("guidance", "rescale", "eta", "threshold", "cap", "augmentation")  # None where a stage may leave it open


def _checked(sampling: Sampling) -> Sampling:
    for name in NUMBERS:
        value = getattr(sampling, name)
        if not _is_number(value) and (value is not None or getattr(Sampling, name) is not None):
            raise ValueError(f"{name} is a number, not {value!r}")
    for name in ("sampler", "spacing"):
        if not isinstance(value := getattr(sampling, name), str):
            raise ValueError(f"{name} is a name, not {value!r}")
    ends = sampling.interval
    if ends is not None and not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(_is_number, ends))):
        raise ValueError(f"interval is two numbers, such as (1.0, 100.0), not {ends!r}")
    if not isinstance(sampling.steps, int) or sampling.steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, not {sampling.steps!r}")
    find_sampler(sampling.sampler, sampling.eta)  # raises where there is none such
    check_settings(sampling)
    return sampling


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
