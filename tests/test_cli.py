from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shelf: Path) -> Run:
    return Run(monkeypatch, capsys)


def test_help_has_examples(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in ("list", "generate", "card", "train", "evaluate"):
        assert command in out
        status, told, _ = run(command, "--help")
        assert status == 0
        assert f"\n  zoo {command}" in told, f"zoo {command} --help has no example"


def test_list_and_card(run: Run) -> None:
    assert "tiny\tRandom weights, for tests.\n" in run("list")[1]
    assert run("list", "ti*")[1].splitlines() == ["tiny\tRandom weights, for tests."]
    assert run("card", "tiny")[1].startswith("---\nlicense")


def test_generate(run: Run, tmp_path: Path) -> None:
    arguments = ["-m", "tiny", "-n", "2", "--seed", "4", "--steps", "2", "--sampler", "ddim", "--guidance", "3"]
    arguments += ["--negative", "star", "--device", "cpu", "--spacing", "trailing*2"]
    status, out, err = run("generate", "a red circle", "粉色的蝴蝶", *arguments, "--out", str(tmp_path))
    assert status == 0, err
    paths = [Path(line) for line in out.splitlines()]
    assert len(paths) == 5
    assert set(paths) == set(tmp_path.iterdir())
    with Image.open(paths[1]) as image:
        said = image.text  # type: ignore[attr-defined]
    assert (said["prompt"], said["negative"], said["model"], said["seed"]) == ("a red circle", "star", "tiny", "5")
    settings = json.loads(said["settings"])
    assert (settings["steps"], settings["sampler"], settings["guidance"]) == (2, "ddim", 3.0)
    assert settings["spacing"] == "trailing*2"
    status, out, err = run("generate", "a star", *arguments, "--image", str(paths[0]), "-o", str(tmp_path))
    assert status == 0, err


def test_unknown_words_are_one_line(run: Run, tmp_path: Path) -> None:
    status, _, err = run("generate", "a zeppelin", "-m", "tiny", "-n", "1", "--steps", "1", "-o", str(tmp_path))
    assert status == 0
    assert err == "note: the text encoder does not know 'zeppelin': expect the picture to ignore it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate star -m tinny", "unknown model 'tinny': did you mean 'tiny'"),
        ("generate star -m tiny --sampler dpmp_2m", "unknown sampler 'dpmp_2m'"),
        ("generate star -m tiny --steps 0", "steps must be"),
        ("generate star -m tiny --height 31", "impossible size 31 x 32"),
        ("generate star -m tiny --image nowhere.png", "nowhere.png"),
        ("generate star -m tiny --image pyproject.toml", "is not a picture"),
        ("generate star -m tiny --device mars", "device 'mars' cannot be used"),
        ("generate", "Missing argument"),
        ("generate star --steps many", "Invalid value for '--steps'"),
        ("card tinny", "unknown model"),
        ("evaluate tinny", "unknown model"),
        ("evaluate tiny --scenes 4", "without --calibrate does not heed --scenes"),
        ("evaluate tiny --editing --heldout dev", "--editing and --maps does not heed --heldout"),
        ("evaluate tiny --maps --heldout test", "--editing and --maps does not heed --heldout"),
        ("evaluate tiny --prompts pyproject.toml --per-task 3", "--prompts does not heed --per-task"),
        ("evaluate tiny --prompts pyproject.toml --heldout test", "--prompts does not heed --heldout"),
        ("evaluate --calibrate --steps 3 --maps", "--calibrate does not heed --steps, --maps"),
        ("evaluate --calibrate --per-task 0 --heldout dev", "--calibrate does not heed --per-task, --heldout"),
        ("train nowhere.toml", "nowhere.toml"),
        ("paint", "No such command"),
    ],
)
def test_bad_input_is_told_in_words(run: Run, arguments: str, message: str) -> None:
    status, _, err = run(*arguments.split())
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_evaluate_with_prompts_of_ones_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.jsonl"
    lines = [
        {"prompt": "a red star", "task": "colours", "scene": {"items": [{"shape": "star", "colour": "red"}]}},
        {"prompt": "绿色的星星", "task": "colours", "scene": {"items": [{"shape": "star", "colour": "green"}]}},
    ]
    mine.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    monkeypatch.setattr("zoo.evaluate.run.calibrate", lambda *_: None)  # minutes long, and tested where it belongs
    kept = tmp_path / "judged"
    arguments = ["--prompts", str(mine), "--steps", "1", "--device", "cpu", "--save", str(kept)]
    status, out, err = run("evaluate", "wide", "--json", *arguments)
    assert status == 0, err
    assert str(kept / "failures.png") in err
    assert {path.name for path in kept.iterdir()} == {
        *("report.json", "verdicts.jsonl", "failures.png", "00000.png", "00001.png")
    }
    report = json.loads(out)
    assert report["model"] == "wide"
    assert report["images"] == 2
    assert report["tasks"]["colours"]["seen"] == {"en": 0.0, "zh": 0.0}, "random weights draw no stars"
    assert report["intervals"]["tasks"]["colours"]["seen"]["en"] == [0.0, 0.7935], "one picture says little"
    assert report["settings"] == {"steps": 1}
    status, out, err = run("evaluate", "wide", *arguments)
    assert status == 0, err
    assert "0.0 (0-80)" in out
    assert "most frequent confusions" in out
    mine.write_text('{"prompt": 3}', "utf-8")
    status, _, err = run("evaluate", "wide", "--prompts", str(mine))
    assert status == 2
    assert "mine.jsonl, line 1: expected a prompt" in err


