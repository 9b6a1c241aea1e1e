from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import zoo
from zoo import registry
from zoo.app.edit import able
from zoo.app.models import Models
from zoo.cli.shared import app


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


def test_one_damaged_model_hides_no_other(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"format": 1}')
    monkeypatch.setenv("ZOO_MODELS", os.pathsep.join([str(tmp_path), str(shelf)]))
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "broken\tcannot be read: " in listed.output
    assert "tiny\t" in listed.output
    assert able(Models(["broken", "tiny"], device="cpu")) == []
