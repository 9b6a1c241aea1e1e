"""Two processes that share each batch train what one trains on the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zoo.train import checkpoint, optimise, run
from zoo.train.task import Task

ROOT = Path(__file__).parents[2]
NEGATE = """
import sys
import numpy as np
import torch
from pathlib import Path
from safetensors.torch import save_file
from zoo.diffusion import draws
from zoo.train.loop import train
from zoo.train.recipe import Recipe
from zoo.train.task import Task

class Negate(Task):
    recipe_type = Recipe

    def build(self):
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))

    def batch(self, step, rng):
        return {"x": torch.from_numpy(rng.standard_normal((self.recipe.batch, 6), dtype=np.float32))}

    def loss(self, model, batch, progress):
        x = batch["x"]
        return (model(x + draws.randn(x.shape)) + x).square().mean(), {}

    def export(self, model, folder):
        save_file(model.state_dict(), folder / "model.safetensors")

settings = {"part": "negate", "batch": int(sys.argv[2]), "autocast": "no", "threads": 1, "log_every": 5}
settings["optimiser"] = {"lr": 0.01, "warmup": 0}
length = {"minutes": 0.02} if sys.argv[3] == "minutes" else {"steps": 20}
train(Negate, Recipe.model_validate(settings | length | {"out": Path(sys.argv[1])}), device="cpu")
"""
# Steps of plain gradient descent: Adam's are as large where a gradient is nothing but rounding, as of a key's bias.
PART = """
import sys
import torch
from zoo.train import cache, optimise, run, vae

cache.PROBED, vae.FRESH = 2, 4
optimise.optimiser = lambda recipe, model, pace: torch.optim.SGD(model.parameters())
run(sys.argv[1], sys.argv[2:], device="cpu")
"""
COMMON = ["steps=6", "batch=4", "autocast=no", "optimiser.lr=0.5", "optimiser.warmup=0", "optimiser.decay=constant"]
OWN = {"unet": ["judged=0", "dropout=0.5"], "vae": ["crop=32", "crop_until=0.5", "turned=0.5", "noise=0.2"]}
MOVED, SAME = 1e-3, 1e-5
# For several processes of one machine it knows only "--multi_gpu", also where ACCELERATE_USE_CPU has them use none.
LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
LAUNCHER += ("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no")


def launched(script: str, *arguments: str, processes: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in one process, or in the two of `accelerate launch`."""
    path = folder / "script.py"
    path.write_text(script, "utf-8")
    command = [sys.executable, *(LAUNCHER if processes > 1 else []), str(path), *arguments]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=300)


def negate(folder: Path, processes: int, *, batch: int = 8, length: str = "steps") -> subprocess.CompletedProcess[str]:
    out = folder / f"out{processes}"
    return launched(NEGATE, str(out), str(batch), length, processes=processes, folder=folder)


def check_same(folder: Path) -> None:
    """The last checkpoints of out1 and out2 agree, and weights in them have moved away from their average."""
    one, two = (load_file(checkpoint.found(folder / f"out{n}" / "checkpoints")[0]) for n in (1, 2))
    assert one.keys() == two.keys()
    model = {name.removeprefix("model."): tensor for name, tensor in one.items() if name.startswith("model.")}
    assert max(float((tensor - one[f"ema.{name}"]).abs().max()) for name, tensor in model.items()) > MOVED
    apart = {name: float((one[name].float() - two[name].float()).abs().max()) for name in one}
    assert max(apart.values()) < SAME, {name: by for name, by in apart.items() if by >= SAME}


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    for processes in (1, 2):
        done = negate(tmp_path, processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished at step 20") == 1  # said by the first process alone
    check_same(tmp_path)
    assert json.loads((tmp_path / "out2" / "final" / "training.json").read_text())["images"] == 160


@pytest.mark.slow
@pytest.mark.usefixtures("same_cache")
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_two_processes_train_the_part_that_one_trains(home: Path, part: str, tmp_path: Path) -> None:
    """Noise, times, dropout, windows and hues are those of the whole batch, whoever draws them."""
    between = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"] if part == "unet" else []
    for processes in (1, 2):
        overrides = [f"out={tmp_path / f'out{processes}'}", *between, *COMMON, *OWN[part]]
        done = launched(PART, str(home / f"{part}.toml"), *overrides, processes=processes, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("2 processes of" in done.stdout) is (processes == 2)
    check_same(tmp_path)


@pytest.mark.usefixtures("same_cache")
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_batch_in_parts_trains_what_the_whole_trains(
    home: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimise, "optimiser", lambda recipe, model, pace: torch.optim.SGD(model.parameters()))
    between = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"] if part == "unet" else []
    for parts in (1, 2):
        own = [f"out={tmp_path / f'out{parts}'}", f"accumulate={parts}", *between, *COMMON, *OWN[part]]
        own += ["noise=0"] * (part == "vae")  # which is a share of what a part of the batch spreads
        run(home / f"{part}.toml", own, device="cpu")
    check_same(tmp_path)


def test_processes_stop_together_though_their_clocks_differ(tmp_path: Path) -> None:
    done = negate(tmp_path, 2, length="minutes")
    assert done.returncode == 0, done.stderr
    assert "finished at step" in done.stdout


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = negate(tmp_path, 2, batch=7)
    assert done.returncode != 0
    assert "cannot share a batch of 7 evenly" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_are_disjoint_and_whole(rank: int) -> None:
    batch = {"images": torch.arange(6)}
    shares = [Task.share(None, batch, r, 2)["images"] for r in range(2)]  # type: ignore[arg-type]
    assert sorted(torch.cat(shares).tolist()) == list(range(6))
    assert shares[rank].tolist() == [rank, rank + 2, rank + 4]
