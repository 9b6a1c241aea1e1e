from __future__ import annotations

from pathlib import Path

import pytest

import zoo
from zoo import registry


def test_listing_and_wildcards(shelf: Path) -> None:
    assert {"tiny", "other", "wide"} <= set(zoo.list_models())
    assert zoo.list_models("ti*") == ["tiny"]
    assert zoo.list_models("nothing*") == []


def test_shipped_models_are_on_a_shelf() -> None:
    checkout = Path(zoo.__file__).parents[1] / "weights"
    assert checkout in registry.shelves()


def test_finding(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.find("tiny") == shelf / "tiny"
    assert registry.find(shelf / "wide") == shelf / "wide"
    monkeypatch.chdir(shelf)
    assert registry.find("./other").resolve() == shelf / "other"


@pytest.mark.parametrize("name", ["tinny", "TINY"])
def test_unknown_names_offer_the_nearest(shelf: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}': did you mean 'tiny'"):
        zoo.load(name)


def test_unknown_names_list_all_where_none_is_near(shelf: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'qqqq'.* known: .*other.*tiny.*wide"):
        zoo.load("qqqq")
    with pytest.raises(ValueError, match="a model's name is needed"):
        zoo.load("")


def test_card(shelf: Path) -> None:
    card = zoo.card("tiny")
    assert card.startswith("---\nlicense: apache-2.0\n")
    for said in ("# tiny", 'zoo.load("tiny")', "arxiv.org/abs/2112.10752", "| overall, seen | 0.812 |", "32 x 32"):
        assert said in card
    assert card == (shelf / "tiny" / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="unknown model"):
        zoo.card("tinny")
