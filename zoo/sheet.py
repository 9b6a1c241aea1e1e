"""Sheets of many small pictures: a captioned row for each prompt, or cards with lines of text beside each picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

CELL = 160  # smallest picture side on a sheet
GAP = 8
LINE = 22
TEXT_WIDTH = 280  # of the lines beside a picture on a card
TEXT_LINE = 18
INK, PAPER, RULE = "#333333", "#ffffff", "#dddddd"
# Pillow's own font has no Chinese; one of these may be installed.
CJK_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "simsun.ttc"),
)
CJK = "\u2e80-\U0003ffff"  # characters between which a line may break anywhere


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Images of one size in rows of at most `columns`; images in a row share a caption, small ones are enlarged.

    A caption that no installed font can write becomes "prompt k".
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a contact sheet needs images with a caption each, not {len(images)} and {len(captions)}")
    width, height = _enlarged(images[0])
    rows: list[tuple[str, list[Image.Image]]] = []
    for number, (caption, group) in enumerate(groupby(zip(captions, images, strict=True), key=lambda p: p[0]), 1):
        members = [image for _, image in group]
        for start in range(0, len(members), columns):
            title = _caption(caption, number) if start == 0 else ""
            rows.append((title, members[start : start + columns]))
    across = max(len(members) for _, members in rows)
    sheet_width = max(across * (width + GAP) + GAP, min(480, 3 * (width + GAP) + GAP))
    sheet = Image.new("RGB", (sheet_width, GAP + len(rows) * (LINE + height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (title, members) in enumerate(rows):
        top = GAP + row * (LINE + height + GAP)
        draw.text((GAP, top), _fitted(title, sheet_width - 2 * GAP), fill=INK, font=_font(title))
        for column, image in enumerate(members):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (GAP + column * (width + GAP), top + LINE))
    return sheet


def tensor_sheet(rows: Iterable[tuple[str, Tensor]]) -> Image.Image:
    """A contact sheet of captioned pictures [3, height, width] in [0, 1]."""
    captions, pictures = zip(*rows, strict=True)
    pixels = [(picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous() for picture in pictures]
    return contact_sheet([Image.fromarray(picture.numpy()) for picture in pixels], captions)


@dataclass(frozen=True)
class Card:
    """A picture and what to write beside it: paragraphs, each (text, colour)."""

    image: Image.Image
    text: Sequence[tuple[str, str]]


def card_sheet(title: str, cards: Sequence[Card], columns: int = 3) -> Image.Image:
    """Cards in rows of at most `columns` under a title; small pictures are enlarged, all to the size of the first.

    Text wraps, and a row is as high as its longest text: nothing is cut. Characters that no installed font has (see
    `writable`) are drawn as boxes.

    Raises:
        ValueError: no cards, or fewer than one column.
    """
    if not cards or columns < 1:
        raise ValueError(f"a sheet needs cards and columns, not {len(cards)} and {columns}")
    width, height = _enlarged(cards[0].image)
    across = min(columns, len(cards))
    card_width = width + GAP + TEXT_WIDTH + 2 * GAP
    texts = [
        [(line, colour, _font(text)) for text, colour in card.text for line in wrapped(text, TEXT_WIDTH)]
        for card in cards
    ]
    starts = range(0, len(cards), across)
    heights = [max(height, *(len(lines) * TEXT_LINE for lines in texts[s : s + across])) for s in starts]
    heading = wrapped(title, across * card_width - 2 * GAP)
    top = GAP + len(heading) * LINE
    sheet = Image.new("RGB", (across * card_width, top + sum(h + 2 * GAP for h in heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((GAP, GAP // 2 + number * LINE), line, fill=INK, font=_font(title))
    for start, row_height in zip(starts, heights, strict=True):
        draw.line((GAP, top, sheet.width - GAP, top), fill=RULE)
        for column, card in enumerate(cards[start : start + across]):
            left = GAP + column * card_width
            enlarged = card.image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left, top + GAP))
            for number, (line, colour, font) in enumerate(texts[start + column]):
                draw.text((left + width + GAP, top + GAP + number * TEXT_LINE), line, fill=colour, font=font)
        top += row_height + 2 * GAP
    return sheet


def grid_sheet(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Sequence[Image.Image]]]
) -> Image.Image:
    """A labelled grid: `cells[row][column]` is as many pictures as every other cell has, side by side.

    Pictures of several sizes are brought to one, that of the largest or `CELL`. Labels wrap: nothing is cut.

    Raises:
        ValueError: cells that do not make a grid of these rows and columns.
    """
    counts = {len(cell) for row in cells for cell in row}
    if len(cells) != len(rows) or {len(row) for row in cells} != {len(columns)} or len(counts) != 1 or 0 in counts:
        raise ValueError(f"a grid of {len(rows)} x {len(columns)} needs a cell for each, all with as many pictures")
    largest = max((image for row in cells for cell in row for image in cell), key=lambda image: max(image.size))
    width, height = _enlarged(largest)
    across = counts.pop() * (width + GAP) - GAP
    named = [wrapped(label, across) for label in columns]
    said = [wrapped(_caption(label, number), TEXT_WIDTH) for number, label in enumerate(rows, 1)]
    top = 2 * GAP + max(map(len, named)) * TEXT_LINE
    heights = [max(height, len(lines) * TEXT_LINE) + 2 * GAP for lines in said]
    left = TEXT_WIDTH + 2 * GAP
    sheet = Image.new("RGB", (left + len(columns) * (across + 2 * GAP), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(named):
        _lines(draw, (left + column * (across + 2 * GAP), GAP), lines)
    for lines, row, row_height in zip(said, cells, heights, strict=True):
        draw.line((GAP, top, sheet.width - GAP, top), fill=RULE)
        _lines(draw, (GAP, top + GAP), lines)
        for column, cell in enumerate(row):
            for number, image in enumerate(cell):
                place = (left + column * (across + 2 * GAP) + number * (width + GAP), top + GAP)
                sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), place)
        top += row_height
    return sheet


def _lines(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * TEXT_LINE), line, fill=INK, font=_font(line))


def writable(text: str) -> bool:
    """Whether an installed font has the characters of a text."""
    return _plain(text) or _cjk() is not None


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken at spaces, between Chinese characters, and in words too long.

    An empty text is one empty line.
    """
    font = _font(text)
    lines = [""]
    for piece in re.findall(rf"\s+|[{CJK}]|[^\s{CJK}]+", text):
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        if not lines[-1]:
            piece = piece.lstrip()
        for character in piece:  # nearly always all of the piece fits
            if lines[-1] and font.getlength(lines[-1] + character) > width and not character.isspace():
                lines.append("")
            lines[-1] += character
    lines[-1] = lines[-1].rstrip()
    return lines


def _enlarged(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image on a sheet: a whole multiple of its own, at least `CELL` on the longer side."""
    scale = max(1, -(-CELL // max(image.size)))
    return image.width * scale, image.height * scale


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _own() if _plain(text) else (_cjk() or _own())


@cache
def _own() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(14)


@cache
def _cjk() -> ImageFont.FreeTypeFont | None:
    for name in CJK_FONTS:
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    return None


def _plain(text: str) -> bool:
    return all(ord(c) < 0x250 for c in text)


def _caption(caption: str, number: int) -> str:
    if not caption:
        return "(no prompt)"
    return caption if writable(caption) else f"prompt {number}"


def _fitted(text: str, width: int) -> str:
    font = _font(text)
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