def test_evaluate_calibrates_the_checker(run: Run) -> None:
    status, out, err = run("evaluate", "--calibrate", "--scenes", "4", "--json")
    assert status == 0, err
    record = json.loads(out)
    assert record["scenes"] == 4
    assert set(record) == {"scenes", "true", "clean", "changed", "defects", "blemishes"}
    status, out, err = run("evaluate", "--calibrate", "--scenes", "4")
    assert status == 0, err
    assert out.startswith("checker, 4 scenes")
    assert "yes to true descriptions" in out
    status, _, err = run("evaluate", "--calibrate", "--scenes", "0")
    assert status == 2
    assert "at least 1 scene" in err


def test_evaluate_scores_edits_and_maps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def editing(pipe: object, **settings: object) -> tuple[dict[str, object], list[object]]:
        asked.append(settings)
        shares = {"changed": 0.5, "kept": 0.75, "both": 0.25}
        return {"img2img": {"shape": {"0.6": shares}}, "inpainting": {}, "images": 8, "seconds": 1.0}, []

    monkeypatch.setattr("zoo.evaluate.editing.evaluate", editing)
    monkeypatch.setattr("zoo.evaluate.editing.sheet_rows", lambda made: [("a star", torch.zeros(3, 64, 64))])
    save = tmp_path / "sheets"
    options = ["--editing", "--per-task", "3", "--steps", "2", "--device", "cpu"]
    status, out, err = run("evaluate", "wide", *options, "--save", str(save))
    assert status == 0, err
    assert "img2img, shape, strength 0.6" in out
    assert asked[0] == {"n": 3, "seed": 0, "steps": 2, "progress": False}
    assert (save / "editing.png").is_file()
    status, out, _ = run("evaluate", "wide", *options, "--json")
    assert json.loads(out)["editing"]["images"] == 8
    status, _, err = run("evaluate", "wide", "--maps", "--per-task", "1", "--device", "cpu")
    assert status == 2
    assert "wide takes no layout" in err


def test_generate_with_a_layout_a_model_cannot_take(run: Run, tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "map.png")
    status, _, err = run("generate", "a star", "-m", "tiny", "--layout", str(tmp_path / "map.png"), "--device", "cpu")
    assert status == 2
    assert "tiny takes no layout" in err
