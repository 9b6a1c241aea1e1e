"""Keep the best of many: candidates of any model, ordered by how well CLIP finds their prompts in them.

As DALL-E did it (arXiv 2102.12092, section 2.6), and as it works for every family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Literal, TypedDict

import numpy as np
import torch
from einops import einsum
from torch import Tensor

from zoo.clip import Clip
from zoo.evaluate.checker import judge
from zoo.evaluate.intervals import Z, of_share
from zoo.evaluate.judged import Pipe
from zoo.evaluate.tasks import cases
from zoo.result import Result

AT_ONCE = 64  # pictures looked at
LEAST = 13  # prompts that one scene a task makes: tasks and splits, each scene in one language
RERANKED = 7_000  # begins the seeds of the prompts that are reranked: other scenes than those of scores


def scores(result: Result, clip: Clip) -> Tensor:
    """The cosine of each picture's CLIP embedding and its prompt's, [images] in [-1, 1], float32 on the CPU.

    Raises:
        ValueError: a prompt is longer than the CLIP's window.
    """
    prompts = list(dict.fromkeys(result.prompts))
    texts = clip.embed_texts(prompts).float().cpu()
    images = torch.cat([clip.encode(some).data.float().cpu() for some in result.tensor.split(AT_ONCE)])
    own = texts[[prompts.index(prompt) for prompt in result.prompts]]
    return einsum(images, own, "image width, image width -> image")


def rerank(result: Result, clip: Clip, keep: int = 1) -> Result:
    """The `keep` pictures of each prompt that CLIP finds most like it, best first: `rerank(pipe(prompts, n=16), clip)`.

    Prompts stay in their order; pictures of one prompt are ranked together, also if it was asked for twice. What is
    left is made again as before: every picture keeps its seed and its settings.

    Raises:
        ValueError: fewer candidates than are to be kept, or a prompt that is longer than the CLIP's window.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1 picture for each prompt, not {keep}")
    found, rows = scores(result, clip).tolist(), list[int]()
    for prompt in dict.fromkeys(result.prompts):
        mine = [i for i, asked in enumerate(result.prompts) if asked == prompt]
        if len(mine) < keep:
            raise ValueError(
                f"there are {len(mine)} candidates for {prompt!r}, of which {keep} cannot be kept: draw more"
            )
        rows += sorted(mine, key=lambda i: -found[i])[:keep]  # of equals, the first
    return _picked(result, rows)


class Reranked(TypedDict):
    """Shares of right pictures with their 95 % intervals [low, high], over prompts.

    one: of a candidate as it comes, the mean of all; best: of the candidate that CLIP finds most like its prompt; any:
    of prompts that have a right candidate at all. gain: best - one, by the differences of the same prompts.
    """

    one: float
    one_interval: list[float]
    best: float
    best_interval: list[float]
    any: float
    any_interval: list[float]
    gain: float
    gain_interval: list[float]
    prompts: int
    candidates: int
    guidance: float


def measure(
    pipe: Pipe,
    clip: Clip,
    *,
    prompts: int = 100,
    candidates: int = 8,
    guidance: float = 1.0,
    heldout: Literal["dev", "test"] = "dev",
    seed: int = 0,
) -> Reranked:
    """What CLIP's choice among `candidates` gives, of prompts drawn from all tasks, seen and held out, both languages.

    Each is of a scene of its own, so that the intervals are those of independent prompts.

    guidance: 1 is off, where candidates differ most.

    Raises:
        ValueError: fewer than 2 prompts or candidates, or a prompt that is longer than the CLIP's window.
    """
    if prompts < 2 or candidates < 2:
        raise ValueError(f"{prompts} prompts of {candidates} candidates cannot be compared: at least 2 of each")
    told = cases(-(-prompts // LEAST), seed=RERANKED + seed, heldout=heldout)  # each scene in English, then Chinese
    every = [told[i + i // 2 % 2] for i in range(0, len(told), 2)]
    asked = [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:prompts]]
    share, chosen = list[float](), list[bool]()
    for case in asked:
        seeds = [case.seed + j for j in range(candidates)]
        made = pipe([case.prompt], n=candidates, seed=seeds, progress=False, guidance=guidance).tensor.float().cpu()
        right = [judge(picture, case.scene).ok for picture in made]
        likeness = (clip.encode(made).data @ clip.embed_texts([case.prompt])[0]).float()
        share.append(sum(right) / candidates)
        chosen.append(right[int(likeness.argmax())])
    gains = [best - one for best, one in zip(chosen, share, strict=True)]
    return Reranked(
        one=round(mean(share), 4),
        one_interval=_around(share),
        best=round(mean(chosen), 4),
        best_interval=[round(end, 4) for end in of_share(sum(chosen), prompts)],
        any=round(mean(one > 0 for one in share), 4),
        any_interval=[round(end, 4) for end in of_share(sum(one > 0 for one in share), prompts)],
        gain=round(mean(gains), 4),
        gain_interval=_around(gains),
        prompts=prompts,
        candidates=candidates,
        guidance=guidance,
    )


def _around(values: Sequence[float]) -> list[float]:
    """The 95 % interval of a mean over independent prompts, by the normal distribution."""
    half = Z * stdev(values) / len(values) ** 0.5
    return [round(mean(values) - half, 4), round(mean(values) + half, 4)]


def _picked(result: Result, rows: list[int]) -> Result:
    settings = dict(result.settings)
    if isinstance(adapters := settings.get("adapters"), list):  # each picture has its own
        settings["adapters"] = [adapters[i] for i in rows]
    return replace(
        result,
        tensor=result.tensor[rows],
        prompts=tuple(result.prompts[i] for i in rows),
        seeds=tuple(result.seeds[i] for i in rows),
        settings=settings,
        negatives=tuple(result.negatives[i] for i in rows) if result.negatives else (),
        unsafe=tuple(result.unsafe[i] for i in rows) if result.unsafe else (),
    )
