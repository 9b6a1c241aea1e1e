"""The user's own pictures: a folder of images with their captions in `metadata.jsonl`, the `imagefolder` convention.

    pictures/
        metadata.jsonl      {"file_name": "cat.png", "text": "my cat, asleep"}      one JSON object a line
        cat.png
        more/dog.jpg

Other columns are allowed and kept. Without that file, each picture's caption is the text file beside it, `cat.txt` of
`cat.png`, as kohya-ss keeps them. All captions are checked when the folder is opened; a picture is decoded when asked
for.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.upright import as_rgb

METADATA = "metadata.jsonl"
SIDECAR = ".txt"  # what ends the name of a caption beside its picture
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # of pictures that no metadata names
NAMED = 5  # of many faults of one kind, how many an error names


@dataclass(frozen=True)
class Picture:
    """One captioned picture; `more` holds the columns beside `file_name` and `text`."""

    path: Path
    text: str
    more: Mapping[str, object]

    def image(self) -> Image.Image:
        """The picture in RGB, turned as its camera said, what is transparent over white.

        Raises:
            ValueError: the file is damaged or not a picture.
        """
        try:
            with Image.open(self.path) as opened:
                return as_rgb(opened)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self.path} cannot be read as a picture ({error}): replace it, or drop its line"
            ) from error

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """The centre square, resampled to uint8 [size, size, 3]."""
        return np.asarray(ImageOps.fit(self.image(), (size, size), Image.Resampling.LANCZOS))


class ImageFolder(Sequence[Picture]):
    """The captioned pictures of a folder, in the order of its metadata; without one, by name."""

    def __init__(self, folder: str | os.PathLike[str], *, file: str = "file_name", text: str = "text") -> None:
        """Read and check the captions; `file` and `text` name the two columns of the metadata.

        Raises:
            ValueError: no such folder, no captions in it, a line that is no JSON object, a column, picture or caption
                that is missing.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}")
        if not (self.folder / METADATA).is_file():
            self._pictures = self._beside()
            return
        self._pictures = [self._picture(number, row, file, text) for number, row in self._rows()]
        if not self._pictures:
            raise ValueError(f"{self.folder / METADATA} has no lines: write one JSON object for each picture")
        missing = [picture.path for picture in self._pictures if not picture.path.is_file()]
        if missing:
            raise ValueError(
                f"{self.folder / METADATA} names pictures that are not there: {self._named(missing)}. "
                f"{file} is relative to the folder {self.folder}"
            )

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        return self._pictures[index]

    def _rows(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Line numbers, from 1, and what is on them; empty lines are passed over."""
        path = self.folder / METADATA
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number} is {type(row).__name__}, not an object {{...}}")
                yield number, row

    def _beside(self) -> list[Picture]:
        """All pictures, each with the text file beside it."""
        files = pictures_in(self.folder)
        captions = {file: file.with_suffix(SIDECAR) for file in files}
        alone = [file for file, caption in captions.items() if not caption.is_file()]
        if len(alone) == len(files):
            raise ValueError(
                f'{self.folder} has no {METADATA}: write lines such as {{"file_name": "a.png", "text": "..."}}, or '
                f"beside each picture its caption, a{SIDECAR} of a.png"
            )
        if alone:
            raise ValueError(f"{self.folder}: there is no {SIDECAR} file with a caption beside {self._named(alone)}")
        said = {file: _text(caption).strip() for file, caption in captions.items()}
        if empty := [captions[file] for file, text in said.items() if not text]:
            raise ValueError(f"{self.folder}: {self._named(empty)} are empty: write what their pictures show")
        if twice := [file for one, file in pairwise(files) if captions[one] == captions[file]]:
            raise ValueError(f"{self.folder}: {self._named(twice)} share a caption with another picture: rename them")
        return [Picture(file, text, {}) for file, text in said.items()]

    def _named(self, paths: Sequence[Path]) -> str:
        names = ", ".join(path.relative_to(self.folder).as_posix() for path in paths[:NAMED])
        return names + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")

    def _picture(self, number: int, row: dict[str, object], file: str, text: str) -> Picture:
        where = f"{self.folder / METADATA}, line {number}"
        said = {}
        for column in (file, text):
            if column not in row:
                near = difflib.get_close_matches(column, row, 1)
                hint = f"; is it {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{where} has no column {column!r}, only {', '.join(map(repr, row)) or 'nothing'}{hint}"
                )
            value = row[column]
            if not isinstance(value, str):
                raise ValueError(f"{where}: {column} is {value!r}, not a string")
            said[column] = value
        name = PurePosixPath(said[file])
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{where}: {file} {said[file]!r} is not a path inside {self.folder}")
        more = {key: value for key, value in row.items() if key not in (file, text)}
        return Picture(self.folder / name, said[text], more)


def captioned(folder: Path) -> bool:
    """Are there captions: the metadata, or a text file beside a picture?"""
    if (folder / METADATA).is_file():
        return True
    return any(file.with_suffix(SIDECAR).is_file() for file in pictures_in(folder))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, by name; none that is hidden, or in a hidden folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES)
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
