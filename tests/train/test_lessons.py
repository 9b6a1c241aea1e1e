"""Runs that learned the same thing in different ways stand in one table, each measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import zoo
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import Prefix
from zoo.evaluate.personalisation import Contestant
from zoo.tensors import read
from zoo.train import lessons


@pytest.fixture
def runs(shelf: Path, tmp_path: Path) -> dict[str, Path]:
    """Three runs that adapt the tiny model: what they left, as training writes it."""
    unet = zoo.load("tiny", device="cpu").adaptable()["unet"].module
    lora, prefix = LoRA.build(unet, ["*.to_q"]), Prefix.build(unet, ["*"], length=2)
    made = {}
    for name, method, about in (
        ("creatures-lora", "lora", "creatures"),
        ("p7-lora", "lora", "p7"),
        ("p7-both", "lora+prefix", "p7"),
    ):
        made[name] = final = tmp_path / "runs" / name / "final"
        write(final / "lora.safetensors", {"unet": lora})
        if method != "lora":
            prefix.save(final / "prefix.safetensors", "unet", torch.float16)
        recipe = {"model": "tiny", "method": method, "pictures": f"examples/{about}"}
        story = {"recipe": recipe, "step": 3, "images": 6, "minutes": 2.1}
        story |= {"before": {"step": 2, "images": 4, "minutes": 0.5}}  # which its weights had cost already
        (final / "training.json").write_text(json.dumps(story), "utf-8")
    return made


def test_every_run_is_measured_once_and_told(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def score(one: Contestant, lesson: str, *, steps: int | None) -> float:
        assert steps == 3
        asked.append((one.name, lesson))
        return 0.5 + 0.1 * len(asked)

    monkeypatch.setattr(lessons, "score", score)
    saved = tmp_path / lessons.SAVED
    given = ["lessons", *map(str, runs.values()), "--steps", "3", "--save", str(saved)]
    monkeypatch.setattr("sys.argv", given)
    lessons.main()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1:4] for row in rows[2:]] == [
        [" p7 ", " lora ", " 0.700 "],
        [" p7 ", " lora+prefix ", " 0.800 "],
        [" creatures ", " lora ", " 0.600 "],
    ]
    said = json.loads(saved.read_text("utf-8"))
    held = [sum(t.numel() for f in run.glob("*.safetensors") for t in read(f).values()) for run in runs.values()]
    assert [row["parameters"] for row in said] == [held[1], held[2], held[0]]
    assert said[1]["bytes"] == sum(file.stat().st_size for file in runs["p7-both"].glob("*.safetensors"))
    assert all(row["milliseconds"] > 0 for row in said)
    assert "| 3 |" in rows[2]
    lessons.main()
    assert len(asked) == 3, "nothing has changed since"
    page = tmp_path / lessons.PAGE
    page.parent.mkdir()
    page.write_text("".join(lessons.TABLE.marks), "utf-8")
    assert lessons.TABLE.stale(tmp_path)
    lessons.TABLE.write(tmp_path)
    assert not lessons.TABLE.stale(tmp_path)
    monkeypatch.setattr(lessons, "score", lambda one, lesson, *, steps: 0.25)
    monkeypatch.setattr("sys.argv", ["lessons", str(runs["p7-lora"]), "--steps", "4", "--save", str(saved)])
    lessons.main()
    assert [row["score"] for row in json.loads(saved.read_text("utf-8"))] == [0.25, 0.8, 0.6], "in other steps"


def test_one_run_a_lesson_and_method(runs: dict[str, Path], tmp_path: Path) -> None:
    again = shutil.copytree(runs["p7-lora"], tmp_path / "again")
    with pytest.raises(ValueError, match=r"again and .* both learned p7 by lora: give one"):
        lessons.measured([runs["p7-lora"], again], 4, tmp_path / "saved.json")


def test_what_is_no_lesson_is_refused(runs: dict[str, Path]) -> None:
    story = runs["p7-lora"] / "training.json"
    for change, said in (
        ({"pictures": "my/cat"}, "it learned cat by lora"),
        ({"method": "full"}, "it learned p7 by full"),
    ):
        recipe = {"model": "tiny", "method": "lora", "pictures": "examples/p7"} | change
        story.write_text(json.dumps({"recipe": recipe, "step": 3, "images": 6, "minutes": 1.0}), "utf-8")
        with pytest.raises(ValueError, match=said):
            lessons.measured([runs["p7-lora"]])
