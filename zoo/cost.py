"""What a pipeline costs: parameters, network evaluations, seconds, memory."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from zoo.config import ROLES, Role
from zoo.pipeline import Pipeline

MOST_STEPS = 1000
MEBI = 2**20


def parameters(pipe: Pipeline) -> dict[Role, int]:
    """How many parameters each part has."""
    parts: dict[Role, object] = {role: getattr(pipe, role) for role in ROLES}
    return {
        role: sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0
        for role, part in parts.items()
    }


@contextmanager
def evaluations(pipe: Pipeline) -> Iterator[dict[Role, int]]:
    """While it is open, counts the rows that the networks of generator and decoder are called with.

    A guided step counts twice for an image, as its batch has a half with the prompt and one without. What counts are
    the modules that parts call `network`: those that sampling runs again and again.
    """
    counts: dict[Role, int] = {"generator": 0, "decoder": 0}
    handles = []
    for role in counts:
        part = getattr(pipe, role)
        networks = _networks(part) if isinstance(part, nn.Module) else []

        def count(module: nn.Module, given: tuple[torch.Tensor, ...], role: Role = role) -> None:
            counts[role] += len(given[0])

        handles += [network.register_forward_pre_hook(count) for network in networks]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _networks(part: nn.Module) -> list[nn.Module]:
    named = {name: module for name, module in part.named_modules() if name.rpartition(".")[2] == "network"}
    inner = {name for name in named for outer in named if name.startswith(f"{outer}.")}
    return [module for name, module in named.items() if name not in inner]


def seconds(draw: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of `draw(0)`, `draw(1)` ... after one call that warms up."""
    draw(0)
    taken = []
    for turn in range(repeats):
        start = time.perf_counter()
        draw(turn)
        taken.append(time.perf_counter() - start)
    return taken


def steps_in(target: float, cost: Callable[[int], float], start: int) -> int:
    """The number of steps whose `cost` in seconds comes nearest to `target`, from 1 to `MOST_STEPS`.

    Seconds are a straight line over steps, known after `start` and half as many; the guess is measured and, as clocks
    waver, drawn once more along that line.
    """
    few, many = (start // 2, start) if start > 1 else (1, 2)
    low, high = cost(few), cost(many)
    slope = (high - low) / (many - few)
    if slope <= 0:  # the clock wavers more than steps cost
        slope = high / many
    steps = _within(many + (target - high) / slope)
    return _within(steps + (target - cost(steps)) / slope) if steps not in (few, many) else steps


def _within(steps: float) -> int:
    return max(1, min(MOST_STEPS, round(steps)))


def release() -> None:
    """Give back what is no longer used, also what the allocators keep, so that the next model starts level."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if Path("/proc/self/status").exists() else None
    if trim is not None:  # of glibc
        trim(0)


class Memory:
    """The most memory that is in use from now on, beyond what is used now, in MiB: the GPU's, or the process's.

    The process's is known on Linux only, by its own account of its resident set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: float | None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / MEBI
        else:
            self.before = resident() if _forget_peak() else None

    def peak(self) -> float | None:
        """None where it is not known."""
        if self.before is None:
            return None
        cuda = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) / MEBI if cuda else peak_resident()
        return None if most is None else max(0.0, most - self.before)


def resident() -> float | None:
    """The memory of this process in MiB, None where it is not known."""
    return _status("VmRSS")


def peak_resident() -> float | None:
    """The most memory that this process has held in MiB, None where it is not known.

    By its own account on Linux: getrusage there begins with what the parent held.
    """
    return _status("VmHWM")


def _status(name: str) -> float | None:
    path = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text("utf-8"), re.MULTILINE) if path.exists() else None
    return int(found[1]) / 1024 if found else None


def _forget_peak() -> bool:
    """Make the process's peak what it uses now; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
