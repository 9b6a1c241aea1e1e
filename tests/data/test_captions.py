"""Captions say what the scene is, and nothing held out."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from zoo.data.captions import PLURAL, ZH_COLOUR, ZH_OBJECT, caption, partial, swapped
from zoo.data.scenes import COLOURS, SHAPES, Description, Item, heldout, is_heldout, random_scene
from zoo.train.tokenizer import DELIMITER, TokenizerRecipe, texts


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_full_caption_names_objects_and_colours(language: str) -> None:
    source = rng(1)
    for _ in range(500):
        scene = random_scene(source)
        text = caption(scene, language, source, full=True)
        for item in scene.describe().items:
            if language == "en":
                assert item.colour in text
                assert item.shape.removesuffix("y") in text
            else:
                assert ZH_COLOUR[item.colour or ""] in text
                assert ZH_OBJECT[item.shape][0] in text


def test_there_are_many_phrasings() -> None:
    said = Description((Item("cat", "orange"), Item("car", "blue")), 1, "left of", "cream", "cartoon", True)
    source = rng(2)
    for language in ("en", "zh"):
        assert len({caption(said, language, source) for _ in range(300)}) > 60


def test_descriptions_are_said_as_they_are() -> None:
    source = rng(3)
    assert {caption(Description((Item("butterfly"),)), "en", source) for _ in range(60)} <= {"a butterfly", "butterfly"}
    for _ in range(100):
        text = caption(Description((Item("star"),), 3), "en", source)
        assert text in ("three stars", "3 stars")
        assert "红色" in caption(Description((Item("star", "red"),)), "zh", source)


def test_relations_keep_their_direction() -> None:
    said = Description((Item("cat"), Item("car")), relation="left of")
    source = rng(4)
    for _ in range(200):
        text = caption(said, "en", source)
        cat_first = text.index("cat") < text.index("car")
        assert ("left" in text.split("and")[0]) == cat_first, text
        text = caption(said, "zh", source)
        cat_first = text.index("猫") < text.index("汽车")
        if text.startswith(("左", "右")):  # "left is A, right is B"
            assert cat_first == text.startswith("左"), text
        elif "在" in text:  # "A is left of B"
            assert cat_first == ("左" in text), text
        else:  # "left of B is A"
            assert cat_first == ("右" in text), text


def test_partial_only_leaves_out() -> None:
    source = rng(5)
    bare = 0
    for _ in range(500):
        whole = random_scene(source).describe()
        less = partial(whole, source)
        assert [i.shape for i in less.items] == [i.shape for i in whole.items]
        assert less.count == whole.count
        for name in ("relation", "background", "style", "face"):
            assert getattr(less, name) in (None, getattr(whole, name))
        said = (less.background, less.style, less.face, *(item.size for item in less.items))
        bare += all(facet is None for facet in said)
    assert bare > 250  # half are terse by design, and some others come out so


def test_hard_negatives_change_one_thing_and_are_never_held_out() -> None:
    source = rng(6)
    for _ in range(5000):
        whole = random_scene(source).describe()
        wrong = swapped(whole, source)
        assert wrong != whole
        assert not is_heldout(wrong)
        facets = ("items", "count", "relation", "background", "style", "face")
        changed = sum(getattr(wrong, f) != getattr(whole, f) for f in facets)
        assert changed == 1 or wrong.count != whole.count
        if wrong.style != whole.style:
            assert wrong.style != "plain"


def named(text: str) -> tuple[set[tuple[str, str]], frozenset[str]]:
    """The (colour, object) pairs and the objects that a caption names, read from its words alone."""
    colours = {word: colour for colour, word in ZH_COLOUR.items()} | {colour: colour for colour in COLOURS}
    objects = {word: shape for shape, (word, _) in ZH_OBJECT.items()}
    objects |= {form: shape for shape in SHAPES for form in (shape, PLURAL.get(shape, f"{shape}s"))}
    english, chinese = ("|".join(word for word in objects if word.isascii() == ascii) for ascii in (True, False))
    thing = rf"\b(?:{english})\b|{chinese}"
    text = text.replace("sky blue", "").replace("天蓝色", "")
    coloured = re.findall(rf"({'|'.join(colours)})的?\s?({thing})", text)
    pairs = {(colours[colour], objects[word]) for colour, word in coloured}
    return pairs, frozenset(objects[word] for word in re.findall(thing, text))


@pytest.mark.parametrize(
    ("text", "pairs", "shapes"),
    [
        ("two large blue mushrooms on sky blue", {("blue", "mushroom")}, {"mushroom"}),
        ("a red star on the left of a cat", {("red", "star")}, {"star", "cat"}),
        ("一座绿色的房子的左侧有一辆红色汽车,天蓝色背景", {("green", "house"), ("red", "car")}, {"house", "car"}),
    ],
)
def test_words_are_read(text: str, pairs: set[tuple[str, str]], shapes: set[str]) -> None:
    assert named(text) == (pairs, shapes)


def training_texts(kind: str) -> Iterator[str]:
    source = rng(7)
    if kind == "tokenizer":
        yield from (text.replace(DELIMITER, "") for text in texts(TokenizerRecipe(part="tokenizer", captions=6000)))
        return
    for _ in range(2000):
        scene = random_scene(source, kind=kind)
        for language in ("en", "zh"):
            yield caption(scene, language, source)
            yield caption(swapped(scene.describe(), source), language, source)


@pytest.mark.parametrize("kind", ["single", "relation", "count", "tokenizer"])
def test_training_text_names_no_held_out_combination(kind: str) -> None:
    held_pairs, held_objects = heldout()
    seen = set()
    for text in training_texts(kind):
        pairs, shapes = named(text)
        assert shapes, text
        assert not pairs & held_pairs, text
        assert shapes not in held_objects, text
        seen |= pairs
    every = {(colour, shape) for colour in COLOURS for shape in SHAPES} - held_pairs
    assert len(seen) > 0.95 * len(every)  # or the words were not read
