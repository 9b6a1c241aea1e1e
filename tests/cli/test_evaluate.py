"""`zoo evaluate`: what the library is asked for, and scores of a model that takes maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run
from zoo.pipeline import Pipeline

HOW = {"sampler": "ddim", "guidance": 3.0, "steps": 2}
SAID = ("--sampler", "ddim", "--guidance", "3", "--steps", "2")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was to be scored, by what was to score it, instead of scoring."""
    seen: dict[str, Any] = {}

    def scores(pipe: Pipeline, **settings: object) -> dict[str, object]:
        seen["run"] = (pipe.name, settings)
        return {"model": pipe.name}

    def calibrate(*given: int) -> dict[str, object]:
        seen["calibration"] = given
        return {}

    monkeypatch.setattr("zoo.evaluate.run.evaluate", scores)
    monkeypatch.setattr("zoo.evaluate.calibration.calibrate", calibrate)
    for name in ("editing", "maps"):

        def inputs(pipe: Pipeline, name: str = name, **settings: object) -> tuple[dict[str, object], list[object]]:
            seen[name] = (pipe.name, settings)
            return {}, []

        monkeypatch.setattr(f"zoo.evaluate.{name}.evaluate", inputs)
    return seen


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ((), {}),
        (("--seed", "4"), {"seed": 4}),
        (("--heldout", "dev"), {"heldout": "dev"}),
        (("--per-task", "7"), {"per_task": 7}),
        (("--prompts", "mine.jsonl"), {"prompts": Path("mine.jsonl")}),
        (("--save", "judged"), {"save": Path("judged")}),
        (("--sampler", "ddim"), {"sampler": "ddim"}),
        (("--guidance", "0"), {"guidance": 0.0}),
        (SAID, HOW),
    ],
)
def test_options_are_heeded(
    run: Run, asked: dict[str, Any], options: tuple[str, ...], settings: dict[str, object]
) -> None:
    status, out, err = run("evaluate", "other", "--json", "--device", "cpu", *options)
    assert (status, out, err) == (0, '{"model": "other"}\n', "")
    usual = {"per_task": 100, "seed": 0, "heldout": "test", "prompts": None, "save": None, "progress": False}
    assert asked == {"run": ("other", usual | settings)}


@pytest.mark.parametrize("name", ["editing", "maps"])
def test_options_are_heeded_where_pictures_and_maps_are_given(run: Run, asked: dict[str, Any], name: str) -> None:
    options = ("--seed", "4", "--per-task", "7", *SAID)
    status, _, err = run("evaluate", "other", f"--{name}", "--json", "--device", "cpu", *options)
    assert (status, err) == (0, "")
    assert asked == {name: ("other", {"n": 7, "seed": 4, "progress": False, **HOW})}


def test_the_checker_is_measured_on_other_scenes_with_another_seed(run: Run, asked: dict[str, Any]) -> None:
    assert run("evaluate", "--calibrate", "--json")[0] == 0
    assert asked == {"calibration": (300, 0)}
    assert run("evaluate", "--calibrate", "--scenes", "5", "--seed", "4", "--json")[0] == 0
    assert asked == {"calibration": (5, 4)}


def test_the_device_is_heeded(run: Run, asked: dict[str, Any]) -> None:
    status, _, err = run("evaluate", "tiny", "--device", "mars")
    assert status == 2
    assert "device 'mars' cannot be used" in err
    assert not asked


def test_maps(run: Run, painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The window of this model is too short for true captions.
    monkeypatch.setattr("zoo.evaluate.maps.phrase", lambda *given: "a large red circle")
    options = ["--maps", "--per-task", "1", "--steps", "1", "--device", "cpu", "--save", str(tmp_path / "sheets")]
    status, out, err = run("evaluate", str(painter), *options)
    assert status == 0, err
    assert out.startswith("4 images")
    with Image.open(tmp_path / "sheets" / "maps.png") as sheet:
        assert sheet.width > 64
    found = json.loads(run("evaluate", str(painter), *options, "--json")[1])
    assert found["maps"]["scenes"] == 2
    assert set(found["maps"]["kept"]) == {"seen", "held_out"}
