"""The loop, on the smallest part there is: it learns to negate pictures, with dropout, so that randomness matters."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo import atomic
from zoo.train import TrainingError, checkpoint, optimise, precision
from zoo.train.loop import train
from zoo.train.recipe import Recipe
from zoo.train.task import Batch, Metrics, Task
from zoo.train.task import Image as Pixels

ROOT = Path(__file__).parents[2]
END = "step-00000012.safetensors"


class TinyRecipe(Recipe):
    part: str = "tiny"
    width: int = 4
    bad_step: int | None = None  # its loss is not a number
    signal_step: int | None = None  # during its batch the process gets a SIGTERM


class TinyTask(Task[TinyRecipe]):
    recipe_type = TinyRecipe

    def build(self) -> nn.Module:
        width = self.recipe.width
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.2), nn.Conv2d(width, 3, 1)
        )

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        if step == self.recipe.signal_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {
            "x": torch.from_numpy(rng.standard_normal((self.recipe.batch, 3, 4, 4), dtype=np.float32)),
            "bad": torch.tensor(float("nan") if step == self.recipe.bad_step else 0.0),
        }

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        value = (model(batch["x"] + 0.1 * torch.randn_like(batch["x"])) + batch["x"]).square().mean()
        return value + batch["bad"], {"progress": torch.tensor(progress)}

    def start(self, model: nn.Module, folder: Path) -> None:
        model.load_state_dict(load_file(folder / "model.safetensors"))

    def inspect(self, model: nn.Module) -> tuple[Pixels | None, dict[str, float]]:
        return np.zeros((8, 8, 3), np.uint8), {"norm": float(sum(p.norm() for p in model.parameters()))}

    def export(self, model: nn.Module, folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")


def recipe(out: Path, **settings: object) -> TinyRecipe:
    # One thread here as in a process of its own: how many there are decides the order of sums, hence the last bits.
    common = {"steps": 12, "batch": 4, "threads": 1, "autocast": "no"}
    common |= {"log_every": 3, "sample_every": 5, "checkpoint_every": 4}
    return TinyRecipe.model_validate(common | {"out": out, "optimiser": {"lr": 1e-2, "warmup": 2}} | settings)


def checkpoints(out: Path) -> list[str]:
    return [path.name for path in checkpoint.found(out / "checkpoints")]


def same(a: Path, b: Path) -> bool:
    """Whether two safetensors files hold the same bits."""
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    train(TinyTask, recipe(out), device="cpu")
    return out


def test_what_a_run_leaves(whole: Path) -> None:
    assert checkpoints(whole) == ["step-00000012.safetensors", "step-00000008.safetensors"]
    story = json.loads((whole / "final" / "training.json").read_text("utf-8"))
    assert (story["step"], story["images"], story["finished"], story["recipe"]["steps"]) == (12, 48, True, 12)
    assert story["figures"]["norm"] > 0
    assert Image.open(whole / "samples" / "00000012.png").size == (8, 8)
    assert list((whole / "tensorboard").glob("events.*"))
    assert not list(whole.rglob("*.tmp"))
    last = load_file(whole / "checkpoints" / "step-00000012.safetensors")
    final = load_file(whole / "final" / "model.safetensors")
    assert all(torch.equal(final[name], last[f"ema.{name}"]) for name in final)  # the averaged weights are what ships
    assert not torch.equal(final["0.weight"], last["model.0.weight"])


@pytest.mark.parametrize("layout", [False, True], ids=["contiguous", "channels_last"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole: Path, tmp_path: Path, layout: bool) -> None:
    out = tmp_path / "out"
    if layout:
        whole = tmp_path / "whole"
        train(TinyTask, recipe(whole, channels_last=True), device="cpu")
    stopped = train(TinyTask, recipe(out, channels_last=layout, signal_step=6), device="cpu")
    assert not stopped.finished
    assert 0 < stopped.step < 12
    assert checkpoints(out)[0] == f"step-{stopped.step:08d}.safetensors"
    assert not (out / "final").exists()
    finished = train(TinyTask, recipe(out, channels_last=layout), device="cpu", resume=True)
    assert (finished.finished, finished.step) == (True, 12)
    assert same(out / "checkpoints" / "step-00000012.safetensors", whole / "checkpoints" / "step-00000012.safetensors")
    assert same(out / "final" / "model.safetensors", whole / "final" / "model.safetensors")


def test_signals_are_handed_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(TinyTask, recipe(tmp_path, signal_step=2), device="cpu")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_loop import TinyTask, recipe
from zoo.train import checkpoint
from zoo.train.loop import train

out, moment = Path(sys.argv[1]), sys.argv[3]
write, replace, loss, export = checkpoint.save_file, os.replace, TinyTask.loss, TinyTask.export
steps = []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def cut(tensors, path, metadata):
    write(tensors, path, metadata=metadata)
    if moment == "checkpoint" and "step-00000008" in str(path):  # half of the second one is written
        os.truncate(path, path.stat().st_size // 2)
        die()

def stopped(self, model, batch, progress):
    steps.append(progress)
    if moment == "step" and len(steps) == 7:
        die()
    return loss(self, model, batch, progress)

def moved(source, target):
    replace(source, target)
    if moment == "renames" and Path(source) == out / "final":  # the old one is aside, the new one not in its place
        die()

def half(self, model, folder):
    export(self, model, folder)
    if moment == "export":
        die()

checkpoint.save_file, os.replace, TinyTask.loss, TinyTask.export = cut, moved, stopped, half
train(TinyTask, recipe(out), device="cpu", resume=True)
"""


