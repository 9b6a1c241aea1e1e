from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.folder import ImageFolder

ROWS = [{"file_name": "a.png", "text": "红色的圆形", "artist": "me"}, {"file_name": "more/b.jpg", "text": "a square"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (4, 6), 10).save(tmp_path / "more" / "b.jpg")
    write(tmp_path, *ROWS)
    return tmp_path


def write(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_pictures_and_captions_in_order(folder: Path) -> None:
    pictures = ImageFolder(folder)
    assert [(p.text, dict(p.more)) for p in pictures] == [("红色的圆形", {"artist": "me"}), ("a square", {})]
    assert [p.path for p in pictures[:]] == [folder / "a.png", folder / "more" / "b.jpg"]
    assert len(pictures) == 2


def test_pictures_are_rgb_and_square(folder: Path) -> None:
    clear, gray = ImageFolder(folder)
    assert clear.image().getpixel((0, 0)) == (255, 255, 255)  # what is transparent lies over white
    pixels = gray.pixels(3)
    assert (pixels.shape, pixels.dtype) == ((3, 3, 3), np.uint8)
    assert abs(int(pixels[1, 1, 0]) - 10) < 3


def test_a_picture_is_turned_as_its_camera_said(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(folder / "a.png", exif=exif)
    assert ImageFolder(folder)[0].image().size == (4, 6)


def test_other_column_names(folder: Path) -> None:
    write(folder, {"image": "a.png", "caption": "hello"})
    assert ImageFolder(folder, file="image", text="caption")[0].text == "hello"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], {"file_name": "a.png", "texts": "x"}], r"line 2 has no column 'text', only .*; is it 'texts'\?"),
        ([{"text": "x"}], "line 1 has no column 'file_name'"),
        ([{"file_name": "a.png", "text": 3}], "line 1: text is 3, not a string"),
        ([{"file_name": "../a.png", "text": "x"}], "is not a path inside"),
        ([{"file_name": "/a.png", "text": "x"}], "is not a path inside"),
        ([{"file_name": "", "text": "x"}], "is not a path inside"),
        ([{"file_name": f"{i}.png", "text": "x"} for i in range(7)], r"not there: 0\.png, .*4\.png and 2 more"),
        (["{"], "line 1 is not JSON"),
        (["[1]"], "line 1 is list, not an object"),
        (["", ""], "has no lines"),
    ],
)
def test_faults_in_the_metadata_are_named(folder: Path, rows: list[object], said: str) -> None:
    write(folder, *rows)
    with pytest.raises(ValueError, match=said):
        ImageFolder(folder)


def test_no_folder_or_no_metadata(folder: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        ImageFolder(folder / "none")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no metadata\.jsonl: write lines such as"):
        ImageFolder(folder)


def test_captions_beside_their_pictures(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_text("\ufeff红色的圆形\n", "utf-8")
    (folder / "more" / "b.txt").write_text("a square", "utf-8")
    (folder / "notes.txt").write_text("of no picture", "utf-8")
    (folder / "._a.png").write_bytes(b"what macOS leaves")
    pictures = ImageFolder(folder)
    assert [(p.path, p.text) for p in pictures] == [
        (folder / "a.png", "红色的圆形"),
        (folder / "more" / "b.jpg", "a square"),
    ]
    write(folder, ROWS[1])  # then that counts
    assert [p.text for p in ImageFolder(folder)] == ["a square"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"no \.txt file with a caption beside more/b\.jpg"),
        (b" \n", r"more/b\.txt are empty"),
        (b"\xff\xfe", r"b\.txt is not UTF-8"),
    ],
)
def test_faults_of_captions_beside_their_pictures_are_named(folder: Path, text: bytes | None, said: str) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_text("a circle", "utf-8")
    if text is not None:
        (folder / "more" / "b.txt").write_bytes(text)
    with pytest.raises(ValueError, match=said):
        ImageFolder(folder)


def test_pictures_that_share_a_caption_are_named(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    for name in ("a.txt", "more/b.txt"):
        (folder / name).write_text("a circle", "utf-8")
    Image.new("RGB", (4, 4)).save(folder / "a.webp")
    with pytest.raises(ValueError, match=r"a\.webp share a caption with another picture"):
        ImageFolder(folder)


def test_damaged_pictures_are_named_when_read(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        ImageFolder(folder)[0].image()
