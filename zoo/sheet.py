"""Contact sheets: many small pictures on one, a captioned row for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

CELL = 160  # smallest picture side on a sheet
GAP = 8
LINE = 22
INK, PAPER = "#333333", "#ffffff"
# Pillow's own font has no Chinese; one of these may be installed.
CJK_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "simsun.ttc"),
)


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Images of one size in rows of at most `columns`; images in a row share a caption, small ones are enlarged.

    A caption that no installed font can write becomes "prompt k".
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a contact sheet needs images with a caption each, not {len(images)} and {len(captions)}")
    width, height = images[0].size
    scale = max(1, -(-CELL // max(width, height)))
    width, height = width * scale, height * scale
    rows: list[tuple[str, list[Image.Image]]] = []
    for number, (caption, group) in enumerate(groupby(zip(captions, images, strict=True), key=lambda p: p[0]), 1):
        members = [image for _, image in group]
        for start in range(0, len(members), columns):
            title = _writable(caption, number) if start == 0 else ""
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


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(14) if _plain(text) else (_cjk() or ImageFont.load_default(14))


def _cjk() -> ImageFont.FreeTypeFont | None:
    for name in CJK_FONTS:
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    return None


def _plain(text: str) -> bool:
    return all(ord(c) < 0x250 for c in text)


def _writable(caption: str, number: int) -> str:
    if not caption:
        return "(no prompt)"
    return caption if _plain(caption) or _cjk() else f"prompt {number}"


def _fitted(text: str, width: int) -> str:
    font = _font(text)
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
