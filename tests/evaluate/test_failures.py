"""The failure sheet: which pictures are on it, and what it says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from zoo import sheet
from zoo.data.draw import render
from zoo.data.scenes import Description, Item, Placed, Scene
from zoo.evaluate.checker import Reading, Seen, judge, read
from zoo.evaluate.failures import failure_sheet, told, worst
from zoo.evaluate.judged import Judged
from zoo.evaluate.tasks import Case

CAR = Scene((Placed("car", "red", 0.5, 0.5, 0.5),), "white", "plain", False)
STAR = Seen("star", "red", "plain", False, 0.5, 0.5, 0.4)


def judged(asked: Description, prompt: str = "what I asked for", language: str = "en") -> Judged:
    """The picture of a red car, judged by what was asked."""
    pixels = render(CAR)
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    reading = read(pixels)
    return Judged(Case("colours", "seen", language, prompt, asked, 3), judge(reading, asked), picture, reading)


RIGHT = judged(Description((Item("car", "red"),)))
ONE = judged(Description((Item("car", "blue"),)))
TWO = judged(Description((Item("cat", "blue"),)))
MANY = judged(Description((Item("cat", "blue"),), 3, style="sketch", face=True))


def test_the_worst_come_first_and_the_right_not_at_all() -> None:
    assert worst([RIGHT, ONE, MANY, RIGHT, TWO, ONE]) == [2, 4, 1, 5]
    assert worst([RIGHT, ONE, MANY, RIGHT, TWO, ONE], most=2) == [2, 4]


def test_no_failures_have_no_sheet() -> None:
    assert failure_sheet([RIGHT, RIGHT], "model") is None


def said(monkeypatch: pytest.MonkeyPatch, pictures: list[Judged], most: int = 24) -> tuple[str, list[list[str]]]:
    """The title and the paragraphs of each card that a sheet is made of."""
    made: list[tuple[str, list[list[str]]]] = []
    monkeypatch.setattr(
        "zoo.evaluate.failures.card_sheet",
        lambda title, cards: made.append((title, [[text for text, _ in card.text] for card in cards])),
    )
    failure_sheet(pictures, "tiny", most)
    return made[0]


def test_a_card_tells_prompt_what_was_seen_and_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    title, cards = said(monkeypatch, [RIGHT, TWO])
    assert title == "tiny, judged wrong: 1 of 2 pictures"
    assert cards == [
        [
            "00001.png  colours, seen, en",
            "what I asked for",
            "saw a red car on white, plain",
            "- car instead of cat",
            "- red car instead of blue",
        ]
    ]
    assert said(monkeypatch, [TWO, ONE, MANY], most=2)[0] == "tiny, judged wrong: 3 of 3 pictures; the 2 worst"


def test_reasons_that_repeat_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Description((Item("circle"),), 2)
    reading = Reading("white", (STAR, STAR), 0)
    twice = replace(ONE, verdict=judge(reading, asked), reading=reading)
    assert said(monkeypatch, [twice])[1][0][-1] == "- star instead of circle (2 times)"


def test_chinese_prompts_without_a_font_are_told_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = judged(Description((Item("cat", "blue"),)), "蓝色的猫", "zh")
    monkeypatch.setattr(sheet, "_cjk", lambda: sheet.ImageFont.load_default(14))
    assert said(monkeypatch, [chinese])[1][0][1] == "蓝色的猫"
    monkeypatch.setattr(sheet, "_cjk", lambda: None)
    prompt = said(monkeypatch, [chinese])[1][0][1]
    assert prompt.startswith("(in Chinese) ")
    assert "blue" in prompt
    assert "cat" in prompt


def test_what_was_seen_in_words() -> None:
    car = replace(STAR, shape="car", colour="orange", style="sketch", face=True)
    fly = replace(STAR, shape="butterfly")
    assert told(Reading("white", (STAR, STAR), 0)) == "2 red stars on white, plain"
    assert told(Reading(None, (car,), 1)) == (
        "an orange car on an unknown background, sketch, with a face, 1 stray speck"
    )
    assert told(Reading("night", (STAR, fly, fly, car), 2)) == (
        "a red star, 2 red butterflies and an orange car on night, plain and sketch, 1 with a face, 2 stray specks"
    )
    assert told(Reading("gray", (car, car), 0)) == "2 orange cars on gray, sketch, with faces"
    assert told(Reading("mint", (), 0)) == "nothing on mint"


def test_the_sheet_shows_the_pictures() -> None:
    made = failure_sheet([ONE, RIGHT, MANY], "tiny")
    assert made is not None
    width = 192 + 2 * sheet.GAP + sheet.TEXT_WIDTH + sheet.GAP
    assert made.size[0] == 2 * width
    picture = made.crop((sheet.GAP, made.height - sheet.GAP - 192, sheet.GAP + 192, made.height - sheet.GAP))
    enlarged = MANY.image().resize((192, 192), Image.Resampling.BICUBIC)
    assert picture.tobytes() == enlarged.tobytes()
