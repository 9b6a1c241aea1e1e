"""`zoo app` and `zoo generate --film`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from tests.cli.conftest import Run
from zoo.app import page


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shelf: Path) -> Run:
    return Run(monkeypatch, capsys)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """With which settings the page was served, instead of serving it."""
    seen: dict[str, Any] = {}

    def launch(blocks: gr.Blocks, **settings: Any) -> tuple[None, str, str]:
        seen.update(settings, blocks=blocks)
        return None, "http://somewhere/", ""

    monkeypatch.setattr(page, "launch", launch)
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: None)
    return seen


def test_the_page_is_for_this_machine_and_needs_no_login(run: Run, served: dict[str, Any]) -> None:
    status, out, err = run("app", "--device", "cpu")
    assert (status, err) == (0, "")
    assert "http://somewhere/" in out
    assert (served["server_name"], served["server_port"], served["auth"]) == ("127.0.0.1", 7860, None)


def test_a_login_and_models_are_as_asked(run: Run, served: dict[str, Any], shelf: Path) -> None:
    said = ["--models", "tiny", str(shelf / "other"), "--host", "0.0.0.0", "--user", "me", "--password", "secret"]
    status, _, err = run("app", *said, "--port", "8000")
    assert (status, err) == (0, "")
    assert (served["server_name"], served["server_port"], served["auth"]) == ("0.0.0.0", 8000, ("me", "secret"))
    shown = [block for block in served["blocks"].blocks.values() if getattr(block, "elem_id", None) == "models"]
    assert [choice[0] for choice in shown[0].choices] == ["tiny", "other"]


def test_an_open_page_is_told(run: Run, served: dict[str, Any]) -> None:
    status, _, err = run("app", "--host", "0.0.0.0")
    assert status == 0
    assert err.startswith("note: everyone who reaches this machine can use the page")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("app --user me", "a login is a name and a password"),
        ("app --password secret", "a login is a name and a password"),
        ("app --models tinny", "unknown model 'tinny'"),
        ("app --at-once 0", "Invalid value for '--at-once'"),
    ],
)
def test_bad_input_is_told(run: Run, served: dict[str, Any], arguments: str, message: str) -> None:
    status, _, err = run(*arguments.split())
    assert status == 2
    assert message in err
    assert not served


def test_help_shows_how(run: Run) -> None:
    status, out, _ = run("app", "--help")
    assert status == 0
    assert "\n  zoo app --models stable-diffusion-small" in out


def test_films_lie_beside_the_pictures(run: Run, tmp_path: Path) -> None:
    said = ["-m", "tiny", "-n", "2", "--steps", "3", "--device", "cpu", "-o", str(tmp_path), "--film"]
    status, out, err = run("generate", "a red circle", "a star", *said)
    assert status == 0, err
    paths = [Path(line) for line in out.splitlines()]
    assert set(paths) == set(tmp_path.iterdir())
    films = [path for path in paths if path.suffix == ".gif"]
    assert [film.stem for film in films] == [path.stem for path in paths[:4]]
    with Image.open(films[0]) as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
