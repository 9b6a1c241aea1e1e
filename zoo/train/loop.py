"""The one training loop: float32 weights, autocast, averaged weights, clipping, checkpoints, logs.

Step i draws its batch and its noise from (seed, i) alone, so a run that was stopped and resumed walks the path of one
that was not. Under `accelerate launch` the processes share each batch and what is drawn for it (`zoo.diffusion.draws`),
and average their gradients, so they train what one would, but for rounding; the first one keeps time, logs and writes.
With `accumulate`, a process shares its batch with itself: parts of it are computed one after the other, in less memory.
"""

from __future__ import annotations

import fnmatch
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from zoo import config as configs
from zoo.atomic import replacing, restore
from zoo.diffusion import draws
from zoo.train import Summary, TrainingError, checkpoint, optimise
from zoo.train.checkpoint import State
from zoo.train.log import Log, StopSignals
from zoo.train.optimise import Ema, learning_rate
from zoo.train.precision import in_half
from zoo.train.recipe import Recipe
from zoo.train.task import Batch, Metrics, Task

STORY = "training.json"  # beside the exported weights: how they came to be
AHEAD = 2  # batches prepared while a step computes


def train(kind: type[Task[Recipe]], recipe: Recipe, *, device: str | None = None, resume: bool = False) -> Summary:
    """Train one part to the end of its recipe, or to the first SIGTERM or Ctrl-C, which leaves a checkpoint.

    Raises:
        TrainingError: the output folder already holds a run and `resume` is not given, the device is not there, or a
            loss is not finite.
    """
    place = _place(device)
    with _tuned(recipe, place):
        return _train(kind, recipe, place, resume)


