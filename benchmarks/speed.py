"""How long one picture takes: cold, as `zoo generate` in a new process, and warm, in a loaded pipeline.

python benchmarks/speed.py [model]
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

PROMPT = "a large pink butterfly on a cream background, cartoon"
COLD, WARM = 3, 5


def seconds(work: Callable[[], object], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def main(model: str = "stable-diffusion-small") -> None:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "zoo", "generate", PROMPT, "-m", model, "-n", "1", "-q", "-o", out]
        cold = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), COLD)

    import torch

    import zoo

    start = time.perf_counter()
    pipe = zoo.load(model)
    loading = time.perf_counter() - start
    pipe(PROMPT, n=1, progress=False)
    warm = seconds(lambda: pipe(PROMPT, n=1, progress=False), WARM)
    eight = seconds(lambda: pipe(PROMPT, n=8, progress=False), 2)
    settings = pipe(PROMPT, n=1, steps=1, progress=False).settings | {"steps": pipe.defaults.steps}

    print(f"{model} on {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{settings['width']} x {settings['height']}, {settings['steps']} steps of {settings['sampler']}")
    print(f"cold `zoo generate`, one image  {median(cold):6.2f} s   (median of {COLD}: {rounded(cold)})")
    print(f"loading the pipeline            {loading:6.2f} s")
    print(f"warm, one image                 {median(warm):6.2f} s   (median of {WARM}: {rounded(warm)})")
    print(f"warm, eight images              {median(eight):6.2f} s")


def rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main(*sys.argv[1:])
