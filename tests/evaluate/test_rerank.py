"""Candidates ordered by CLIP."""

from __future__ import annotations

import pytest
import torch

from tests.dalle2.unclip import towers, write_clip
from zoo.clip import Clip
from zoo.evaluate import rerank as module
from zoo.evaluate.rerank import rerank, scores
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
