"""What some parts can do besides what all of them can (`zoo.interface`): a call may ask for it where it is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from zoo.interface import Representation, Sampling


@runtime_checkable
class ImageEncoder(Protocol):
    """A decoder that knows the way back, which starting from an image needs; or the CLIP beside one that does not."""

    def encode(self, images: Tensor) -> Representation: ...


@runtime_checkable
class OneSize(Protocol):
    """A decoder all of whose pictures are of one (height, width), whatever the generator makes."""

    @property
    def size(self) -> tuple[int, int]: ...


@runtime_checkable
class Multiple(Protocol):
    """A decoder of pictures whose height and width must be multiples of one number, more of it than the generator's."""

    @property
    def multiple(self) -> int: ...


@runtime_checkable
class Shaped(Protocol):
    """A generator that tells the shape, without the batch, of what it makes; `noise=` is checked against it."""

    def shape(self, size: tuple[int, int] | None) -> tuple[int, ...]: ...


@runtime_checkable
class Negatable(Protocol):
    """A generator that says whether a negative prompt changes what it makes; others are taken to heed it."""

    @property
    def heeds_negative(self) -> bool: ...


@runtime_checkable
class Inpainting(Protocol):
    """A generator that may have been trained to fill masked pictures, and is then shown what the mask leaves."""

    @property
    def inpaints(self) -> bool: ...


@runtime_checkable
class Mapped(Protocol):
    """A generator that can be told what goes where; `classes` names the numbers in a layout, none if it takes none."""

    @property
    def classes(self) -> tuple[str, ...]: ...


@runtime_checkable
class Staged(Protocol):
    """A decoder that samples in stages; `defaults` is how each is sampled unless the call says otherwise, in order."""

    @property
    def defaults(self) -> Mapping[str, Sampling]: ...


@runtime_checkable
class Checking(Protocol):
    """A staged decoder that knows before anything is drawn whether its stages can be sampled so; ValueError if not."""

    def check(self, sampling: Sequence[Sampling]) -> None: ...


@runtime_checkable
class Stepless(Protocol):
    """A generator without a sampler: whatever a call says, it takes `own_steps` steps, and heeds the guidance alone."""

    @property
    def own_steps(self) -> int: ...


@runtime_checkable
class Enlarging(Protocol):
    """A staged decoder that names those of its stages that enlarge a picture, on which noise can be put before."""

    @property
    def enlarging(self) -> Collection[str]: ...
