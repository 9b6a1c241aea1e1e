"""`zoo edit`: pictures changed by their meaning, from files to files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import zoo
from tests.cli.conftest import Run
from zoo import registry
from zoo.arguments import as_images
from zoo.dalle2 import edit
from zoo.pipeline import Pipeline

RED, PINK = "a red circle", "a large pink butterfly"
QUICK = ("--steps", "10", "--device", "cpu")
STAGES = {"decoder": {"steps": 10}}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two smooth pictures in files, larger than those of the model."""
    paths = []
    for seed in range(2):
        rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(rough).resize((24, 24), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture
def pipe(both: Path) -> Pipeline:
    return zoo.load(both, device="cpu")


def written(out: str) -> tuple[Tensor, Image.Image]:
    """The pictures that a command tells to have written, [images, 3, height, width] in [0, 1], and the strip."""
    *paths, strip = out.splitlines()
    made = torch.stack([torch.from_numpy(np.array(Image.open(path))).movedim(2, 0) for path in paths])
    return made / 255, Image.open(strip)


def same(a: Tensor, b: Tensor) -> bool:
    """But for the rounding of a PNG."""
    return a.shape == b.shape and float((a - b.clamp(0, 1)).abs().max()) <= 1 / 255


def given(path: Path) -> Image.Image:
    return Image.open(path)


def test_every_command_has_an_example(run: Run) -> None:
    status, told, _ = run("edit", "--help")
    assert status == 0
    for command in ("variations", "interpolate", "diff", "invert"):
        assert command in told
        status, said, _ = run("edit", command, "--help")
        assert status == 0
        assert f"\n  zoo edit {command}" in said


def test_variations(run: Run, pipe: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    arguments = ["-n", "3", "--seed", "5", "--stages", '{"decoder": {"guidance": 3.0}}', *QUICK]
    status, out, err = run("edit", "variations", str(pictures[0]), *arguments, "-o", str(tmp_path / "out"))
    assert status == 0, err
    made, strip = written(out)
    stages = {"decoder": {"guidance": 3.0, "steps": 10}}
    wanted = edit.variations(pipe, given(pictures[0]), 3, seed=5, stages=stages)
    assert same(made, wanted.tensor)
    assert strip.width > 4 * 160, "what was given and three beside it"
    assert set(map(Path, out.splitlines())) == set((tmp_path / "out").iterdir())
    with Image.open(out.splitlines()[1]) as image:
        said = image.text  # type: ignore[attr-defined]
    assert (said["model"], said["seed"]) == ("meaning", "6")
    assert json.loads(said["settings"])["stages"] == json.loads(json.dumps(wanted.settings["stages"]))


def test_edits_of_two_pictures_do_not_overwrite_each_other(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """With the same seed and settings."""
    names = [
        run("edit", "variations", str(path), "-n", "1", *QUICK, "-o", str(tmp_path / "out"))[1].splitlines()
        for path in (*pictures, pictures[0])
    ]
    assert names[0] == names[2]
    assert not set(names[0]) & set(names[1])


def test_variations_from_the_pictures_own_noise(run: Run, pipe: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    asked = ["edit", "variations", str(pictures[0]), "-n", "2", "--eta", "0.5", *QUICK, "-o", str(tmp_path)]
    made, _ = written(run(*asked)[1])
    assert same(made, edit.variations(pipe, given(pictures[0]), 2, eta=0.5, stages=STAGES).tensor)


@pytest.mark.parametrize("inverted", [False, True])
def test_interpolate(run: Run, pipe: Pipeline, pictures: list[Path], tmp_path: Path, inverted: bool) -> None:
    arguments = ["-n", "3", "--seed", "2", *QUICK, *["--inverted"] * inverted, "-o", str(tmp_path)]
    status, out, err = run("edit", "interpolate", *map(str, pictures), *arguments)
    assert status == 0, err
    made, strip = written(out)
    ends = [given(path) for path in pictures]
    assert same(made, edit.interpolate(pipe, *ends, 3, seed=2, inverted=inverted, stages=STAGES).tensor)
    assert strip.width > 5 * 160, "both ends, and three between them"


def test_diff(run: Run, pipe: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    asked = ["edit", "diff", str(pictures[0]), RED, PINK, *QUICK, "-m", "meaning", "-o", str(tmp_path)]
    status, out, err = run(*asked, "--strength", "0.2", "--strength", "0.4")
    assert status == 0, err
    made, strip = written(out)
    wanted = edit.text_diff(pipe, given(pictures[0]), RED, PINK, [0.2, 0.4], stages=STAGES)
    assert same(made, wanted.tensor)
    assert strip.width > 3 * 160
    assert len(run(*asked)[1].splitlines()) == 4 + 1, "four strengths, unless some are said"


def test_invert_tells_how_far_off_it_is(run: Run, pipe: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    found = []
    for refinements in (0, 3):
        asked = ["edit", "invert", str(pictures[0]), "--steps", "3", "--device", "cpu", "-o", str(tmp_path)]
        status, out, err = run(*asked, "--refinements", str(refinements))
        assert status == 0, err
        told = re.fullmatch(r"off by (\S+) of 255 on average, by (\S+) at most\n", err)
        assert told is not None, err
        start = edit.invert(pipe, given(pictures[0]), refinements=refinements, stages={"decoder": {"steps": 3}})
        again = edit.regenerate(pipe, start).tensor
        assert same(written(out)[0], again)
        off = 255 * (again - as_images(given(pictures[0]), (8, 8), 1, 1)).abs()
        assert float(told[1]) == pytest.approx(float(off.mean()), rel=0.05)
        assert float(told[2]) == pytest.approx(float(off.max()), rel=0.05)
        found.append(float(told[2]))
    assert found[1] < found[0], "refined it comes nearer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m tiny", "tiny cannot edit pictures: .* models at hand that can: meaning"),
        ("-m karlo", "karlo cannot edit pictures"),
        ("-m meening", "unknown model 'meening': did you mean 'meaning'"),
        ("--stages [3]", "--stages are settings by the stages' names"),
        ("--stages {", "--stages is not JSON"),
        ("--eta 2", "eta"),
        ("--device mars", "device 'mars' cannot be used"),
    ],
)
def test_bad_input_is_told_in_words(run: Run, pictures: list[Path], arguments: str, message: str) -> None:
    """Of a published model before it is fetched."""
    status, _, err = run("edit", "variations", str(pictures[0]), *arguments.split())
    assert status == 2
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_without_a_model_that_can(
    run: Run, pictures: list[Path], tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "shelves", lambda: [tiny_models])
    status, _, err = run("edit", "invert", str(pictures[0]))
    assert status == 2
    assert "no model at hand can edit pictures: give a DALL-E 2 by --model" in err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"format": 1}', "utf-8")
    assert "is not a valid model config" in run("edit", "invert", str(pictures[0]), "-m", str(damaged))[2]
    assert "is not a picture" in run("edit", "invert", "pyproject.toml")[2]
