"""Facets as classes: what the reading heads and the gates learn."""

from __future__ import annotations

import numpy as np
import torch

from zoo.data.scenes import COLOURS, SHAPES, Description, Item, random_scene
from zoo.train.facets import ABSENT, CLASSES, CrossAttentionProbe, LinearProbe, labels, misread

NAMES = list(CLASSES)


def read(said: Description) -> dict[str, int]:
    return dict(zip(NAMES, labels(said), strict=True))


def test_the_first_of_two_is_the_left_or_upper_one() -> None:
    cat, car = Item("cat", "pink"), Item("car", "blue")
    for a, b, relation in ((cat, car, "left of"), (car, cat, "right of"), (cat, car, "above"), (car, cat, "below")):
        found = read(Description((a, b), relation=relation))
        assert found["shape"] == SHAPES.index("cat")
        assert found["second colour"] == COLOURS.index("blue")
        assert found["relation"] == int(relation in ("above", "below"))
        assert found["count"] == ABSENT


def test_what_is_not_said_is_absent() -> None:
    found = read(Description((Item("cat"),), count=3))
    assert found["count"] == 2
    assert {name for name, value in found.items() if value != ABSENT} == {"count", "shape"}
    assert set(labels(Description((Item("cat", "red"), Item("car", "blue"))))) == {ABSENT}


def test_labels_are_classes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        for value, classes in zip(labels(random_scene(rng).describe()), CLASSES.values(), strict=True):
            assert value == ABSENT or 0 <= value < classes


def test_misread_is_zero_for_certain_answers_and_skips_absent_ones() -> None:
    rng = np.random.default_rng(1)
    truth = torch.tensor([labels(random_scene(rng).describe()) for _ in range(64)])
    certain = [
        torch.nn.functional.one_hot(column.clamp(min=0), n).float() * 100
        for column, n in zip(truth.unbind(1), CLASSES.values(), strict=True)
    ]
    assert misread(certain, truth) < 1e-6
    wrong = [output.roll(1, dims=1) for output in certain]
    assert misread(wrong, truth) > 100
    assert misread(wrong, torch.full_like(truth, ABSENT)) == 0


def test_probes_answer_every_facet() -> None:
    for outputs in (CrossAttentionProbe(32)(torch.randn(5, 7, 32)), LinearProbe(16)(torch.randn(5, 16))):
        assert [tuple(output.shape) for output in outputs] == [(5, n) for n in CLASSES.values()]
