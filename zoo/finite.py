"""Whether weights are numbers: asked of those that are read at once, and later of those that are only mapped.

A file in the precision that is wanted is not read but mapped, which takes no time and no memory; to look at every
number of a published checkpoint then costs several times what all the rest of loading does. A pipeline looks at them
when it is first called, which reads them anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

Look: TypeAlias = Callable[[], Tensor]
"""Gives a tensor as it is by now."""


def finite(tensor: Tensor) -> bool:
    """Whether every value is a number, without a mask of the tensor's size."""
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax()) if tensor.numel() else True


def broken(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of floating tensors that hold NaN or infinity, sorted."""
    return sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and not finite(tensor))


class Unread:
    """Tensors that nobody has looked at yet, by the file or folder that they come from.

    sources: everything that tensors were taken from, also those that were looked at at once.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._tensors: list[tuple[str, Mapping[str, Look]]] = []
        self._checking = threading.Lock()  # one thread reads them, others that came meanwhile wait for what it finds

    def add(self, source: str | Path, tensors: Mapping[str, Tensor]) -> None:
        """Remember to look at these."""
        self.sources.append(str(source))
        self._tensors.append((str(source), {name: partial(_itself, tensor) for name, tensor in tensors.items()}))

    def keep(self, modules: Iterable[nn.Module]) -> None:
        """Let go of files of which these modules hold nothing; what they hold is looked at as they hold it by then.

        To be called before anything is moved or cast, which gives a module's tensors other memory: that is how they are
        known here. Numbers that a cast has made infinite are found as well.
        """
        held: dict[int, Look] = {
            tensor.data_ptr(): partial(getattr, owner, name)
            for module in modules
            for owner in module.modules()
            for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        }
        kept: list[tuple[str, Mapping[str, Look]]] = []
        for source, looks in self._tensors:
            found = {name: held.get(look().data_ptr()) for name, look in looks.items()}
            if any(found.values()):
                kept.append((source, {name: found[name] or look for name, look in looks.items()}))
        self._tensors = kept

    def check(self) -> None:
        """Look at all of them; those that are in order are let go.

        Raises:
            ValueError: some are not finite; the message names all of a source.
        """
        with self._checking:
            while self._tensors:
                source, looks = self._tensors[0]
                tensors = {name: look() for name, look in looks.items()}
                if names := broken(tensors):
                    half = any(tensors[name].dtype == torch.float16 for name in names)
                    hint = ", or load it as bfloat16 if its numbers are too large for float16" if half else ""
                    raise ValueError(
                        f"{source} holds NaN or infinity ({len(names)}): {', '.join(names)}. Fetch or write it again"
                        f"{hint}"
                    )
                del self._tensors[0]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


_LATER: ContextVar[Unread | None] = ContextVar("later", default=None)


@contextmanager
def checked_later() -> Iterator[Unread]:
    """Within this, weights that need not be read are not; whoever asks for it has to `check` them before their use."""
    unread = Unread()
    token = _LATER.set(unread)
    try:
        yield unread
    finally:
        _LATER.reset(token)


def later() -> Unread | None:
    """Where to remember what is not looked at now; None where nobody has promised to."""
    return _LATER.get()
