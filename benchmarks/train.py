"""What makes training faster: the U-Net of stable-diffusion-small, trained on for some steps in one way after another.

python benchmarks/train.py [steps]

Each way is the recipe's own training, resumed from the weights that ship, on 2,000 scenes: images a second are those
that it prints itself (the median of its lines after the first half), so that data, averages of weights, optimiser and
exchange between processes are in them. The first way is how the first U-Net of the zoo was trained; ratios are to it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {"batch": 32, "optimiser.kind": "adamw", "compile": "false", "channels_last": "false"}
COMPILED = {"compile": "true", "channels_last": "true"}
WAYS: dict[str, tuple[dict[str, object], int]] = {  # what is changed in PLAIN, and how many processes share a batch
    "as at first": ({}, 1),
    "float32 without autocast": ({"autocast": "no"}, 1),
    "channels-last": ({"channels_last": "true"}, 1),
    "compiled": ({"compile": "true"}, 1),
    "compiled, channels-last": (COMPILED, 1),
    "the built-in attention kernel": ({"kernel": "built-in"}, 1),
    "batches of 96": ({"batch": 96}, 1),
    "batches of 96, Muon": ({"batch": 96, "optimiser.kind": "muon"}, 1),
    "two processes": ({"batch": 96}, 2),
    "two processes, compiled, channels-last": ({"batch": 96} | COMPILED, 2),
    "the same, Muon: the recipe, but for its 128": ({"batch": 96, "optimiser.kind": "muon"} | COMPILED, 2),
}
SPEED = re.compile(r"([\d.]+) images/s")


def main(steps: int = 60) -> None:
    import torch

    from zoo.train.unpack import unpack

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {steps} steps each", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        unpack("stable-diffusion-small", runs)
        loading(runs)
        first = None
        for number, (name, (changes, processes)) in enumerate(WAYS.items()):
            speed = trained(runs, number, changes, processes, steps)
            first = first or speed
            print(f"{name:42} {speed:7.1f} images/s  {speed / first:5.2f}", flush=True)


def settings(runs: Path) -> list[str]:
    """Overrides with which the recipe trains on what was unpacked, and neither stops to look nor to store."""
    final = {"init": "unet", "vae": "vae", "text_encoder": "clip"}
    quiet = [
        "judged=0",
        'prompts=["a red star"]',
        "sample_every=1000000",
        "checkpoint_every=1000000",
        "data.scenes=2000",
    ]
    return [*quiet, *(f"{key}={runs / run / 'final'}" for key, run in final.items())]


def trained(runs: Path, number: int, changes: dict[str, object], processes: int, steps: int) -> float:
    """Images a second of a training in processes of its own; the cores are shared evenly."""
    asked = {**PLAIN, "steps": steps, "log_every": max(1, steps // 12), **changes}
    kernel = asked.pop("kernel", "chosen")
    threads = max(1, (os.cpu_count() or 1) // processes)
    overrides = [*settings(runs), *(f"{key}={value}" for key, value in asked.items()), f"threads={threads}"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    environment = os.environ | {"ZOO_CACHE": str(runs / "cache"), "ACCELERATE_USE_CPU": "true"}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *launch, __file__, "--worker", str(kernel), *overrides, f"out={runs / str(number)}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    speeds = [float(found) for found in SPEED.findall(done.stdout)]
    return median(speeds[len(speeds) // 2 :])


def loading(runs: Path) -> None:
    """Batches a second, made by one thread beside the training."""
    import time

    import numpy as np
    import torch

    from zoo.train.recipe import read_toml, validate
    from zoo.train.unet import UNetRecipe, UNetTask

    os.environ["ZOO_CACHE"] = str(runs / "cache")
    recipe = validate(UNetRecipe, read_toml(ROOT / "recipes" / "unet.toml", settings(runs)))
    task = UNetTask(recipe, torch.device("cpu"))
    taken = []
    for step in range(30):
        start = time.perf_counter()
        task.batch(step, np.random.default_rng([0, step]))
        taken.append(time.perf_counter() - start)
    print(f"{'loading alone':42} {recipe.batch / median(taken):7.0f} images/s", flush=True)


def worker(kernel: str, overrides: list[str]) -> None:
    import torch.nn.functional as F

    from zoo.nn import attention
    from zoo.train import run

    if kernel == "built-in":
        attention.attend = lambda q, k, v, mask=None, *, upcast=False: F.scaled_dot_product_attention(q, k, v, mask)
    run(ROOT / "recipes" / "unet.toml", overrides, device="cpu")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        main(*(int(given) for given in sys.argv[1:2]))
