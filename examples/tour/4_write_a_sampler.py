"""Write a sampler in twenty lines, and use it.

A sampler is a generator function. It gets `predict(x, t)`, whose x0 is the clean estimate; the state x, pure noise; a
grid of points from noisy to clean, each with time t and levels alpha and sigma (a state is alpha * data + sigma *
noise); and a source of random numbers. It yields every step. Nothing in it knows of latents, pixels, prompts or
guidance, so it serves every model of the zoo.
"""

import math
from collections.abc import Iterator

from torch import Tensor

import zoo
from zoo.diffusion.guidance import Predict
from zoo.diffusion.samplers import SAMPLERS, Noise, transfer
from zoo.diffusion.spacing import Grid
from zoo.interface import Step


def restart(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Restart sampling (arXiv 2306.14878), once: Euler's method down, half of the way up by noise, and down.

    The noise contracts the errors that the first way down has gathered.
    """
    steps = list(grid.pairs())
    middle, end = len(steps) // 2, len(steps) - 1
    for i, a, b in steps[:end]:
        x0 = predict(x, a.t).x0
        x = transfer(x, x0, a, b)
        yield Step(i, a.t, x, x0)
    low, high = steps[end][1], steps[middle][1]
    shrink = high.alpha / low.alpha  # what is left of the data on the way up; noise fills what is missing to sigma
    x = shrink * x + math.sqrt(high.sigma**2 - (shrink * low.sigma) ** 2) * noise(middle)
    for i, a, b in steps[middle:]:
        x0 = predict(x, a.t).x0
        x = transfer(x, x0, a, b)
        yield Step(i, a.t, x, x0)


SAMPLERS["restart"] = restart  # in the library this is one line of the table, and its tests cover it at once

MODEL = "stable-diffusion-small"
pipe = zoo.load(MODEL)
walked = []
drawn = pipe(
    "a large pink butterfly, cartoon",
    n=4,
    sampler="restart",
    steps=8,
    callback=lambda stage, step: walked.append(round(step.t)),  # sees each step, and ends the walk if it returns True
)
print("times walked:", *walked)
drawn.save("outputs/tour/restart")

# Beside Euler with as many evaluations of the network as it takes: 7 steps down and 4 again.
prompts = ["a large pink butterfly, cartoon", "two blue fish on a white background"]
print(zoo.compare([f"{MODEL}@restart:8", f"{MODEL}@euler:11"], prompts, n=2, repeats=1))
