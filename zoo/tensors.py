"""Tensor files: safetensors only, checked on the way in, written whole or not at all on the way out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.atomic import replacing
from zoo.finite import broken, later

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LONGEST_HEADER = 100_000_000  # bytes, the library's own limit
SAMPLED, RUNS, RUN = 2**19, 64, 1024  # above so many values a fingerprint takes some 64 runs of 1024
SPACE = "space."  # begins what a header says of the spaces that the tensors define
SCALE = ".scale"  # ends the name of the scales of a tensor that is stored in eight bits


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as stored; those that `write` put in eight bits come as float16.

    Raises:
        ValueError: the file is missing, cut off or not safetensors, or names a tensor twice.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return _unpacked({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch or write it again") from error


def _check_header(path: Path) -> None:
    """The library keeps the last of two tensors of one name; here that is a damaged file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise SafetensorError(f"its header would be {length} bytes long, the file is {size}")
        try:
            loads(file.read(length))
        except ValueError as error:
            raise SafetensorError(f"its header is not valid: {error}") from error


def loads(text: bytes) -> object:
    """JSON in which no name stands twice and every number is one; infinite ones are, in published configs.

    Raises:
        ValueError: it is not such JSON.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{', '.join(twice[:5])} stands there twice")
        return found

    def constant(name: str) -> float:
        if name == "NaN":
            raise ValueError(f"{name} is no number")
        return float(name)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_pickle(path: Path, *, only: bool = False) -> dict[str, Tensor]:
    """All tensors of a file that `torch.save` wrote (.bin, .ckpt, .pt); nothing in it is run (`weights_only`).

    They may lie under "state_dict", beside other things; and they may be views into one flat buffer, which is let go.

    only: what is by the tensors and is none is not passed over: a number there may be meant to count.

    Raises:
        ValueError: the file is missing or damaged, holds more than data, or no tensors by name, or other things if
            `only` tensors are expected.
    """
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of before torch 1.6, which cannot be mapped, or a damaged one
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may end in any error at all
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} cannot be read as a file of tensors ({reason[0]}). Nothing in it was run: fetch it again, or "
            "convert it to safetensors where you trust it"
        ) from error
    inner = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name")
    tensors = {str(name): value.detach() for name, value in inner.items() if isinstance(value, Tensor)}
    strange = [str(name) for name in inner if str(name) not in tensors] if only else []
    if strange:
        raise ValueError(f"{path} holds other things than tensors: {', '.join(strange[:20])}")
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    odd = sorted(name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized)
    if odd:
        raise ValueError(f"{path} holds tensors that are sparse or quantised: {', '.join(odd[:5])}")
    return tensors


def own(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own, unless it fills its storage: a view keeps all that it was cut from alive."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() <= tensor.nbytes + 64
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside the tensors.

    Raises:
        ValueError: the file is missing, cut off or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch or write it again") from error


def spaces(path: Path) -> dict[str, str]:
    """The names of the spaces that a file's tensors define, by kind, as its header has them; none in other headers.

    They are the `fingerprint` of what was written: weights that were rounded to eight bits define the same spaces.

    Raises:
        ValueError: the file is missing, cut off or not safetensors, or its header has something else for a name.
    """
    found = {key.removeprefix(SPACE): name for key, name in metadata(path).items() if key.startswith(SPACE)}
    if odd := [name for name in found.values() if not re.fullmatch("[0-9a-f]{16}", name)]:
        raise ValueError(f"{path} is damaged: its header names a space {odd[0]!r}, not sixteen hexadecimal digits")
    return found


def naming(spaces: Mapping[str, str]) -> dict[str, str]:
    """The header of a file whose tensors define these spaces: see `spaces`."""
    return {"format": "pt", **{SPACE + kind: name for kind, name in spaces.items()}}


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors, the floating ones as `dtype` if given, through a temporary file that takes the place at the end.

    With int8, matrices and kernels become whole numbers of eight bits and a scale for each of their rows, all else
    float16: half the size of half precision, at a relative error of some 0.7 %. `metadata` goes into the header, in
    place of {"format": "pt"}.

    Raises:
        ValueError: a tensor holds NaN or infinity, perhaps only once it is stored as `dtype`.
    """
    plain = {}
    for name, tensor in (_packed(tensors) if dtype == torch.int8 else tensors).items():
        stored = tensor.detach().cpu()
        if stored.is_floating_point() and dtype != torch.int8:
            stored = stored.to(dtype or stored.dtype)
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise ValueError(f"{name} holds NaN or infinity as {stored.dtype}: not writing {path}")
        plain[name] = stored.clone(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # who may read new files here; safetensors makes its own for the owner alone
        save_file(plain, temporary, metadata=dict(metadata or {"format": "pt"}))
        temporary.chmod(mode)
        _settle(temporary)


def _settle(path: Path) -> None:
    """Sort a file's metadata, which safetensors writes in random order: the same tensors are to make the same file."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        said = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(said) <= size:
            file.seek(8)
            file.write(said.ljust(size))


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors of two dimensions or more as int8, with scales [rows] in float32 under a name of their own; all
    others as float16, also those of one row, for which one scale would be too few."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or len(tensor) < 2 or not tensor.numel():
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.detach().float().cpu().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        whole = (rows / scale[:, None]).round().clamp(-127, 127)
        if not torch.isfinite(whole).all():
            raise ValueError(f"{name} holds NaN or infinity, which eight bits cannot")
        packed[name], packed[name + SCALE] = whole.to(torch.int8).view(tensor.shape), scale
    return packed


def _unpacked(stored: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What `_packed` was given, but for rounding."""
    for name in [name for name, tensor in stored.items() if tensor.dtype == torch.int8 and name + SCALE in stored]:
        whole, scale = stored[name], stored.pop(name + SCALE)
        if scale.shape != whole.shape[:1] or not scale.is_floating_point():
            raise ValueError(f"{path} is damaged: the scales of {name} do not fit it")
        stored[name] = (whole.float() * scale.float().view(-1, *[1] * (whole.ndim - 1))).half()
    return stored


def on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """Build a module without memory or random numbers; `assign` gives it its tensors."""
    with torch.device("meta"):
        return build()


def load(build: Callable[[], ModuleT], path: Path) -> ModuleT:
    """The module that `build` makes, in float32, with the tensors of a file, each of which is accounted for.

    Raises:
        ValueError: the file is missing or damaged, or its tensors do not fit.
    """
    module = on_meta(build)
    assign(module, read(path), source=path)
    return module


def assign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str | Path,
    ignore: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give every parameter and buffer of `module` its tensor, floating ones as `dtype`; every tensor is accounted for.

    `ignore` are patterns of stored names that may be left over. Within `zoo.finite.checked_later`, tensors that are
    taken as they are stored are not looked at for NaN and infinity.

    Raises:
        ValueError: names are missing, unexpected or misshapen, or values are no numbers of the right kind, or not
            finite; one message lists them all.
    """
    wanted = module.state_dict()
    stored = {n: t for n, t in tensors.items() if n in wanted or not any(re.fullmatch(p, n) for p in ignore)}
    shared = wanted.keys() & stored.keys()
    # A tensor of another shape may claim more elements than there is memory for.
    numbers = {n: stored[n] for n in shared if stored[n].shape == wanted[n].shape and stored[n].is_floating_point()}
    unread, mapped = later(), {n: t for n, t in numbers.items() if t.dtype == dtype}
    faults = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - wanted.keys()),
        "misshapen": sorted(
            f"{n} {list(stored[n].shape)} instead of {list(wanted[n].shape)}"
            for n in shared
            if stored[n].shape != wanted[n].shape
        ),
        "not the kind of number": sorted(
            f"{n} {stored[n].dtype} instead of {wanted[n].dtype}"
            for n in shared
            if stored[n].is_floating_point() != wanted[n].is_floating_point()
            or stored[n].is_complex() != wanted[n].is_complex()
        ),
        "not finite": broken(numbers if unread is None else {n: numbers[n] for n in numbers.keys() - mapped.keys()}),
    }
    if any(faults.values()):
        listed = "\n".join(f"  {kind} ({len(names)}): {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{source} does not fit {type(module).__name__}:\n{listed}")
    cast = {n: own(t.to(dtype) if t.is_floating_point() else t) for n, t in stored.items()}
    if dtype == torch.float16 and (large := broken({n: cast[n] for n in numbers.keys() - mapped.keys()})):
        raise ValueError(f"{source} holds numbers too large for {dtype}: {', '.join(large)}. Load it as bfloat16")
    module.load_state_dict(cast, strict=True, assign=True)
    if unread is not None:
        unread.add(source, {n: cast[n] for n in mapped})
    unset = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if unset:
        raise ValueError(f"{source} leaves {', '.join(unset)} of {type(module).__name__} without values")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sum(path: Path, expected: str) -> None:
    """Look whether a model's file is what its config says.

    Raises:
        ValueError: it is missing, or its SHA-256 is another.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: fetch the model again")
    found = sha256(path)
    if found != expected:
        raise ValueError(f"{path} is damaged: its SHA-256 is {found}, the config says {expected}. Fetch it again")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name the space which these weights define.

    Taken in half precision, so that weights are the same space before and after they are stored in it; and of large
    tensors from runs of values all over them, since training changes every one.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if tensor.numel() > SAMPLED:
            runs = tensor.flatten()[: tensor.numel() // RUN * RUN].view(-1, RUN)
            tensor = runs[:: len(runs) // RUNS]
        half = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(half.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
