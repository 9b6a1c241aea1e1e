"""What a comparison takes: the time of 60 prompts, whether a second one finds the same, and memory over many models.

python benchmarks/compare.py [model ...]

Three families draw the same prompts, twice, each time in a new process; the scores of both are compared to the last
digit. Then all models that ship are compared in one process, and each of them in a process of its own: how much more
memory the one takes than the greediest of the others says whether models are released.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

FAMILIES = ("stable-diffusion-small", "imagen-small", "dalle2-small")
PROMPTS, SEED = 60, 11


def prompts() -> list[str]:
    """Sixty prompts of the scored tasks, English and Chinese."""
    from zoo.evaluate.tasks import MEAN_OF, cases

    return list(dict.fromkeys(case.prompt for case in cases(8, SEED, "dev") if case.task in MEAN_OF))[:PROMPTS]


def compared(models: Sequence[str], asked: Sequence[str]) -> tuple[float, float, str]:
    """Seconds, the process's peak memory in MB, and the scores as CSV."""
    import zoo
    from zoo.comparison.table import scores_csv

    start = time.perf_counter()
    found = zoo.compare(models, asked, device="cpu", progress=False)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, scores_csv(found)


def alone(models: Sequence[str], asked: Sequence[str]) -> tuple[float, float, str]:
    """The same, in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compared, models, asked).result()


def main(families: Sequence[str]) -> None:
    import torch

    import zoo

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    asked = prompts()
    (first, _, scores), (second, _, again) = (alone(families, asked) for _ in range(2))
    print(f"{len(families)} models, {len(asked)} prompts   {first / 60:.1f} and {second / 60:.1f} minutes")
    print(f"scores of the second run       {'the same to the digit' if scores == again else 'NOT the same'}")
    models = zoo.list_models()
    _, together, _ = alone(models, asked[:4])
    each = {model: alone([model], asked[:4])[1] for model in models}
    most, model = max((memory, model) for model, memory in each.items())
    print(f"peak of {len(models)} models in turn         {together:.0f} MB")
    print(f"peak of the greediest alone     {most:.0f} MB ({model}), ratio {together / most:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:] or FAMILIES)
