"""Candidates ordered by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.dalle2.unclip import towers, write_clip
from zoo.clip import Clip
from zoo.evaluate import rerank as module
from zoo.evaluate.checker import Verdict
from zoo.evaluate.intervals import of_share
from zoo.evaluate.rerank import rerank, scores
from zoo.interface import Representation
from zoo.pipeline import Pipeline
from zoo.result import Result

RED, PINK = "a red circle", "a large pink butterfly"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, vocabulary: bytes) -> Clip:
    return towers(write_clip(tmp_path_factory.mktemp("towers") / "clip", vocabulary))[0]


@pytest.fixture
def result() -> Result:
    """Five made-up pictures of two prompts."""
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (images + torch.linspace(-0.4, 0.4, 5)[:, None, None, None]).clamp(0, 1)
    choices = [{"p7": strength / 10} for strength in range(5)]
    unsafe = (False, True, False, False, True)
    prompts = (RED, RED, RED, PINK, PINK)
    return Result(images, prompts, (3, 4, 5, 3, 4), {"steps": 2, "adapters": choices}, "m", ("",) * 5, unsafe)


def test_the_score_is_the_cosine_of_picture_and_prompt(
    result: Result, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scores(result, clip)
    for row, prompt in enumerate(result.prompts):
        cosine = clip.embed_images(result.tensor[row : row + 1])[0] @ clip.embed_texts([prompt])[0]
        assert float(found[row]) == pytest.approx(float(cosine), abs=1e-5)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    torch.testing.assert_close(scores(result, clip), found)


def test_the_best_of_each_prompt_are_kept_best_first(result: Result, clip: Clip) -> None:
    found = scores(result, clip)
    assert len(set(found.tolist())) == 5
    kept = rerank(result, clip, keep=2)
    rows = [*found[:3].argsort(descending=True)[:2].tolist(), *(3 + found[3:].argsort(descending=True)).tolist()]
    assert torch.equal(kept.tensor, result.tensor[rows])
    assert kept.prompts == (RED, RED, PINK, PINK)
    assert kept.seeds == tuple(result.seeds[row] for row in rows)
    assert kept.unsafe == tuple(result.unsafe[row] for row in rows)
    assert kept.settings == {"steps": 2, "adapters": [{"p7": row / 10} for row in rows]}
    assert rerank(result, clip).tensor.shape[0] == 2


def test_what_is_kept_is_made_again(tiny: Pipeline, clip: Clip) -> None:
    """Of another family: what CLIP looks at are pictures."""
    best = rerank(tiny([RED, PINK], n=3, progress=False), clip)
    assert len(best) == 2
    for row in range(2):
        again = tiny(best.prompts[row], n=1, seed=best.seeds[row], progress=False, **best.settings).tensor[0]
        assert float((again - best.tensor[row]).abs().max()) <= 1 / 255


def test_more_cannot_be_kept_than_there_are(result: Result, clip: Clip) -> None:
    with pytest.raises(ValueError, match="2 candidates for 'a large pink butterfly', of which 3 cannot be kept"):
        rerank(result, clip, keep=3)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        rerank(result, clip, keep=0)


class Half:
    """A pipe whose every other candidate is what CLIP, in the mind of `Oracle`, likes and the checker approves."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int], object]] = []

    def __call__(
        self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **more: object
    ) -> Result:
        self.calls.append((prompts[0], list(seed), more["guidance"]))
        pictures = torch.zeros(n, 3, 32, 32)
        pictures[1::2] = 1.0
        return Result(pictures, (prompts[0],) * n, tuple(seed), {})


class Oracle:
    """A CLIP that likes bright pictures, or dark ones."""

    def __init__(self, likes: float) -> None:
        self.likes = likes

    def encode(self, images: Tensor) -> Representation:
        return Representation(images.mean((1, 2, 3))[:, None], "clip_image", "bright")

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts), 1), self.likes)


@pytest.mark.parametrize(("likes", "best"), [(1.0, 1.0), (-1.0, 0.0)])
def test_what_the_choice_gives_is_measured(monkeypatch: pytest.MonkeyPatch, likes: float, best: float) -> None:
    monkeypatch.setattr(module, "judge", lambda picture, scene: Verdict(bool(picture.mean() > 0.5), {}, ()))
    pipe = Half()
    found = module.measure(pipe, cast(Clip, Oracle(likes)), prompts=30, candidates=4)
    assert (found["one"], found["best"], found["any"]) == (0.5, best, 1)
    assert found["gain"] == best - 0.5
    assert found["best_interval"] == pytest.approx(of_share(int(30 * best), 30), abs=1e-4)
    assert found["gain_interval"] == [best - 0.5] * 2, "it is the same for every prompt"
    assert len(pipe.calls) == 30
    assert all(len(set(seeds)) == 4 and guidance == 1 for _, seeds, guidance in pipe.calls)
    assert sum(prompt.isascii() for prompt, _, _ in pipe.calls) in range(8, 23), "half in English, half in Chinese"
    assert len({seeds[0] for _, seeds, _ in pipe.calls}) == 30, "each is of a scene of its own"
    with pytest.raises(ValueError, match="at least 2 of each"):
        module.measure(pipe, cast(Clip, Oracle(1.0)), candidates=1)


def test_the_interval_of_a_gain_is_that_of_prompts() -> None:
    assert module._around([0.0, 1.0] * 50) == pytest.approx([0.5 - 1.96 * 0.0503, 0.5 + 1.96 * 0.0503], abs=1e-3)
