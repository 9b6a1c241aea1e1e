from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import zoo
from zoo import registry
from zoo.app.edit import able
from zoo.app.models import Models
from zoo.cli import shared
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


def test_a_path_is_no_name(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(shutil.copytree(shelf / "other", tmp_path / "tiny"))
    (tmp_path / "karlo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert registry.find(Path("tiny")) == Path("tiny")
    assert registry.find("tiny") == shelf / "tiny"
    assert registry.find(Path("karlo")) == registry.find("./karlo") == Path("karlo")
    asked = ["tiny", "./tiny", "karlo", Path("karlo"), "owner/name", "./owner/name", "nothing"]
    assert [name for name in asked if registry.is_fetched(name)] == ["karlo", "owner/name"]
    found = shared.load("./tiny", "cpu")
    assert found.text_encoder.produces == zoo.load(own, device="cpu").text_encoder.produces
    assert found.text_encoder.produces != zoo.load("tiny", device="cpu").text_encoder.produces
    monkeypatch.chdir(shelf.parent)
    with pytest.raises(ValueError, match=r"there is no model at 'tiny', as a folder or a file .*; names are given as"):
        zoo.load(Path("tiny"))
    with pytest.raises(ValueError, match="there is no model at 'karlo'"):
        zoo.card(Path("karlo"))


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


@pytest.mark.parametrize("said", ['{"format": 1}', "null", "3", '["format"]', '"x"', "{", "[" * 100_000, "\udcff"])
def test_one_damaged_model_hides_no_other(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes(said.encode("utf-8", "surrogateescape"))
    monkeypatch.setenv("ZOO_MODELS", os.pathsep.join([str(tmp_path), str(shelf)]))
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "broken\tcannot be read: " in listed.output
    assert "tiny\t" in listed.output
    assert able(Models(["broken", "tiny"], device="cpu")) == []
    with pytest.raises(ValueError, match="config.json is not a valid model config"):
        zoo.load("broken")
    assert zoo.load("tiny", device="cpu").name == "tiny"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "mars"}, "device 'mars' cannot be used"),
        ({"safety_checker": "strict"}, "safety_checker='strict' is not known"),
        ({"safety_checker": 3}, "which 3 cannot be"),
        ({"dtype": torch.int8}, "dtype is a floating type, such as torch.float16, not torch.int8"),
        ({"dtype": "float16"}, "dtype is a floating type, such as torch.float16, not 'float16'"),
    ],
)
def test_what_needs_no_file_is_told_before_one_is_fetched(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    def fetch(*_: object, **__: object) -> Path:
        raise AssertionError("fetched")

    monkeypatch.setattr("zoo.hub.fetch", fetch)
    with pytest.raises(ValueError, match=message):
        zoo.load("karlo", **asked)
    with pytest.raises(AssertionError, match="fetched"):
        zoo.load("karlo", device="cpu", dtype=torch.float16, safety_checker=lambda images, clip_input: (images, None))


def test_the_command_line_fetches_nothing_for_a_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hub.fetch", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="device 'mars' cannot be used"):
        shared.load("owner/name", "mars")


def test_a_revision_is_of_what_is_fetched(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of nothing else; of a part of another model as well."""
    for name in ("tiny", "./tiny", shelf / "tiny"):
        with pytest.raises(ValueError, match="nothing that is loaded here heeds revision: leave it out"):
            zoo.load(name, device="cpu", revision="tuned")
    asked: list[tuple[str, object]] = []

    def fetch(repository: str, *, revision: str | None, **_: object) -> Path:
        asked.append((repository, revision))
        return shelf / "tiny"

    monkeypatch.setattr("zoo.hub.fetch", fetch)
    zoo.load("tiny", device="cpu", decoder="owner/name/decoder", revision="tuned")
    zoo.load("owner/name", device="cpu", decoder="tiny/decoder", revision="tuned")
    assert asked == [("owner/name", "tuned")] * 2
