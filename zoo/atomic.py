"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]  # a process's number says nothing elsewhere
_turns = count()
_writing: set[Path] = set()  # what this process has not finished yet


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, file or folder, that takes its place only when the block ends well.

    Durable ones reach the disk before the rename does, so a power cut leaves them whole or not there, never half; and
    what writers of this path that died left beside it is cleared away. (A folder that was there before is moved aside
    for the moment between two renames; if the process dies in that moment, `restore`, which the next call begins with,
    brings it back.) Threads and processes do not get into each other's way: of those that write a path, the last wins.
    """
    if durable:
        restore(path)
        for left in _left(path, ""):
            _remove(left)
    mark = f"{_HOST}-{os.getpid()}-{next(_turns)}-{secrets.token_hex(3)}"
    temporary, aside = (path.with_name(f".{path.name}.{kind}{mark}.tmp") for kind in ("", "old."))
    _writing.update((temporary, aside))
    try:
        yield temporary
        if durable:
            for written in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
                if written.is_file():
                    _sync(written)
        if temporary.is_dir() and path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        if durable:
            with suppress(OSError):  # not every system opens folders
                _sync(path.parent)
        _remove(aside)
    finally:
        _remove(temporary)
        _writing.difference_update((temporary, aside))


def write_text(path: Path, text: str) -> None:
    """A text file, UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_image(path: Path, image: Image, *, durable: bool = True, **options: Any) -> None:
    """A picture, in the format of the path's suffix, with Pillow's options of that format.

    Raises:
        ValueError: there is no such format.
    """
    import PIL.Image  # not needed to write texts and tensors

    kind = PIL.Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has no suffix of a picture, such as .png or .webp")
    with replacing(path, durable=durable) as temporary:
        image.save(temporary, format=kind, **options)


def restore(path: Path) -> None:
    """Bring back a folder that a process had moved aside to replace it, and died (`replacing`); else do nothing."""
    if not path.exists():
        for aside in _left(path, "old."):
            with suppress(OSError):  # another process was faster
                os.replace(aside, path)


def _left(path: Path, kind: str) -> list[Path]:
    """What writers of `path` that were here and are gone left beside it: unfinished, or (`kind` "old.") moved aside."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(kind)}{_HOST}-(\d+)-\d+-[0-9a-f]+\.tmp")
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    told = ((found, name.fullmatch(found.name)) for found in beside)
    return [found for found, match in told if match and not _alive(int(match[1]), found)]


def _alive(process: int, path: Path) -> bool:
    """Whether a process may still be writing a path."""
    if process == os.getpid():
        return path in _writing
    if sys.platform == "win32":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