def killed(out: Path, moment: str) -> None:
    """A run into `out`, or one that goes on there, in a process that dies at a moment."""
    command = [sys.executable, "-c", KILLED, str(out), str(Path(__file__).parent), moment]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "newest"), [("step", 4), ("checkpoint", 4), ("export", 12)], ids=["step", "checkpoint", "export"]
)
def test_a_killed_run_goes_on_from_the_last_whole_checkpoint(
    whole: Path, tmp_path: Path, moment: str, newest: int
) -> None:
    killed(tmp_path, moment)
    assert checkpoints(tmp_path)[0] == f"step-{newest:08d}.safetensors"
    assert not (tmp_path / "final").exists()
    assert bool(list(tmp_path.rglob(".*.tmp"))) is (moment != "step")
    train(TinyTask, recipe(tmp_path), device="cpu", resume=True)
    assert same(tmp_path / "checkpoints" / END, whole / "checkpoints" / END)
    assert same(tmp_path / "final" / "model.safetensors", whole / "final" / "model.safetensors")
    assert not list(tmp_path.rglob(".*.tmp"))  # what the dead process left is cleared away


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["resume", "init", "replacing"])
def test_an_export_is_not_lost_between_the_two_renames_that_replace_it(
    whole: Path, tmp_path: Path, reader: str
) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    shutil.copytree(whole, out)
    killed(out, "renames")
    final, kept = out / "final", whole / "final" / "model.safetensors"
    assert not final.exists()
    if reader == "resume":
        train(TinyTask, recipe(out), device="cpu", resume=True)
    elif reader == "init":  # nobody has written there since
        train(TinyTask, recipe(more, init=final, steps=1), device="cpu")
        assert (more / "final").is_dir()
    else:
        with pytest.raises(OSError, match="full"), atomic.replacing(final):
            raise OSError("the disk is full")
    assert same(final / "model.safetensors", kept)
    assert not list(out.glob(".*.old.*.tmp"))


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(TinyTask, recipe(tmp_path, signal_step=9), device="cpu")
    newest, _older = checkpoint.found(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:500])
    train(TinyTask, recipe(tmp_path), device="cpu", resume=True)
    assert f"skipping {newest}" in capsys.readouterr().out
    assert same(tmp_path / "final" / "model.safetensors", whole / "final" / "model.safetensors")
    for path in checkpoint.found(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        train(TinyTask, recipe(tmp_path), device="cpu", resume=True)


@pytest.mark.parametrize("step", [0, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, step: int) -> None:
    good = "There is no checkpoint" if step < 4 else r"The last good checkpoint is .*step-00000004\.safetensors"
    with pytest.raises(TrainingError, match=rf"the loss of step {step} is not finite\. {good}"):
        train(TinyTask, recipe(tmp_path, bad_step=step, sample_every=100, log_every=100), device="cpu")
    assert not (tmp_path / "final").exists()
    for path in checkpoint.found(tmp_path / "checkpoints"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


class CliffTask(TinyTask):
    """Halfway, a loss as finite as the others has a gradient that is not."""

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        value, metrics = super().loss(model, batch, progress)
        weight = model.get_parameter("0.weight")
        nothing = (weight - weight.detach()).sum()
        return value + (nothing.sqrt() if progress == 0.5 else nothing), metrics


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_not_taken_for_the_loss(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the gradient of step 6 is not finite\. The last good .*step-00000004"):
        train(CliffTask, recipe(tmp_path, sample_every=100, log_every=100), device="cpu")
    assert not (tmp_path / "final").exists()


class SteepTask(TinyTask):
    """Gradients a million times as large."""

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        value, metrics = super().loss(model, batch, progress)
        return 1e6 * value, metrics


@pytest.mark.parametrize("clip", [0.25, 3.0])
def test_a_step_along_the_gradient_is_no_longer_than_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    start: list[Tensor] = []

    def plain(settings: object, model: nn.Module, pace: object) -> torch.optim.Optimizer:
        start.extend(p.detach().clone() for p in model.parameters())
        return torch.optim.SGD(model.parameters())  # AdamW's steps do not tell how long a gradient was

    monkeypatch.setattr(optimise, "optimiser", plain)
    settings = {"lr": 0.1, "warmup": 0, "decay": "constant", "clip": clip}
    train(SteepTask, recipe(tmp_path, steps=1, optimiser=settings), device="cpu")
    last = load_file(checkpoint.found(tmp_path / "checkpoints")[0])
    names = [name for name, _ in TinyTask(recipe(tmp_path), torch.device("cpu")).build().named_parameters()]
    taken = [last[f"model.{name}"] - before for name, before in zip(names, start, strict=True)]
    assert math.hypot(*(float(step.norm()) for step in taken)) == pytest.approx(0.1 * clip, rel=1e-3)


def test_a_folder_with_a_run_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(TrainingError, match="already holds a run .*--resume"):
        train(TinyTask, recipe(whole), device="cpu")


def test_a_finished_run_resumes_to_itself(whole: Path, tmp_path: Path) -> None:
    before = load_file(whole / "final" / "model.safetensors")
    again = train(TinyTask, recipe(whole), device="cpu", resume=True)
    assert (again.finished, again.step) == (True, 12)
    assert again.figures["norm"] > 0
    assert all(torch.equal(t, before[name]) for name, t in load_file(whole / "final" / "model.safetensors").items())


def test_another_model_cannot_resume(whole: Path) -> None:
    with pytest.raises(TrainingError, match=r"another model: .*0\.weight"):
        train(TinyTask, recipe(whole, width=5), device="cpu", resume=True)


def test_minutes_bound_a_run_and_drive_the_decay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count()  # looked at before the first step and after each, which takes a quarter of a second
    monkeypatch.setattr("zoo.train.loop.time", SimpleNamespace(monotonic=lambda: 0.25 * next(clock)))
    settings = {"steps": None, "minutes": 1.5 / 60, "log_every": 1, "optimiser": {"lr": 1.0, "warmup": 0, "final": 0.0}}
    summary = train(TinyTask, recipe(tmp_path, **settings), device="cpu")
    assert (summary.finished, summary.step, summary.minutes) == (True, 6, 1.5 / 60)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " lr " in line]
    rates = [float(line[line.index("lr") + 1]) for line in lines]
    assert rates == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 6) for step in range(6)], rel=5e-3)


