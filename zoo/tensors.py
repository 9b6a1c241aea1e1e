"""Tensor files: safetensors only, checked on the way in, written whole or not at all on the way out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored.

    Raises:
        ValueError: the file is missing, cut off or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch or write it again") from error


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors, the floating ones as `dtype` if given, through a temporary file that takes the place at the end.

    Raises:
        ValueError: a tensor holds NaN or infinity, perhaps only once it is stored as `dtype`.
    """
    plain = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu()
        if stored.is_floating_point():
            stored = stored.to(dtype or stored.dtype)
            if not torch.isfinite(stored).all():
                raise ValueError(f"{name} holds NaN or infinity as {stored.dtype}: not writing {path}")
        plain[name] = stored.clone(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(plain, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """Build a module without memory or random numbers; `assign` gives it its tensors."""
    with torch.device("meta"):
        return build()


def assign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str | Path,
    ignore: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give every parameter and buffer of `module` its tensor, floating ones as `dtype`; every tensor is accounted for.

    `ignore` are patterns of stored names that may be left over.

    Raises:
        ValueError: names are missing, unexpected or misshapen, or values are not finite; one message lists them all.
    """
    wanted = module.state_dict()
    stored = {n: t for n, t in tensors.items() if n in wanted or not any(re.fullmatch(p, n) for p in ignore)}
    shared = wanted.keys() & stored.keys()
    faults = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - wanted.keys()),
        "misshapen": sorted(
            f"{n} {list(stored[n].shape)} instead of {list(wanted[n].shape)}"
            for n in shared
            if stored[n].shape != wanted[n].shape
        ),
        "not finite": sorted(n for n in shared if stored[n].is_floating_point() and not stored[n].isfinite().all()),
    }
    if any(faults.values()):
        listed = "\n".join(f"  {kind} ({len(names)}): {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{source} does not fit {type(module).__name__}:\n{listed}")
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in stored.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    unset = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if unset:
        raise ValueError(f"{source} leaves {', '.join(unset)} of {type(module).__name__} without values")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name the space which these weights define.

    Taken in half precision, so that weights are the same space before and after they are stored in it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        half = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{list(half.shape)}".encode())
        digest.update(half.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
