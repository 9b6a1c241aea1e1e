"""Checkpoints: one safetensors file each, so that nothing is ever unpickled and one rename makes it whole.

A file holds `model.*`, `ema.*` and `optimiser.<slot>.*` tensors, and the run's state as JSON in its header. Randomness
is not in it: the batch and the noise of a step depend on (seed, step) alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.atomic import replacing
from zoo.train import TrainingError
from zoo.train.muon import Muon
from zoo.train.optimise import Ema

KEEP = 2


@dataclass(frozen=True)
class State:
    """Where a run stands: steps done, seconds spent on them, and the recipe it ran under."""

    step: int = 0
    seconds: float = 0.0
    recipe: str = ""


def save(folder: Path, state: State, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> Path:
    """Write the checkpoint of `state.step` and drop all but the newest two."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for slot, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{slot}.{name}"] = value
    whole = place(folder, state.step)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(whole) as temporary:
        # Two names of one tensor, and layouts such as channels-last, are no matter of safetensors: it wants plain rows.
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(plain, temporary, metadata={"state": json.dumps(asdict(state))})
    for old in found(folder)[KEEP:]:
        old.unlink()
    return whole


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.safetensors"


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def newest(folder: Path) -> State | None:
    """Where the newest checkpoint that can be read stands."""
    for path in found(folder):
        with suppress(SafetensorError, OSError, json.JSONDecodeError), safe_open(path, framework="pt") as file:
            return State(**json.loads(file.metadata()["state"]))
    return None


def load(path: Path, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> State:
    """Put a checkpoint back into a freshly built model, average and optimiser.

    Raises:
        TrainingError: its tensors are not the ones that this model has; the message lists them. Or it was written by
            another kind of optimiser.
    """
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = State(**json.loads(file.metadata()["state"]))
    _copy(path, _part(tensors, "model."), model.state_dict())
    _copy(path, _part(tensors, "ema."), ema.model.state_dict())
    slots = _part(tensors, "optimiser.")
    parameters = dict(model.named_parameters())
    _check_kind(path, state, optimiser)
    for key, value in slots.items():
        slot, _, name = key.partition(".")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # Laid out in memory as the parameter is, or a resumed run would round differently.
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        counts = not value.ndim and isinstance(optimiser, Muon)  # steps, which are read on the CPU
        optimiser.state[parameter][slot] = value if counts else value.to(parameter.device)
    return state


def resume(folder: Path, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> State | None:
    """Load the newest checkpoint that can be read; None if there is none at all.

    Raises:
        TrainingError: there are some, but none can be read, or the newest is of another model.
    """
    paths = found(folder)
    for path in paths:
        try:
            return load(path, model, ema, optimiser)
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            print(f"skipping {path}, which cannot be read: {error}", flush=True)
    if paths:
        raise TrainingError(f"none of the checkpoints in {folder} can be read: remove them to begin again")
    return None


def _check_kind(path: Path, state: State, optimiser: torch.optim.Optimizer) -> None:
    """What one kind of optimiser remembers says nothing to another."""
    was = json.loads(state.recipe).get("optimiser", {}).get("kind") if state.recipe else None
    now = "muon" if isinstance(optimiser, Muon) else "adamw" if isinstance(optimiser, torch.optim.AdamW) else was
    if was not in (None, now):
        raise TrainingError(
            f"{path} was written by optimiser.kind={was}, and cannot be resumed with {now}: keep it, or begin a run "
            "of its own with init= and out="
        )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copy(path: Path, stored: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    wrong = sorted(stored.keys() ^ target.keys())
    wrong += sorted(name for name in stored.keys() & target.keys() if stored[name].shape != target[name].shape)
    if wrong:
        raise TrainingError(
            f"{path} was written by another model: {len(wrong)} tensors differ in name or shape, such as "
            f"{', '.join(wrong[:5])}. Resume with its own recipe, or train into another folder (out=...)."
        )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(stored[name])
