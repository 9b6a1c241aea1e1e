"""`zoo generate` where CLIP chooses among candidates."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.dalle2.unclip import write_clip
from zoo import film, registry
from zoo.clip import Clip
from zoo.evaluate.rerank import rerank
from zoo.film import Film
from zoo.pipeline import Pipeline

RED, PINK = "a red circle", "a large pink butterfly"
QUICK = ("-m", "tiny", "--steps", "1", "--device", "cpu")


def seeds(out: str) -> list[int]:
    """Of the pictures that the command wrote, in its order."""
    found = []
    for path in out.splitlines()[:-1]:
        with Image.open(path) as image:
            found.append(int(image.text["seed"]))  # type: ignore[attr-defined]
    return found


def test_rerank_keeps_what_clip_likes(run: Run, tiny: Pipeline, tmp_path: Path) -> None:
    status, out, err = run(
        "generate", RED, PINK, *QUICK, "-n", "2", "--rerank", "3", "--seed", "4", "-o", str(tmp_path)
    )
    assert status == 0, err
    drawn = tiny([RED, PINK], n=6, seed=4, steps=1, progress=False)
    assert drawn.seeds[:6] == (4, 5, 6, 7, 8, 9)
    best = rerank(drawn, Clip.load(registry.clip()), keep=2)
    assert seeds(out) == list(best.seeds)
    assert seeds(out) != [4, 5, 4, 5], "others than the first were chosen"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RED, "--rerank", "0"), "--rerank draws K candidates for each image: at least 1, not 0"),
        ((RED, "", "--rerank", "2"), "--rerank chooses by the prompt, but one of these is empty"),
        ((RED, "--adapter", ":0.5"), "an adapter is named by its file, folder or hub id"),
        ((RED, "--adapter", "none.safetensors"), "there is no adapter 'none.safetensors'"),
    ],
)
def test_what_cannot_be(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = run("generate", *arguments, *QUICK)
    assert status == 2
    assert message in err


def test_what_clip_cannot_read_is_not_drawn_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: bytes, tiny_models: Path
) -> None:
    """Of a model whose text encoder reads more than CLIP, or where there is no CLIP."""
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("drawn"))
    write_clip(tmp_path / registry.CLIP, vocabulary, window=6)
    monkeypatch.setattr(registry, "shelves", lambda: [tmp_path, tiny_models])
    status, _, err = run("generate", PINK + " on a white background", *QUICK, "--rerank", "2")
    assert status == 2
    assert "the text encoder reads at most 4: shorten" in err
    monkeypatch.setattr(registry, "shelves", lambda: [tiny_models])
    status, _, err = run("generate", RED, *QUICK, "--rerank", "2")
    assert status == 2
    assert "the zoo's CLIP, clip-small, which scores pictures, is on none" in err


def test_what_cannot_be_filmed_is_not_drawn_either(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "record", lambda pipe, prompts, **settings: (pipe(prompts, **settings), [Film(())]))
    status, _, err = run("generate", RED, *QUICK, "-n", "1", "-o", str(tmp_path / "out"), "--film")
    assert status == 2
    assert "nothing to film" in err
    assert not (tmp_path / "out").exists()
