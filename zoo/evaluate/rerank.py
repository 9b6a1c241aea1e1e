"""Keep the best of many: candidates of any model, ordered by how well CLIP finds their prompts in them.

As DALL-E did it (arXiv 2102.12092, section 2.6), and as it works for every family.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import einsum
from torch import Tensor

from zoo.clip import Clip
from zoo.result import Result

AT_ONCE = 64  # pictures looked at


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
