"""Whether weights are numbers: asked of those that are read at once, and later of those that are only mapped.

A file in the precision that is wanted is not read but mapped, which takes no time and no memory; to look at every
number of a published checkpoint then costs several times what all the rest of loading does. A pipeline looks at them
when it is first called, which reads them anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn


def finite(tensor: Tensor) -> bool:
    """Whether every value is a number, without a mask of the tensor's size."""
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax()) if tensor.numel() else True


def broken(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of floating tensors that hold NaN or infinity, sorted."""
    return sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and not finite(tensor))


class Unread:
    """Tensors that nobody has looked at yet, by the file or folder that they come from."""

    def __init__(self) -> None:
        self._tensors: list[tuple[str, Mapping[str, Tensor]]] = []
        self._checking = threading.Lock()  # one thread reads them, others that came meanwhile wait for what it finds

    def add(self, source: str | Path, tensors: Mapping[str, Tensor]) -> None:
        """Remember to look at these."""
        self._tensors.append((str(source), tensors))

    def keep(self, modules: Iterable[nn.Module]) -> None:
        """Let go of files of which these modules hold nothing."""
        held = {t.data_ptr() for module in modules for t in (*module.parameters(), *module.buffers())}
        self._tensors = [one for one in self._tensors if any(t.data_ptr() in held for t in one[1].values())]

    def check(self) -> None:
        """Look at all of them; those that are in order are let go.

        Raises:
            ValueError: some are not finite; the message names all of a source.
        """
        with self._checking:
            while self._tensors:
                source, tensors = self._tensors[0]
                if names := broken(tensors):
                    raise ValueError(
                        f"{source} holds NaN or infinity ({len(names)}): {', '.join(names)}. Fetch or write it again"
                    )
                del self._tensors[0]


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
