"""How a model is to be read: options of the commands that load one, as `zoo.load` gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.cli.conftest import Run
from zoo import loading
from zoo.pipeline import Pipeline

ALL = ("--dtype float16", "--variant fp16", "--revision v2", "--prediction v")
COMMANDS = {
    "generate star -m tiny": ALL,
    "evaluate tiny": ALL,
    "edit variations PICTURE": ALL[:1],
    "edit interpolate PICTURE PICTURE": ALL[:1],
    "edit diff PICTURE star circle": ALL[:1],
    "edit invert PICTURE": ALL[:1],
    "export tiny out": ALL[1:],
    "lora report style.safetensors -m tiny": ALL[1:],
}
ASKED = {
    "--dtype float16": {"dtype": torch.float16},
    "--dtype bfloat16": {"dtype": torch.bfloat16},
    "--dtype float32": {"dtype": torch.float32},
    "--variant fp16": {"variant": "fp16"},
    "--revision v2": {"revision": "v2"},
    "--prediction v": {"prediction": "v"},
    "--prediction epsilon": {"prediction": "epsilon"},
    "": {},
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `zoo.load` was asked for, besides the model; nothing is loaded."""
    seen: list[dict[str, Any]] = []

    def load(place: object, **options: Any) -> Pipeline:
        seen.append(options)
        raise ValueError("enough seen")

    monkeypatch.setattr(loading, "load", load)
    return seen


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, option) for command, options in COMMANDS.items() for option in ("", *options)),
        ("generate star -m tiny", "--dtype bfloat16"),
        ("generate star -m tiny", "--dtype float32"),
        ("generate star -m tiny", "--prediction epsilon"),
    ],
)
def test_only_what_was_given_is_asked_for(
    run: Run, asked: list[dict[str, Any]], picture: Path, command: str, option: str
) -> None:
    words = [str(picture) if word == "PICTURE" else word for word in command.split()]
    status, _, err = run(*words, *option.split())
    assert (status, err) == (2, "zoo: enough seen\n")
    (options,) = asked
    assert options.pop("device") in ("auto", "cpu")
    assert options == ASKED[option]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--dtype half", "--dtype half is not known: it is one of float32, float16, bfloat16"),
        ("--dtype int8", "--dtype int8 is not known"),
        ("--prediction sample", "--prediction sample is not known: it is one of epsilon, v"),
    ],
)
def test_what_is_not_known_is_told_before_anything_is_loaded(
    run: Run, asked: list[dict[str, Any]], option: str, message: str
) -> None:
    status, _, err = run("generate", "star", "-m", "tiny", *option.split())
    assert status == 2
    assert message in err
    assert not asked


@pytest.mark.parametrize("option", ["--variant fp16", "--revision v2", "--prediction v"])
def test_what_a_model_does_not_heed_is_told(run: Run, option: str) -> None:
    status, _, err = run("generate", "star", "-m", "tiny", *option.split())
    assert status == 2
    name = option.split()[0].removeprefix("--")
    assert f"nothing that is loaded here heeds {name}: leave it out" in err


def test_the_checker_alone_heeds_none(run: Run) -> None:
    status, _, err = run("evaluate", "--calibrate", *" ".join(ALL).split())
    assert status == 2
    assert "--calibrate does not heed --dtype, --variant, --revision, --prediction" in err


def test_a_model_draws_in_the_type_asked_for(run: Run, tiny_models: Path, tmp_path: Path) -> None:
    options = ["-m", "tiny", "-n", "1", "--steps", "4", "--device", "cpu", "--dtype", "bfloat16"]
    status, out, err = run("generate", "a red circle", *options, "-o", str(tmp_path))
    assert status == 0, err
    drawn = np.asarray(Image.open(out.splitlines()[0]))
    for dtype, same in ((torch.bfloat16, True), (torch.float32, False)):
        pipe = zoo.load(tiny_models / "tiny", device="cpu", dtype=dtype)
        wanted = np.asarray(pipe("a red circle", n=1, steps=4, progress=False).images[0])
        assert np.array_equal(drawn, wanted) is same


def test_an_edit_is_made_in_the_type_asked_for(run: Run, picture: Path, tmp_path: Path) -> None:
    options = ["--steps", "2", "--device", "cpu", "--dtype", "bfloat16", "-o", str(tmp_path / "out")]
    for command in (("variations", "-n", "1"), ("invert",)):
        status, out, err = run("edit", command[0], str(picture), *command[1:], *options)
        assert status == 0, err
        assert len(out.splitlines()) == 2
