"""Captions say what the scene is, and nothing held out."""

import numpy as np
import pytest

from zoo.data.captions import ZH_COLOUR, ZH_OBJECT, caption, partial, swapped
from zoo.data.scenes import COLOURS, SHAPES, Description, Item, Scene, is_heldout, random_scene


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


def test_training_text_never_pairs_a_held_out_colour_and_object() -> None:
    source = rng(7)
    for _ in range(3000):
        scene: Scene = random_scene(source, kind="single")
        words = caption(scene, "en", source).replace(",", " ").split()
        named = [(c, s) for c in COLOURS for s in SHAPES if c in words and s in words and c != "blue"]
        assert not any(is_heldout(Description((Item(s, c),))) for c, s in named)
