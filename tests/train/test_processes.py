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

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import numpy as np
import torch
from pathlib import Path
from safetensors.torch import save_file
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
        return (model(batch["x"]) + batch["x"]).square().mean(), {}

    def export(self, model, folder):
        save_file(model.state_dict(), folder / "model.safetensors")

settings = {"part": "negate", "batch": int(sys.argv[2]), "autocast": "no", "threads": 1, "log_every": 5}
length = {"minutes": 0.02} if sys.argv[3] == "minutes" else {"steps": 20}
train(Negate, Recipe.model_validate(settings | length | {"out": Path(sys.argv[1])}), device="cpu")
"""


def run(folder: Path, processes: int, *, batch: int = 8, length: str = "steps") -> subprocess.CompletedProcess[str]:
    script = folder / "negate.py"
    script.write_text(SCRIPT, "utf-8")
    alone = [sys.executable]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = (together if processes > 1 else alone) + [
        str(script),
        str(folder / f"out{processes}"),
        str(batch),
        length,
    ]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    for processes in (1, 2):
        done = run(tmp_path, processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished at step 20") == 1  # said by the first process alone
    one, two = (load_file(tmp_path / f"out{n}" / "final" / "model.safetensors") for n in (1, 2))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-5), name
    assert json.loads((tmp_path / "out2" / "final" / "training.json").read_text())["images"] == 160


def test_processes_stop_together_though_their_clocks_differ(tmp_path: Path) -> None:
    done = run(tmp_path, 2, length="minutes")
    assert done.returncode == 0, done.stderr
    assert "finished at step" in done.stdout


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, 2, batch=7)
    assert done.returncode != 0
    assert "cannot share a batch of 7 evenly" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_are_disjoint_and_whole(rank: int) -> None:
    from zoo.train.vae import VaeTask

    batch = {"images": torch.arange(6)}
    shares = [VaeTask.share(None, batch, r, 2)["images"] for r in range(2)]  # type: ignore[arg-type]
    assert sorted(torch.cat(shares).tolist()) == list(range(6))
    assert shares[rank].tolist() == [rank, rank + 2, rank + 4]
