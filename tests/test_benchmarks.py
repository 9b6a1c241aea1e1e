"""Every benchmark still runs: at its smallest, and in this process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import zoo
from tests.app.conftest import write_lora
from tests.cli.conftest import Run
from zoo.pipeline import Pipeline
from zoo.registry import list_adapters
from zoo.train.recipe import read_toml, validate
from zoo.train.unet import UNetRecipe

FOLDER = Path(__file__).parents[1] / "benchmarks"
Bench = Callable[..., ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A benchmark as a module, with some of its names changed."""

    def bench(name: str, **changes: object) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for what their fields are
        spec.loader.exec_module(module)
        for changed, value in changes.items():
            monkeypatch.setattr(module, changed, value)
        return module

    return bench


def here(work: Callable[..., Any], *arguments: Any) -> Any:
    """Instead of in a process of its own."""
    return work(*arguments)


def test_all_are_tried() -> None:
    said = Path(__file__).read_text("utf-8")
    assert [path.stem for path in FOLDER.glob("*.py") if f'bench("{path.stem}"' not in said] == []


def test_adapt(
    bench: Bench, tiny: Pipeline, tmp_path: Path, tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt = bench("adapt", SIDE=8, CHANNELS=(16,) * 4, memory=lambda device: 7)
    lora = write_lora(tiny, tmp_path / "loud.safetensors")
    assert adapt.shipped(str(tiny_models / "tiny"), str(lora), 1, "cpu") > 0
    assert adapt.steps(1, 1, "cpu") > 0
    assert "merged" in capsys.readouterr().out
    for way in adapt.WAYS:
        adapt.training(1, 1, way)
    assert capsys.readouterr().out.split() == ["0", "0"], "the bytes of both ways"


def test_adapt_tells_what_is_above_its_limit(bench: Bench) -> None:
    measured: list[str] = []
    faked = {"trainer": lambda *how: None, "steps": lambda *how: 1.0, "alone": lambda *how: 1000}
    adapt = bench("adapt", rounds=lambda ways, *how: dict.fromkeys(ways, 1.0), **faked)
    adapt.shipped = lambda name, *how: measured.append(name) or 1.01
    adapt.main(check=True)
    assert set(measured) == {name for name in zoo.list_models() if list_adapters(name)} != set()
    adapt.shipped = lambda name, *how: 1.03
    adapt.main()
    with pytest.raises(
        SystemExit, match="above the limit: imagen-small with creatures merged takes 1.030, at most 1.02"
    ):
        adapt.main(check=True)


def test_compare(
    bench: Bench, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = bench("compare", PROMPTS=1, alone=None)
    monkeypatch.setattr(compare, "alone", compare.compared)
    monkeypatch.setattr(zoo, "list_models", lambda: ["tiny"], raising=False)
    compare.main(["tiny"])
    assert "the same to the digit" in capsys.readouterr().out


def test_efficient_unet(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unet = bench("efficient_unet", SIZES=(16,), BATCH=1, STEPS=1, REPEATS=1, alone=here, peak=count().__next__)
    monkeypatch.setattr(unet, "SR_256", unet.SMALL)
    unet.compare()
    assert "16 pixels" in capsys.readouterr().out
    assert unet.full_size(unet.SMALL, 16)["std"] > 0


def test_published(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    published = bench("published", STEPS=3, alone=here)
    monkeypatch.setattr(sys, "argv", ["published.py", "--width", "32", "--side", "64", "--repeats", "1", "--json"])
    published.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["apart"] <= 2
    assert said["ratio"].keys() == said["zoo"].keys()


def test_speed(bench: Bench, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, asked = Run(monkeypatch, capsys), list[list[str]]()

    def command(command: list[str], **how: object) -> None:
        asked.append(command)
        assert run(*command[3:])[0] == 0

    speed = bench("speed", COLD=1, WARM=1, PROMPT="a red star")
    monkeypatch.setattr(subprocess, "run", command)
    speed.main("tiny")
    assert [command[1:4] for command in asked] == [["-m", "zoo", "generate"]]
    assert "32 x 32, 3 steps" in capsys.readouterr().out


def test_train(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way is one that the recipe can be trained in."""
    train, asked = bench("train"), list[list[str]]()

    def command(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "9 images/s\n10.5 images/s\n11.5 images/s\n", "")

    monkeypatch.setattr(subprocess, "run", command)
    for number, (changes, processes) in enumerate(train.WAYS.values()):
        assert train.trained(tmp_path, number, changes, processes, 12) == 11.0
    for command_ in asked:
        worker = command_.index("--worker")
        recipe = validate(UNetRecipe, read_toml(train.ROOT / "recipes" / "unet.toml", command_[worker + 2 :]))
        assert recipe.steps == 12