def _train(kind: type[Task[Recipe]], recipe: Recipe, place: torch.device, resume: bool) -> Summary:
    checkpoints = recipe.folder / "checkpoints"
    accelerator = _accelerator(recipe, place, checkpoint.newest(checkpoints) if resume else None)
    place = accelerator.device
    recipe = recipe.model_copy(update={"autocast": "no" if accelerator.mixed_precision == "no" else "bf16"})
    held = checkpoint.found(checkpoints)
    if held and not resume:
        raise TrainingError(
            f"{recipe.folder} already holds a run (its newest checkpoint is {held[0].name}): continue it with "
            "--resume, choose another folder with out=..., or remove it"
        )
    named = [value for _, value in recipe if isinstance(value, Path)]  # what it starts from and stands between
    for folder in (recipe.folder / "final", *named):
        restore(folder)
    task = kind(recipe, place)
    torch.manual_seed(recipe.seed)
    model = task.build()
    if recipe.init is not None and not held:
        _start(task, model, recipe.init, recipe.fresh)
    model = model.to(place).train()
    model = model.to(memory_format=task.layout)
    ema, optimiser = Ema(model, recipe.ema), optimise.optimiser(recipe.optimiser, model, task.pace)
    state = (checkpoint.resume(checkpoints, model, ema, optimiser) if resume else None) or State()
    task.follow(ema.model)
    main, rank, ranks = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if main:
        _announce(recipe, state, place, ranks, sum(p.numel() for p in model.parameters()))
    if recipe.compile:
        task.compile(model)
    if recipe.recompute and not task.recompute(model):
        raise TrainingError(f"{recipe.part} has no blocks that can be computed again: remove recompute = true")

    started = time.monotonic() - state.seconds
    figures: dict[str, float] = {}
    with Log(recipe, state, quiet=not main) as log, StopSignals() as stop:
        for step, batch in _batches(task, recipe, state.step, place, rank, ranks):
            progress, stopped = _agreed(accelerator, _progress(recipe, step, state.seconds), stop.requested)
            if progress >= 1 or stopped:
                break
            rate = learning_rate(recipe.optimiser, step, progress)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("pace", 1.0)
            loss, metrics = _gradients(accelerator, task, model, batch, step, progress)
            _average(accelerator, model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            ema.update(step)

            state = State(step + 1, time.monotonic() - started, recipe.model_dump_json())
            log.add(step, {"loss": loss, "gradient": norm.detach()} | metrics)
            due = [
                state.step % every == 0 for every in (recipe.log_every, recipe.sample_every, recipe.checkpoint_every)
            ]
            if any(due):
                _check(log, recipe, checkpoints)
            if due[0]:
                log.line(state, rate, progress)
            with log.aside():
                if due[2] and main:  # first: what is inspected may be slow, or fail
                    checkpoint.save(checkpoints, state, model, ema, optimiser)
                if due[1] and main:
                    figures = _inspect(accelerator, task, ema, log, state)
        _check(log, recipe, checkpoints)
        if main and not checkpoint.place(checkpoints, state.step).exists():
            checkpoint.save(checkpoints, state, model, ema, optimiser)
        finished = _agreed(accelerator, _progress(recipe, state.step, state.seconds), False)[0] >= 1
        if main and finished and not (figures and state.step % recipe.sample_every == 0):
            figures = _inspect(accelerator, task, ema, log, state)
    summary = Summary(
        finished, state.step, state.step * recipe.batch, state.seconds / 60, figures, recipe.folder / "final"
    )
    if main:
        if finished:
            _export(task, ema, recipe, summary)
        ending = (
            f"finished at step {state.step}: {summary.folder}" if finished else f"stopped at step {state.step}: resume"
        )
        print(f"{ending} ({state.seconds / 60:.1f} minutes)", flush=True)
    return summary


def _start(task: Task[Recipe], model: nn.Module, folder: Path, fresh: Sequence[str]) -> None:
    """Give the model a finished part's weights, but for those that match `fresh`, which stay as they were built."""
    built = model.state_dict()
    kept: dict[str, Tensor] = {}
    for pattern in fresh:
        found = fnmatch.filter(built, pattern)
        if not found:
            raise TrainingError(f"fresh: {pattern!r} matches no weight, such as: {', '.join(list(built)[:5])}")
        kept |= {name: built[name].clone() for name in found}
    try:
        task.start(model, folder)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    model.load_state_dict(kept, strict=False)


def _place(device: str | None) -> torch.device:
    """The device that is asked for; None is a GPU if there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise TrainingError(f"there is no device {device!r}: say cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise TrainingError(f"parts are trained on cpu or cuda, not on {place.type}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("there is no GPU that torch can use here: train with --device cpu")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"there is no {place}: torch can use {torch.cuda.device_count()} GPUs here")
    return place


@contextmanager
def _tuned(recipe: Recipe, place: torch.device) -> Iterator[None]:
    """Settings of the whole process that make training faster, while it lasts; torch's random state stays as it was."""
    threads = torch.get_num_threads()
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    gpus = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            if recipe.threads:
                torch.set_num_threads(recipe.threads)
            torch.set_flush_denormal(True)
            if gpus:
                torch.cuda.set_device(place.index or 0)
                for backend in backends:
                    backend.allow_tf32 = recipe.autocast != "no"
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


def _accelerator(recipe: Recipe, place: torch.device, state: State | None) -> Accelerator:
    """accelerate, for the device and the precision that the recipe says; "auto" is settled when a run begins."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may differ in autocast
    processes = PartialState(cpu=place.type == "cpu")
    begun = json.loads(state.recipe).get("autocast", "auto") if state is not None and state.recipe else "auto"
    half = in_half(begun if recipe.autocast == "auto" else recipe.autocast, place)
    if processes.num_processes > 1:  # which were timed each by itself
        said = torch.tensor([float(half)], device=processes.device)
        torch.distributed.broadcast(said, 0)
        half = bool(said[0])
    if recipe.batch % (processes.num_processes * recipe.accumulate):
        shares = f"{processes.num_processes} processes in {recipe.accumulate} parts each"
        raise TrainingError(f"{shares} cannot share a batch of {recipe.batch} evenly")
    return Accelerator(cpu=place.type == "cpu", mixed_precision="bf16" if half else "no")


def _gradients(
    accelerator: Accelerator, task: Task[Recipe], model: nn.Module, batch: Batch, step: int, progress: float
) -> tuple[Tensor, Metrics]:
    """Add up the gradients of the parts of this process's batch; returns the means of their losses and metrics."""
    recipe, rank, ranks = task.recipe, accelerator.process_index, accelerator.num_processes
    told: list[Metrics] = []
    for part in range(recipe.accumulate):
        rows = task.share(batch, part, recipe.accumulate) if recipe.accumulate > 1 else batch
        torch.manual_seed(_seed(recipe, step))  # all parts draw for the whole batch, and keep what is their samples'
        with accelerator.autocast(), draws.shared(rank + ranks * part, ranks * recipe.accumulate):
            loss, metrics = task.loss(model, rows, progress)
        accelerator.backward(loss / recipe.accumulate)
        told.append({"loss": loss.detach()} | metrics)
    if len(told) > 1:
        told = [{name: torch.stack([one[name] for one in told]).mean() for name in told[0]}]
    loss = told[0].pop("loss")
    return loss, told[0]


def _agreed(accelerator: Accelerator, progress: float, stop: bool) -> tuple[float, bool]:
    """The first process's progress and wish to stop, which all follow: their clocks and signals differ."""
    if accelerator.num_processes == 1:
        return progress, stop
    said = torch.tensor([progress, float(stop)], dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(said, 0)
    return float(said[0]), bool(said[1])


def _average(accelerator: Accelerator, model: nn.Module) -> None:
    """Replace the gradients by their mean over the processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _batches(
    task: Task[Recipe], recipe: Recipe, first: int, place: torch.device, rank: int, ranks: int
) -> Iterator[tuple[int, Batch]]:
    """Step numbers and this process's share of their batches, each made while the steps before it compute."""

    def make(step: int) -> Batch:
        batch = task.batch(step, np.random.default_rng([recipe.seed, step]))
        batch = task.share(batch, rank, ranks) if ranks > 1 else batch
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
    with replacing(summary.folder) as folder:
        folder.mkdir()
        task.export(ema.model.cpu().to(memory_format=torch.contiguous_format), folder)
        story = asdict(summary) | {
            "folder": None,
            "before": begun_with(recipe),
            "recipe": recipe.model_dump(mode="json"),
        }
        story |= {"torch": torch.__version__, "machine": f"{platform.machine()}, {task.device.type}"}
        (folder / STORY).write_text(json.dumps(story, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def begun_with(recipe: Recipe) -> dict[str, float]:
    """What the weights that the run begins with had cost; nothing if they are random, or nobody told.

    A run tells it itself; of an adapter that comes with a model, the model does.
    """
    init = recipe.init
    if init is None:
        return {}
    if (init / STORY).is_file():
        return cost(json.loads((init / STORY).read_text("utf-8")))
    shelf = init.absolute().parent
    if shelf.name != configs.ADAPTERS or not (shelf.parent / configs.FILE).is_file():
        return {}
    told = configs.read(shelf.parent).adapters.get(init.name)
    return cost(cast(dict[str, Any], told.training[recipe.part])) if told and recipe.part in told.training else {}


def cost(story: Mapping[str, Any]) -> dict[str, float]:
    """What the story of an exported part says it took, with what it began with: steps, images seen, minutes."""
    before = story.get("before", {})
    return {key: story[key] + before.get(key, 0) for key in ("step", "images", "minutes")}


def _announce(recipe: Recipe, state: State, place: torch.device, ranks: int, parameters: int) -> None:
    length = f"{recipe.steps} steps" if recipe.steps is not None else f"{recipe.minutes:g} minutes"
    print(
        f"{recipe.part}: {parameters / 1e6:.2f}M parameters, {length} of {recipe.batch} on {place}, "
        + (f"{ranks} processes of " if ranks > 1 else "")
        + f"{torch.get_num_threads()} threads, into {recipe.folder}"
        + (f", resuming at step {state.step} ({state.seconds / 60:.1f} minutes)" if state.step else ""),
        flush=True,
    )
    if recipe.steps is not None and recipe.optimiser.warmup >= recipe.steps:
        print(f"  optimiser.warmup = {recipe.optimiser.warmup} steps: lr is never reached", flush=True)
    if state.recipe:
        was, now = json.loads(state.recipe), json.loads(recipe.model_dump_json())
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                print(f"  {key} was {was.get(key)} and is now {now.get(key)}", flush=True)
