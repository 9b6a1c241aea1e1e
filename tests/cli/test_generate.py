"""`zoo generate`: options that change the picture, and CLIP that chooses among candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

import zoo
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


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """Files of pictures to draw by: a smooth one, a mask of its right half, a painted map."""
    rough = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    half = Image.new("L", (32, 32))
    half.paste(255, (16, 0, 32, 32))
    painted = Image.new("L", (64, 64))
    painted.paste(1, (8, 8, 40, 40))
    pictures = {"IMAGE": Image.fromarray(rough).resize((32, 32), Image.Resampling.BICUBIC), "MASK": half}
    paths = {name: tmp_path / f"{name.lower()}.png" for name in (*pictures, "LAYOUT")}
    for name, picture in {**pictures, "LAYOUT": painted}.items():
        picture.save(paths[name])
    return paths


def drawn(out: str) -> list[bytes]:
    """The pictures that the command wrote, in its order."""
    return [Image.open(path).tobytes() for path in out.splitlines()[:-1]]


def wanted(pipe: Pipeline, **settings: Any) -> list[bytes]:
    return [picture.tobytes() for picture in pipe(RED, **{"n": 1, "steps": 4, "progress": False, **settings}).images]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ("-n 2", {"n": 2}),
        ("--seed 7", {"seed": 7}),
        ("--steps 2", {"steps": 2}),
        ("--sampler euler", {"sampler": "euler"}),
        ("--spacing karras", {"spacing": "karras"}),
        ("--guidance 2", {"guidance": 2.0}),
        ("--negative star", {"negative": "star"}),
        ("--height 48", {"height": 48}),
        ("--width 48", {"width": 48}),
        ("--rescale 0.7", {"rescale": 0.7}),
        ("--threshold 0.9", {"threshold": 0.9}),
        ("--interval 0.5 2", {"interval": (0.5, 2.0)}),
        ("--sampler ddim --eta 0.5", {"eta": 0.5}),
        ("--image IMAGE", {"image": "IMAGE"}),
        ("--image IMAGE --strength 0.25", {"strength": 0.25}),
        ("--image IMAGE --mask MASK", {"mask": "MASK"}),
    ],
)
def test_an_option_changes_the_picture_as_its_setting_does(
    run: Run, tiny: Pipeline, given: dict[str, Path], tmp_path: Path, options: str, last: dict[str, object]
) -> None:
    """The last one; those before it are what it goes with."""
    before = {"sampler": "ddim"} if "eta" in last else {"image": "IMAGE"} if {"strength", "mask"} & set(last) else {}

    def settings(said: dict[str, Any]) -> dict[str, Any]:
        return {name: Image.open(given[value]) if value in given else value for name, value in said.items()}

    words = [str(given.get(word, word)) for word in options.split()]
    asked = ["-m", "tiny", "-n", "1", "--steps", "4", "--device", "cpu", "-o", str(tmp_path / "out"), *words]
    status, out, err = run("generate", RED, *asked)
    assert status == 0, err
    assert drawn(out) == wanted(tiny, **settings({**before, **last}))
    assert drawn(out) != wanted(tiny, **settings(before))


def test_what_is_not_given_is_left_to_the_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None would turn some settings off, so it must not be passed in place of silence."""
    seen: dict[str, object] = {}
    draw = Pipeline.__call__

    def call(pipe: Pipeline, prompts: str, **settings: Any) -> Any:
        seen.update(settings)
        return draw(pipe, prompts, **settings)

    monkeypatch.setattr(Pipeline, "__call__", call)
    asked = ["generate", RED, "-m", "tiny", "-n", "1", "--device", "cpu", "-o", str(tmp_path)]
    assert run(*asked)[0] == 0
    assert seen == {"n": 1, "seed": 0, "progress": False}
    seen.clear()
    assert run(*asked, "--film")[0] == 0
    assert seen.keys() == {"n", "seed", "progress", "callback", "batch"}, "and those that a film needs"


def test_a_layout_says_what_goes_where(run: Run, painter: Path, given: dict[str, Path], tmp_path: Path) -> None:
    asked = ["-m", str(painter), "-n", "1", "--steps", "4", "--device", "cpu", "-o", str(tmp_path / "out")]
    status, out, err = run("generate", RED, *asked, "--layout", str(given["LAYOUT"]))
    assert status == 0, err
    pipe = zoo.load(painter, device="cpu")
    assert drawn(out) == wanted(pipe, layout=Image.open(given["LAYOUT"]))
    assert drawn(out) != wanted(pipe)


def test_a_picture_is_taken_upright(run: Run, tiny: Pipeline, given: dict[str, Path], tmp_path: Path) -> None:
    """As a camera that was held upside down tells it."""
    upside_down = Image.Exif()
    upside_down[ExifTags.Base.Orientation] = 3
    picture = Image.open(given["IMAGE"])
    picture.save(tmp_path / "held.png", exif=upside_down)
    asked = ["-m", "tiny", "-n", "1", "--steps", "4", "--device", "cpu", "--image", str(tmp_path / "held.png")]
    status, out, err = run("generate", RED, *asked, "-o", str(tmp_path / "out"))
    assert status == 0, err
    assert drawn(out) == wanted(tiny, image=picture.transpose(Image.Transpose.ROTATE_180))


def test_a_damaged_picture_is_named(run: Run, given: dict[str, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "half.png"
    damaged.write_bytes(given["IMAGE"].read_bytes()[:200])
    status, _, err = run("generate", RED, *QUICK, "--image", str(damaged))
    assert status == 2
    assert f"{damaged} is not a picture that can be read: " in err


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
