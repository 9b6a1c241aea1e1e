"""`zoo train`: what the library is asked for, and how a run that ended otherwise than well is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from zoo.train import RecipeError, Summary, TrainingError

RECIPE = "recipes/vae.toml"


class Training:
    """What stands in for `zoo.train.run`: it keeps what it was asked for, and ends as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, list[str], str | None, bool]] = []
        self.error: Exception | None = None
        self.finished = True

    def __call__(self, path: Path, overrides: Sequence[str], *, device: str | None, resume: bool) -> Summary:
        self.asked.append((path, list(overrides), device, resume))
        if self.error is not None:
            raise self.error
        return Summary(self.finished, 3, 6, 0.1, {}, Path("runs/vae"))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    training = Training()
    monkeypatch.setattr("zoo.train.run", training)
    return training


@pytest.mark.parametrize(
    ("options", "overrides", "device", "resume"),
    [
        ("", [], None, False),
        ("--device cuda:1", [], "cuda:1", False),
        ("--resume", [], None, True),
        ("optimiser.lr=3e-4 minutes=40", ["optimiser.lr=3e-4", "minutes=40"], None, False),
        ("--device cpu minutes=40 --resume steps=3", ["minutes=40", "steps=3"], "cpu", True),
    ],
)
def test_options_are_heeded(
    run: Run, training: Training, options: str, overrides: list[str], device: str | None, resume: bool
) -> None:
    assert run("train", RECIPE, *options.split()) == (0, "", "")
    assert training.asked == [(Path(RECIPE), overrides, device, resume)]


def test_an_interruption_is_told_by_the_status(run: Run, training: Training) -> None:
    training.finished = False
    assert run("train", RECIPE) == (130, "", "")


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingError("the loss is nan at step 3"), 1), (RecipeError("no such key: lr"), 2)]
)
def test_what_goes_wrong_is_one_line(run: Run, training: Training, error: Exception, status: int) -> None:
    training.error = error
    assert run("train", RECIPE) == (status, "", f"zoo: {error}\n")
