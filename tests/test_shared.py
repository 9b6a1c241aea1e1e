"""Parts whose files lie in a folder of their own beside the models that share them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import zoo
from zoo import config as configs
from zoo import weights

FILES = ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.model")


@pytest.fixture
def sharing(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf on which the model `tiny` takes its text encoder from the folder `tower`."""
    folder, tower = tmp_path / "tiny", tmp_path / "tower"
    shutil.copytree(tiny_models / "tiny", folder)
    for name in FILES:
        (tower / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / name, tower / name)
    (tower / "config.json").write_text('{"model_type": "clip"}', "utf-8")
    config = configs.read(folder)
    text = weights.share_part(folder, tower, config.text_encoder.kind, config.text_encoder.arguments, FILES)
    weights.write_config(folder, config.model_copy(update={"text_encoder": text}))
    monkeypatch.setenv("ZOO_MODELS", str(tmp_path))
    return tmp_path


def test_a_shared_part_is_read_from_its_folder(sharing: Path, tiny_models: Path) -> None:
    shared = zoo.load(sharing / "tiny")("a red star", n=1, progress=False)
    own = zoo.load(tiny_models / "tiny")("a red star", n=1, progress=False)
    assert shared.tensor.equal(own.tensor)


def test_a_folder_of_shared_parts_is_not_listed_as_a_model(sharing: Path) -> None:
    assert "tiny" in zoo.list_models()
    assert "tower" not in zoo.list_models()


def test_a_changed_shared_file_is_refused(sharing: Path) -> None:
    with open(sharing / "tower" / FILES[1], "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="tower.*is damaged"):
        zoo.load(sharing / "tiny")


def test_a_missing_shared_folder_is_told(sharing: Path) -> None:
    shutil.rmtree(sharing / "tower")
    with pytest.raises(ValueError, match="tower.*is missing"):
        zoo.load(sharing / "tiny")


def test_only_neighbours_can_be_shared(sharing: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must lie beside"):
        weights.share_part(sharing / "tiny", sharing / "tiny" / "inner", "clip-text", {}, ())
    for name in ("../tower", "a/b", "/etc", ""):
        with pytest.raises(ValueError, match="shared"):
            configs.PartConfig(kind="clip-text", shared=name)
