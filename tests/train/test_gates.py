"""The gates of a text encoder: what is read from the features of the other tower, and what is asked of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.clip import Clip
from zoo.data.draw import BACKDROP
from zoo.data.scenes import BACKGROUNDS
from zoo.train import gates
from zoo.train.facets import CLASSES


class Looker:
    """A CLIP that sees nothing of a picture but what stands behind the things in it."""

    grounds = torch.tensor([BACKDROP[name][0] for name in BACKGROUNDS]) / 255  # as they are in a picture's corner

    def embed_images(self, images: Tensor) -> Tensor:
        apart = (images[:, None, :, 0, 0] - self.grounds).square().sum(-1)
        seen = F.one_hot(apart.argmin(1), len(self.grounds)).float()
        return seen.repeat(1, 50)  # said often, to be learned in the few steps of a test


def test_the_image_gate_reads_what_an_embedding_tells_and_nothing_else() -> None:
    read = gates.image_gate(cast(Clip, Looker()), train=800, test=200)
    assert set(read) == set(CLASSES)
    assert read.pop("background") == 1.0
    assert max(read.values()) < 0.8, read


SEEN = {"count": 0.95, "relation": 0.95, "colour": 0.1}  # no colour is asked of an image


@pytest.mark.parametrize(
    ("text", "image", "missed"),
    [
        ({"count": 0.99, "shape": 0.99}, None, []),
        ({"count": 0.99, "shape": 0.98}, None, [("text", "shape", 0.98, 0.99)]),
        ({"count": 0.99, "shape": 0.99}, SEEN, []),
        ({"count": 0.99}, SEEN | {"relation": 0.94}, [("image", "relation", 0.94, 0.95)]),
        ({"count": 0.5}, SEEN | {"count": 0.4}, [("text", "count", 0.5, 0.99), ("image", "count", 0.4, 0.95)]),
    ],
)
def test_what_is_missed_is_told_by_tower_and_facet(
    text: Mapping[str, float], image: Mapping[str, float] | None, missed: list[tuple[str, str, float, float]]
) -> None:
    found = gates.judged(text, image)
    assert [(one["features"], one["facet"], one["read"], one["asked"]) for one in found["missed"]] == missed
    assert found["passed"] is (not missed)
    assert found["text"] == text
    assert found.get("image") == image
