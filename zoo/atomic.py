"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, file or folder, that takes its place only when the block ends well.

    Written data reach the disk before the rename does, so a power cut leaves it whole or not there, never half. (A
    folder that was there before is moved aside for the moment between two renames; if the process dies in that moment,
    `restore`, which the next call begins with, brings it back.)
    """
    restore(path)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if not _alive(int(left.name.split(".")[-2])):
            _remove(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        for written in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
            if written.is_file():
                _sync(written)
        aside = path.with_name(f".{path.name}.old.{os.getpid()}.tmp")
        if temporary.is_dir() and path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        _sync(path.parent)
        _remove(aside)
    finally:
        _remove(temporary)


def restore(path: Path) -> None:
    """Bring back a folder that a process had moved aside to replace it, and died (`replacing`); else do nothing."""
    if path.exists():
        return
    for aside in path.parent.glob(f".{path.name}.old.*.tmp"):
        if not _alive(int(aside.name.split(".")[-2])):
            with suppress(OSError):  # another process was faster
                os.replace(aside, path)


def _alive(process: int) -> bool:
    """Whether a process may still be writing what it left."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
