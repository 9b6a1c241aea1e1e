"""`zoo app`: which page is built. How it is served, tests/app/test_command.py tells."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Run
from zoo.app import page
from zoo.app.models import Models


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Models, int]]:
    """What pages were built of, instead of building and serving them."""
    seen: list[tuple[Models, int]] = []

    def build(models: Models, *, at_once: int) -> SimpleNamespace:
        seen.append((models, at_once))
        return SimpleNamespace(block_thread=lambda: None)

    monkeypatch.setattr(page, "build", build)
    monkeypatch.setattr(page, "launch", lambda blocks, **settings: (None, "http://somewhere/", ""))
    return seen


@pytest.mark.parametrize(("options", "at_once"), [((), 2), (("--at-once", "5"), 5)])
def test_visitors_at_once(run: Run, built: list[tuple[Models, int]], options: tuple[str, ...], at_once: int) -> None:
    assert run("app", *options)[0] == 0
    assert built[0][1] == at_once


def test_adapters_are_offered(run: Run, built: list[tuple[Models, int]], tmp_path: Path) -> None:
    sources = {name: str(tmp_path / f"{name}.bin") for name in ("style", "thing")}
    for source in sources.values():
        Path(source).touch()
    asked = [word for source in sources.values() for word in ("--adapter", source)]
    status, _, err = run("app", "--models", "tiny", "other", *asked)
    assert (status, err) == (0, "")
    ((models, _),) = built
    assert models.names == ("tiny", "other")
    assert models.adapters == sources


def test_models_are_loaded_onto_the_device(run: Run, built: list[tuple[Models, int]]) -> None:
    assert run("app", "--models", "tiny", "--device", "mars")[0] == 0
    with pytest.raises(ValueError, match="device 'mars' cannot be used"):
        built[0][0].load("tiny")
