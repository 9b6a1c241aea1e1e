from __future__ import annotations

import warnings

import pytest

from zoo.text.tokenizer import Tokenizer, UnknownWords


@pytest.fixture(scope="module")
def tokenizer(vocabulary: bytes) -> Tokenizer:
    return Tokenizer(vocabulary, 12)


def test_one_window_with_markers_and_padding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["a red circle", ""])
    assert ids.shape == (2, 12)
    words = tokenizer.pieces.encode("a red circle")
    assert ids[0].tolist() == [tokenizer.begin, *words, tokenizer.end] + [tokenizer.padding] * (10 - len(words))
    assert ids[1].tolist() == [tokenizer.begin, tokenizer.end] + [tokenizer.padding] * 10
    assert tokenizer.encode([]).shape == (0, 12)


def test_a_prompt_that_just_fits_and_one_that_does_not(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["red " * 10])[0, -1] == tokenizer.end
    with pytest.raises(ValueError, match=r"11 tokens long and the text encoder reads at most 10: shorten 'red red"):
        tokenizer.encode(["a star", "red " * 11])


@pytest.mark.parametrize(
    ("prompt", "strangers"),
    [
        ("a large pink butterfly on a white background", []),
        ("Large RED Stars, and a circle;", []),
        ("粉色的蝴蝶,小精灵,卡通", []),
        ("", []),
        ("a zeppelin over a carpet", ["zeppelin", "carpet"]),
        ("红色的龙龘", ["龙龘"]),
        ("a red цвет", ["цвет"]),
    ],
)
def test_strangers(tokenizer: Tokenizer, prompt: str, strangers: list[str]) -> None:
    found = tokenizer.strangers(prompt)
    assert [word for word in found if word not in ("and", "over")] == strangers


def test_strangers_are_announced_once(tokenizer: Tokenizer) -> None:
    with pytest.warns(UnknownWords, match="does not know 'zeppelin', '龘': expect") as caught:
        tokenizer.encode(["a zeppelin", "zeppelin 龘"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(["a pink star", ""])


def test_not_a_model() -> None:
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        Tokenizer(b"nonsense", 12)
