"""Adapters of all kinds by their files: told apart, loaded, and named on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import zoo
from tests.cli.conftest import Run
from tests.conftest import wordpieces, write_model
from zoo.adapt.files import kind, load_all, split, stem
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import Prefix
from zoo.adapt.words import Word
from zoo.pipeline import Pipeline

ZIP, RED = "a Zip circle", "a red circle"
QUICK = {"n": 1, "steps": 1, "progress": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model spare, whose tokenizer keeps pieces free."""
    shelf = tmp_path_factory.mktemp("spare")
    write_model(shelf / "spare", wordpieces(["<new0>", "<new1>"]))
    return shelf


@pytest.fixture
def pipe(models: Path) -> Pipeline:
    return zoo.load(models / "spare", device="cpu")


@pytest.fixture(scope="module")
def files(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of each kind, all of which show."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {name: folder / f"{name}.safetensors" for name in ("lora", "prefix", "word")}
    networks = zoo.load(models / "spare", device="cpu").adaptable()
    torch.manual_seed(0)
    lora = LoRA.build(networks["unet"].module, ["*"])
    for low in lora.layers.values():
        torch.nn.init.normal_(low.up, std=0.3)
    write(found["lora"], {"unet": lora})
    prefix = Prefix.build(networks["unet"].module, length=3)
    for layer in prefix.layers.values():
        torch.nn.init.constant_(layer.gate, 1.0)
        torch.nn.init.normal_(layer.pairs)
    prefix.save(found["prefix"], "unet")
    Word("Zip", "<new0>", torch.randn(32)).save(found["word"])
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: Path) -> Run:
    monkeypatch.setenv("ZOO_MODELS", str(models))
    return Run(monkeypatch, capsys)


def test_a_file_says_what_it_holds(files: dict[str, Path], tmp_path: Path) -> None:
    assert {name: kind(path) for name, path in files.items()} == {name: name for name in files}
    save_file({"any": torch.zeros(1)}, tmp_path / "foreign.safetensors", {"kind": "word"})
    assert kind(tmp_path / "foreign.safetensors") == "lora", "not written by the zoo"
    assert kind(tmp_path / "adapter_model.bin") == "lora"
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut.safetensors cannot be read as safetensors"):
        kind(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style.safetensors", ("style.safetensors", 1.0)),
        ("a/style.safetensors:0.5", ("a/style.safetensors", 0.5)),
        ("owner/name:-2", ("owner/name", -2.0)),
        ("c:style", ("c:style", 1.0)),
        ("c:style:2", ("c:style", 2.0)),
        (":0.5", ("", 0.5)),
    ],
)
def test_source_and_strength(text: str, expected: tuple[str, float]) -> None:
    assert split(text) == expected


def test_names(files: dict[str, Path]) -> None:
    assert [stem(source) for source in (files["lora"], "owner/name", "folder/", "a.b.bin")] == [
        *("lora", "name", "folder", "a.b")
    ]
    assert stem(r"C:\loras\style.safetensors") == "style"


def test_words_act_by_being_said_and_others_by_being_asked_for(pipe: Pipeline, files: dict[str, Path]) -> None:
    before, other = pipe(ZIP, **QUICK).tensor, pipe(RED, **QUICK).tensor
    assert pipe.load_adapter(files["word"]) is None
    said = pipe(ZIP, **QUICK).tensor
    assert not torch.equal(said, before)
    assert torch.equal(pipe(RED, **QUICK).tensor, other)
    assert pipe.load_adapter(str(files["prefix"])) == "prefix"
    assert pipe.load_adapter(files["lora"], name="mine") == "mine"
    assert {name: status.kind for name, status in pipe.adapters().items()} == {"prefix": "prefix", "mine": "lora"}
    assert torch.equal(pipe(ZIP, **QUICK).tensor, said), "loaded is not asked for"
    for name in ("prefix", "mine"):
        assert not torch.equal(pipe(ZIP, **QUICK, adapters={name: 1.0}).tensor, said)


def test_all_at_once(pipe: Pipeline, files: dict[str, Path]) -> None:
    asked = [(str(files["lora"]), 0.5), (str(files["word"]), 1.0), (str(files["prefix"]), 2.0), (str(files["lora"]), 1)]
    assert load_all(pipe, asked) == {"lora": 0.5, "prefix": 2.0, "lora-3": 1}
    with pytest.raises(ValueError, match="word.safetensors is a word, which prompts say: it has no strength such as 2"):
        load_all(pipe, [(str(files["word"]), 2.0)])
    with pytest.raises(ValueError, match="named by its file, folder or hub id"):
        load_all(pipe, [("", 1.0)])


def test_on_the_command_line(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    options = ["-m", "spare", "-n", "1", "--steps", "1", "--device", "cpu", "-o", str(tmp_path)]
    _, plain, err = run("generate", ZIP, *options)
    assert "does not know 'Zip'" in err
    asked = ["--adapter", f"{files['lora']}:0.5", "--adapter", str(files["prefix"]), "--adapter", str(files["word"])]
    status, out, err = run("generate", ZIP, *options, *asked)
    assert (status, err) == (0, ""), "the word is known now"
    with Image.open(out.splitlines()[0]) as image, Image.open(plain.splitlines()[0]) as before:
        said = json.loads(image.text["settings"])  # type: ignore[attr-defined]
        assert said["adapters"] == {"lora": 0.5, "prefix": 1.0}
        assert image.tobytes() != before.tobytes()
    status, _, err = run("generate", ZIP, *options, "--adapter", f"{files['word']}:0.5")
    assert status == 2
    assert "it has no strength such as 0.5" in err


def test_compared(models: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_MODELS", str(models))
    asked = ["spare", f"spare+{files['prefix']}", f"spare+{files['prefix']}:0", f"spare+{files['word']}"]
    found = zoo.compare(asked, ZIP, steps=1, repeats=1, device="cpu", progress=False)
    plain, prefixed, without, worded = (row.pictures[0].tobytes() for row in found.rows)
    assert plain == without, "strength 0 is none"
    assert len({plain, prefixed, worded}) == 3
    assert found.rows[1].settings["adapters"] == {"prefix": 1.0}
    assert "adapters" not in found.rows[3].settings
