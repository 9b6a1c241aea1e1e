"""`zoo export`: what is written, and what is uploaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run
from zoo import export
from zoo.pipeline import Pipeline


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """What was uploaded where, instead of uploading it."""
    seen: list[tuple[Path, str]] = []

    def push(folder: Path, repository: str) -> str:
        assert (folder / "unet").is_dir(), "it is written before it is uploaded"
        seen.append((folder, repository))
        return f"https://somewhere/{repository}"

    monkeypatch.setattr(export, "push_to_hub", push)
    return seen


@pytest.mark.parametrize(("options", "dtype"), [((), None), (("--half",), torch.float16)])
def test_a_single_file(
    run: Run, tiny: Pipeline, tmp_path: Path, options: tuple[str, ...], dtype: torch.dtype | None
) -> None:
    target = tmp_path / "tiny.safetensors"
    status, out, err = run("export", "tiny", str(target), "--to", "single-file", *options)
    assert (status, out, err) == (0, f"{target}\n", "")
    wanted = export.to_single_file(tiny, tmp_path / "wanted.safetensors", dtype)
    assert target.read_bytes() == wanted.read_bytes()
    assert {tensor.dtype for tensor in load_file(target).values()} == {dtype or torch.float32}


def test_what_is_written_is_uploaded(run: Run, pushed: list[tuple[Path, str]], tmp_path: Path) -> None:
    target = tmp_path / "exported"
    status, out, err = run("export", "tiny", str(target), "--push", "someone/tiny")
    assert (status, err) == (0, "")
    assert out == f"{target}\nhttps://somewhere/someone/tiny\n"
    assert pushed == [(target, "someone/tiny")]


def test_nothing_is_uploaded_unasked(run: Run, pushed: list[tuple[Path, str]], tmp_path: Path) -> None:
    assert run("export", "tiny", str(tmp_path / "exported"))[0] == 0
    assert not pushed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--to single-file --push someone/tiny", "--push uploads a folder: it goes with --to diffusers"),
        ("--to gif", "--to gif is not known"),
        ("--to single-file", "let its name end in .safetensors"),
    ],
)
def test_what_cannot_be(run: Run, pushed: list[tuple[Path, str]], tmp_path: Path, options: str, message: str) -> None:
    status, _, err = run("export", "tiny", str(tmp_path / "exported"), *options.split())
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())
    assert not pushed
