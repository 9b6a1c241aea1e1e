"""Sheets of pictures: nothing is cut off, and wrapping loses no word."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from zoo import sheet
from zoo.sheet import Card, card_sheet, contact_sheet, wrapped

PROMPT = "a small yellow cat with a face to the left of a very large blue house on a night background, sketch"


@pytest.mark.parametrize("width", [40, 120, 280])
def test_text_is_wrapped_at_spaces_and_fits(width: int) -> None:
    font = ImageFont.load_default(14)
    lines = wrapped(PROMPT, width)
    assert all(font.getlength(line) <= width for line in lines)
    if width >= 120:
        assert " ".join(lines) == PROMPT, "no word is broken"
    assert "".join(lines).replace(" ", "") == PROMPT.replace(" ", "")


def test_words_longer_than_a_line_and_chinese_are_broken_anywhere() -> None:
    font = ImageFont.load_default(14)
    for text in ("butterfly" * 20, "蓝色的房子在红色的星星的左边" * 5):
        lines = wrapped(text, 100)
        assert len(lines) > 3
        assert "".join(lines) == text
        assert all(font.getlength(line) <= 100 for line in lines)


def test_no_text_is_one_empty_line() -> None:
    assert wrapped("", 100) == [""]


def test_cards_grow_with_their_text() -> None:
    image = Image.new("RGB", (64, 64), "red")
    short = card_sheet("title", [Card(image, [("one line", sheet.INK)])])
    long = card_sheet("title", [Card(image, [("one line", sheet.INK)] * 30)])
    assert long.width == short.width
    assert long.height - short.height == 30 * sheet.TEXT_LINE - 192
    below = long.crop((192 + 2 * sheet.GAP, long.height - 2 * sheet.TEXT_LINE, long.width, long.height))
    assert below.convert("L").getextrema()[0] < 100, "the last line is written"


def test_cards_of_two_sizes_and_a_last_row_that_is_not_full() -> None:
    cards = [Card(Image.new("RGB", (size, size), "blue"), [("x", sheet.INK)]) for size in (64, 128, 64)]
    made = card_sheet("title", cards, columns=2)
    middle = made.crop((sheet.GAP, made.height - 100, sheet.GAP + 192, made.height - 99))
    assert middle.getcolors() == [(192, (0, 0, 255))]
    assert made.getpixel((made.width - 4, made.height - 4)) == (255, 255, 255)


def test_what_makes_no_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="needs cards"):
        card_sheet("title", [])
    with pytest.raises(ValueError, match="needs cards"):
        card_sheet("title", [Card(Image.new("RGB", (64, 64)), [])], columns=0)
    with pytest.raises(ValueError, match="caption each"):
        contact_sheet([], [])


def test_captions_without_a_font_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Image.new("RGB", (64, 64), "green")] * 2
    monkeypatch.setattr(sheet, "_cjk", lambda: None)
    assert (
        contact_sheet(images, ["一只猫", "a cat"]).tobytes() == contact_sheet(images, ["prompt 1", "a cat"]).tobytes()
    )
    assert contact_sheet(images, ["一只猫", "a cat"]).tobytes() != contact_sheet(images, ["x", "a cat"]).tobytes()
