"""`zoo compare`: what the library is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Run

USUAL = {
    "n": 1,
    "seed": 0,
    "equal": None,
    "scored": 0,
    "alignment": 0,
    "language": "en",
    "inception": None,
    "repeats": 3,
    "device": "auto",
    "reading": {},
    "progress": False,
}


class Comparing:
    """What stands in for `zoo.comparison.run.compare`, and for what it finds."""

    asked: tuple[Sequence[str], Sequence[str], dict[str, Any]]
    saved: Path

    def __call__(self, models: Sequence[str], prompts: Sequence[str], **settings: Any) -> Comparing:
        self.asked = (models, prompts, settings)
        return self

    def __str__(self) -> str:
        return "a table\n"

    def save(self, folder: Path) -> list[Path]:
        self.saved = folder
        return [folder / "report.html"]


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch) -> Comparing:
    comparing = Comparing()
    monkeypatch.setattr("zoo.comparison.run.compare", comparing)
    return comparing


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-n 3", {"n": 3}),
        ("--seed 4", {"seed": 4}),
        ("--equal time", {"equal": "time"}),
        ("--steps 5", {"steps": 5}),
        ("--guidance 2.5", {"guidance": 2.5}),
        ("--guidance 0", {"guidance": 0.0}),
        ("--negative star", {"negative": "star"}),
        ("--scored 8", {"scored": 8}),
        ("--alignment 2", {"alignment": 2}),
        ("--language zh", {"language": "zh"}),
        ("--inception weights.pth", {"inception": Path("weights.pth")}),
        ("--repeats 1", {"repeats": 1}),
        ("--device cpu", {"device": "cpu"}),
        ("--dtype bfloat16", {"reading": {"dtype": torch.bfloat16}}),
        ("--variant fp16", {"reading": {"variant": "fp16"}}),
        ("--revision v2 --prediction v", {"reading": {"revision": "v2", "prediction": "v"}}),
    ],
)
def test_options_are_heeded(run: Run, comparing: Comparing, options: str, settings: dict[str, object]) -> None:
    status, _, err = run("compare", "a star", "--models", "tiny", "other@ddim:3", *options.split())
    assert (status, err) == (0, "")
    assert comparing.asked == (["tiny", "other@ddim:3"], ["a star"], USUAL | settings)


def test_what_was_found_is_saved_and_printed(run: Run, comparing: Comparing, tmp_path: Path) -> None:
    status, out, _ = run("compare", "a star", "--models", "tiny", "--out", str(tmp_path / "side"))
    assert (status, out) == (0, f"a table\n{tmp_path / 'side' / 'report.html'}\n")
    assert comparing.saved == tmp_path / "side"


def test_prompts_of_the_line_come_before_those_of_the_file(run: Run, comparing: Comparing, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a circle\n\n  绿色的星星\n", "utf-8")
    assert run("compare", "a star", "--prompts", str(tmp_path / "more.txt"), "--models", "tiny")[0] == 0
    assert comparing.asked[1] == ["a star", "a circle", "绿色的星星"]
