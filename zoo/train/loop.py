"""The one training loop: float32 weights, autocast, averaged weights, clipping, checkpoints, logs.

Step i draws its batch and its noise from (seed, i) alone, so a run that was stopped and resumed walks the path of one
that was not.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from zoo.train import Summary, TrainingError, checkpoint
from zoo.train.checkpoint import State
from zoo.train.log import Log, StopSignals
from zoo.train.optimise import Ema, adamw, learning_rate
from zoo.train.recipe import Recipe
from zoo.train.task import Batch, Task

AHEAD = 2  # batches prepared while a step computes


def train(kind: type[Task[Recipe]], recipe: Recipe, *, device: str | None = None, resume: bool = False) -> Summary:
    """Train one part to the end of its recipe, or to the first SIGTERM or Ctrl-C, which leaves a checkpoint.

    Raises:
        TrainingError: the output folder already holds a run and `resume` is not given, the device is not there, or a
            loss is not finite.
    """
    accelerator = _accelerator(recipe, device)
    place: torch.device = accelerator.device
    checkpoints = recipe.folder / "checkpoints"
    held = checkpoint.found(checkpoints)
    if held and not resume:
        raise TrainingError(
            f"{recipe.folder} already holds a run (its newest checkpoint is {held[0].name}): continue it with "
            "--resume, choose another folder with out=..., or remove it"
        )
    task = kind(recipe, place)
    torch.manual_seed(recipe.seed)
    model = task.build().to(place).train()
    model = model.to(memory_format=task.layout)
    ema, optimiser = Ema(model, recipe.ema), adamw(recipe.optimiser, model)
    state = (checkpoint.resume(checkpoints, model, ema, optimiser) if resume else None) or State()
    _announce(recipe, state, place, sum(p.numel() for p in model.parameters()))
    if recipe.compile:
        task.compile(model)

    started = time.monotonic() - state.seconds
    figures: dict[str, float] = {}
    with Log(recipe, state) as log, StopSignals() as stop:
        for step, batch in _batches(task, recipe, state.step, place):
            progress = _progress(recipe, step, state.seconds)
            if progress >= 1 or stop.requested:
                break
            rate = learning_rate(recipe.optimiser, step, progress)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(_seed(recipe, step))
            with accelerator.autocast():
                loss, metrics = task.loss(model, batch, progress)
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            ema.update(step)

            state = State(step + 1, time.monotonic() - started, recipe.model_dump_json())
            log.add(step, {"loss": loss.detach(), "gradient": norm.detach()} | metrics)
            due = [
                state.step % every == 0 for every in (recipe.log_every, recipe.sample_every, recipe.checkpoint_every)
            ]
            if any(due):
                _check(log, recipe, checkpoints)
            if due[0]:
                log.line(state, rate, progress)
            if due[1]:
                figures = _inspect(accelerator, task, ema, log, state)
            if due[2]:
                checkpoint.save(checkpoints, state, model, ema, optimiser)
        _check(log, recipe, checkpoints)
        finished = _progress(recipe, state.step, state.seconds) >= 1
        if finished and not (figures and state.step % recipe.sample_every == 0):
            figures = _inspect(accelerator, task, ema, log, state)
    if not checkpoint.place(checkpoints, state.step).exists():
        checkpoint.save(checkpoints, state, model, ema, optimiser)
    summary = Summary(
        finished, state.step, state.step * recipe.batch, state.seconds / 60, figures, recipe.folder / "final"
    )
    if finished:
        _export(task, ema, recipe, summary)
    ending = f"finished at step {state.step}: {summary.folder}" if finished else f"stopped at step {state.step}: resume"
    print(f"{ending} ({state.seconds / 60:.1f} minutes)", flush=True)
    return summary


def _accelerator(recipe: Recipe, device: str | None) -> Accelerator:
    """accelerate, for the device and autocast; one process."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.set_flush_denormal(True)
    wanted = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError("there is no GPU that torch can use here: train with --device cpu")
        torch.cuda.set_device(wanted.index or 0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may differ in autocast
    accelerator = Accelerator(cpu=wanted.type == "cpu", mixed_precision=recipe.autocast)
    if accelerator.num_processes > 1:
        raise TrainingError(f"one process trains a part, and {accelerator.num_processes} were launched")
    return accelerator


def _batches(task: Task[Recipe], recipe: Recipe, first: int, place: torch.device) -> Iterator[tuple[int, Batch]]:
    """Step numbers and their batches on the device, each made while the steps before it compute."""

    def make(step: int) -> Batch:
        batch = task.batch(step, np.random.default_rng([recipe.seed, step]))
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if place.type == "cuda" else batch

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(make, first + i) for i in range(AHEAD)]
        step = first
        try:
            while True:
                batch = coming.pop(0).result()
                coming.append(pool.submit(make, step + AHEAD))
                yield step, {name: tensor.to(place, non_blocking=True) for name, tensor in batch.items()}
                step += 1
        finally:
            for future in coming:
                future.cancel()


def _progress(recipe: Recipe, step: int, seconds: float) -> float:
    """How much of the run is behind, 0 to 1: of its steps, or of its minutes."""
    return step / recipe.steps if recipe.steps is not None else seconds / (60 * (recipe.minutes or 1))


def _seed(recipe: Recipe, step: int) -> int:
    return int(np.random.SeedSequence([recipe.seed, step, 1]).generate_state(1, np.uint64)[0] >> 1)


def _check(log: Log, recipe: Recipe, checkpoints: Path) -> None:
    """Stop at the first loss or gradient that is not finite: looked for before anything is said, shown or stored."""
    bad = log.not_finite()
    if bad is not None:
        good = checkpoint.found(checkpoints)
        raise TrainingError(
            f"the {bad[1]} of step {bad[0]} is not finite. "
            + (f"The last good checkpoint is {good[0]}. " if good else "There is no checkpoint yet. ")
            + f"Lower optimiser.lr (now {recipe.optimiser.lr:g}) or set autocast=no, and continue with --resume."
        )


@torch.no_grad()
def _inspect(accelerator: Accelerator, task: Task[Recipe], ema: Ema, log: Log, state: State) -> dict[str, float]:
    torch.manual_seed(0)
    with accelerator.autocast():
        picture, figures = task.inspect(ema.model)
    log.inspected(state, picture, figures)
    return figures


def _export(task: Task[Recipe], ema: Ema, recipe: Recipe, summary: Summary) -> None:
    """The finished part, and how it came to be, in place of any older export."""
    summary.folder.parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.replacing(summary.folder) as folder:
        folder.mkdir()
        task.export(ema.model.cpu().to(memory_format=torch.contiguous_format), folder)
        story = asdict(summary) | {"folder": None, "recipe": recipe.model_dump(mode="json")}
        story |= {"torch": torch.__version__, "machine": f"{platform.machine()}, {task.device.type}"}
        (folder / "training.json").write_text(json.dumps(story, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _announce(recipe: Recipe, state: State, place: torch.device, parameters: int) -> None:
    length = f"{recipe.steps} steps" if recipe.steps is not None else f"{recipe.minutes:g} minutes"
    print(
        f"{recipe.part}: {parameters / 1e6:.2f}M parameters, {length} of {recipe.batch} on {place}, "
        f"{torch.get_num_threads()} threads, into {recipe.folder}"
        + (f", resuming at step {state.step} ({state.seconds / 60:.1f} minutes)" if state.step else ""),
        flush=True,
    )
    if state.recipe:
        was, now = json.loads(state.recipe), json.loads(recipe.model_dump_json())
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                print(f"  {key} was {was.get(key)} and is now {now.get(key)}", flush=True)