def test_no_gpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="no GPU"):
        train(TinyTask, recipe(tmp_path), device="cuda")


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "there is no device 'gpu'"), ("mps", "cpu or cuda, not on mps")]
)
def test_devices_that_cannot_be(tmp_path: Path, device: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(TinyTask, recipe(tmp_path), device=device)


def test_a_run_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(4), torch.get_num_threads()
    torch.manual_seed(5)
    train(TinyTask, recipe(tmp_path, threads=threads + 1), device="cpu")
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads
    assert float(torch.tensor(1e-40) * 1) > 0, "denormal numbers are numbers again"


def test_the_precision_is_settled_when_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, steps in ((True, 4), (False, 12)):  # as if it went on on another machine
        monkeypatch.setattr(precision, "bf16_is_fast", lambda device, fast=fast: fast)
        train(TinyTask, recipe(tmp_path, autocast="auto", steps=steps), device="cpu", resume=not fast)
        story = json.loads((tmp_path / "final" / "training.json").read_text("utf-8"))
        assert (story["step"], story["recipe"]["autocast"]) == (steps, "bf16")


def test_a_model_without_blocks_is_not_recomputed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="tiny has no blocks that can be computed again: remove recompute = true"):
        train(TinyTask, recipe(tmp_path / "out", recompute=True), device="cpu")


def test_another_optimiser_cannot_resume(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    muon = {"lr": 1e-2, "warmup": 2, "kind": "muon"}
    with pytest.raises(TrainingError, match=r"written by optimiser\.kind=adamw, and cannot be resumed with muon"):
        train(TinyTask, recipe(tmp_path / "out", steps=20, optimiser=muon), device="cpu", resume=True)


def test_what_cannot_be_inspected_loses_nothing(tmp_path: Path) -> None:
    class Blind(TinyTask):
        def inspect(self, model: nn.Module) -> tuple[Pixels | None, dict[str, float]]:
            raise RuntimeError("out of memory")

    for settings, last in (({"sample_every": 4}, 4), ({"sample_every": 100}, 12)):
        out = tmp_path / str(last)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(Blind, recipe(out, **settings), device="cpu")
        assert checkpoints(out)[0] == f"step-{last:08d}.safetensors"


def test_a_warmup_longer_than_the_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(TinyTask, recipe(tmp_path, optimiser={"lr": 1e-2, "warmup": 12}), device="cpu")
    assert "optimiser.warmup = 12 steps: lr is never reached" in capsys.readouterr().out
