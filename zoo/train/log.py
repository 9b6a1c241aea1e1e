"""What a run tells: a line of text, a progress bar, TensorBoard; and how it is asked to stop."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch
from PIL import Image as PillowImage
from torch import Tensor
from tqdm import tqdm

from zoo.atomic import write_image
from zoo.train.checkpoint import State
from zoo.train.recipe import Recipe
from zoo.train.task import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """Scalars are gathered on the device and read once per line, so that a GPU is never waited for."""

    def __init__(self, recipe: Recipe, state: State, *, quiet: bool = False) -> None:
        self._recipe = recipe
        self._quiet = quiet
        self._board = None if quiet else _board(recipe, state)
        self._bar = tqdm(
            total=recipe.steps,
            initial=state.step,
            unit="step",
            disable=quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._window: list[dict[str, float]] = []
        self._since = time.monotonic()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Remember the scalars of one step."""
        self._pending.append((step, metrics))
        self._bar.update()

    def not_finite(self) -> tuple[int, str] | None:
        """The first step whose loss or gradient is not finite, and which of them, among those not looked at yet."""
        bad = None
        for step, metrics in self._pending:
            values = dict(zip(metrics, torch.stack([v.float() for v in metrics.values()]).tolist(), strict=True))
            self._window.append(values)
            wrong = [name for name in ("loss", "gradient") if not math.isfinite(values[name])]
            bad = bad or ((step, wrong[0]) if wrong else None)
        self._pending = []
        return bad

    def line(self, state: State, rate: float, progress: float) -> None:
        """Print and record the means since the last line; call it after `not_finite`."""
        now = time.monotonic()
        speed = len(self._window) * self._recipe.batch / (now - self._since)
        names = dict.fromkeys(name for values in self._window for name in values)
        means = {n: math.fsum(v[n] for v in self._window if n in v) / sum(n in v for v in self._window) for n in names}
        images = state.step * self._recipe.batch
        text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._print(
            f"step {state.step}  images {images}  {text}  lr {rate:.3g}  {speed:.1f} images/s  "
            f"{state.seconds / 60:.1f} min  {100 * progress:.1f} %"
        )
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.0f} images/s")
        self._scalars(state.step, means | {"lr": rate, "images_per_second": speed})
        self._window, self._since = [], now

    def inspected(self, state: State, picture: Image | None, figures: dict[str, float]) -> None:
        """Print figures of the averaged weights, and keep the picture in `samples/` and in TensorBoard."""
        if figures:
            self._print(f"step {state.step}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            self._scalars(state.step, {f"ema/{name}": value for name, value in figures.items()})
        if picture is not None:
            folder = self._recipe.folder / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{state.step:08d}.png", PillowImage.fromarray(picture), durable=False)
            if self._board is not None:
                self._board.add_image("samples", picture, state.step, dataformats="HWC")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens within is no training: images a second leave it out."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _print(self, text: str) -> None:
        if self._quiet:
            return
        with tqdm.external_write_mode(sys.stdout):
            print(text, flush=True)


def _board(recipe: Recipe, state: State) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed: only these lines and samples/ are kept (zoo-text-to-image[train] has it)")
        return None
    return SummaryWriter(str(recipe.folder / "tensorboard"), purge_step=state.step or None)


class StopSignals:
    """Turns the first SIGTERM or Ctrl-C into `requested`; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for name in (signal.SIGTERM, signal.SIGINT):
                self._before[name] = signal.signal(name, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
        self._before = {}
