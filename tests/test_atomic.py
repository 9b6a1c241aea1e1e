"""What is written is there whole or not at all, whoever else writes beside it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from zoo.atomic import _HOST, replacing, restore, write_image, write_text


def test_a_folder_takes_the_place_of_another_and_leaves_nothing_else(tmp_path: Path) -> None:
    for said in ("old", "new"):
        with replacing(tmp_path / "made") as temporary:
            temporary.mkdir()
            (temporary / said).write_text(said)
            assert (tmp_path / "made").is_dir() == (said == "new"), "the old one is there until the new one is whole"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["new"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "made.txt"
    path.write_text("old")

    def fill() -> None:
        with replacing(path, durable=durable) as temporary:
            temporary.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_text() == "old"
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("new")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("made.txt", "new")]


def test_a_folder_that_a_living_process_replaces_is_left_to_it(tmp_path: Path) -> None:
    aside = tmp_path / f".final.old.{_HOST}-{os.getppid()}-0-ab.tmp"
    aside.mkdir()
    restore(tmp_path / "final")
    assert aside.exists()
    aside.rename(aside := tmp_path / ".final.old.00000000-999999999-0-ab.tmp")
    restore(tmp_path / "final")
    assert aside.exists(), "of processes on other machines nothing is known"
    aside.rename(tmp_path / f".final.old.{_HOST}-999999999-0-ab.tmp")
    restore(tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("process", [999999999, os.getpid()])
def test_what_a_dead_process_left_is_cleared_away_and_nothing_else(tmp_path: Path, process: int) -> None:
    """Also if the dead one's number is ours by now."""
    dead, alive, away = f"{_HOST}-999999999-1-ab.tmp", f"{_HOST}-{os.getppid()}-1-ab.tmp", "00000000-999999999-1-ab.tmp"
    others = {".a[1].png.part.tmp", f".a[1].png.b.{dead}", f".a[1].png.{alive}", f".a[1].png.{away}", "a1.png"}
    for name in (*others, f".a[1].png.{_HOST}-{process}-77-ab.tmp"):
        (tmp_path / name).write_text("x")
    with replacing(tmp_path / "a[1].png") as temporary:
        temporary.write_text("made")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "a[1].png"}


def test_writers_of_one_process_do_not_take_each_others_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.b") as outer:
        outer.write_text("outer")
        with replacing(tmp_path / "a") as inner, replacing(tmp_path / "a.b") as again:
            inner.write_text("inner")
            again.write_text("again")
        assert (tmp_path / "a.b").read_text() == "again"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "inner", "a.b": "outer"}

    def write(turn: int) -> None:
        with replacing(tmp_path / "shared") as temporary:
            temporary.write_text(str(turn) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    assert len(set((tmp_path / "shared").read_text())) <= 2
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.b", "shared"}


def test_texts_and_pictures(tmp_path: Path) -> None:
    write_text(tmp_path / "made.md", "粉色的蝴蝶\n")
    assert (tmp_path / "made.md").read_bytes().decode("utf-8") == "粉色的蝴蝶\n"
    for name in ("made.png", "made.WEBP", "made.jpg"):
        write_image(tmp_path / name, Image.new("RGB", (4, 2), "red"), quality=90)
        with Image.open(tmp_path / name) as read:
            assert (read.format, read.size) == (name.upper().split(".")[1].replace("JPG", "JPEG"), (4, 2))
    before = sorted(tmp_path.iterdir())
    for name in ("made", "made.picture"):
        with pytest.raises(ValueError, match=r"no suffix of a picture, such as \.png"):
            write_image(tmp_path / name, Image.new("RGB", (4, 2)))
    assert sorted(tmp_path.iterdir()) == before
