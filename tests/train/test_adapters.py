"""What training leaves is opened again, beside the model that it adapts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from tests.conftest import write_model
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.evaluate.personalisation import Contestant, Measures, Sizes
from zoo.train import adapters


def test_what_a_run_left_is_opened_and_compared(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vocabulary: bytes
) -> None:
    final = tmp_path / "mine" / "final"
    lora = LoRA.build(zoo.load("tiny", device="cpu").adaptable()["unet"].module, ["*.to_q"])
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up)
    write(final / "lora.safetensors", {"unet": lora})
    with pytest.raises(ValueError, match="has no training.json: give the folder `final` of a training run"):
        adapters.opened(final, "mine")
    with pytest.raises(ValueError, match="holds no adapters: give the folder `final`"):
        adapters.opened(final.parent, "mine")
    story = {"recipe": {"model": "tiny"}, "step": 3, "images": 6, "minutes": 0.5}
    (final / "training.json").write_text(json.dumps(story), "utf-8")
    one = adapters.opened(final, "mine", device="cpu")
    assert one.settings == {"adapters": {"lora": 1.0}}
    assert one.bytes == (final / "lora.safetensors").stat().st_size
    whole = write_model(tmp_path / "whole", vocabulary, seed=50)
    assert adapters.opened(whole, "whole", device="cpu").settings == {}
    (final / "odd.safetensors").write_bytes((final / "lora.safetensors").read_bytes())
    with pytest.raises(ValueError, match="odd.safetensors is no file that training leaves"):
        adapters.opened(final, "mine", device="cpu")
    (final / "odd.safetensors").unlink()
    # The command, with its pictures measured elsewhere: those of random weights are slow to judge.
    asked: list[str] = []

    def measured(one: Contestant, sizes: Sizes) -> Measures:
        asked.append(one.name)
        share = 0.8 - 0.1 * len(asked)
        return Measures(fidelity=share, alignment=share, both=share, leak=0.0, spread=share, others=share)

    monkeypatch.setattr(adapters, "measure", measured)
    monkeypatch.setattr(adapters, "strip", lambda shown, seed, steps: Image.new("RGB", (8 * len(shown), 8)))
    sheet, saved = tmp_path / "sheet.png", tmp_path / "results" / "p7.json"
    given = ["adapters", str(final), f"other={final}", "--device", "cpu", "--sheet", str(sheet), "--save", str(saved)]
    monkeypatch.setattr("sys.argv", given)
    adapters.main()
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines()[2:]] == ["tiny", "mine", "other"]
    assert "0.857" in said.splitlines()[3], "diversity is relative to the model's own"
    assert Image.open(sheet).width == 8 * 3
    # What is saved is not measured again, what is new is; a page is written of it.
    monkeypatch.setattr("sys.argv", ["adapters", f"third={final}", *given[1:]])
    adapters.main()
    assert asked == ["tiny", "mine", "other", "third"]
    page = tmp_path / adapters.PAGE
    page.parent.mkdir()
    page.write_text("".join(("before\n", *adapters.TABLE.marks, "\nafter\n")), "utf-8")
    assert adapters.TABLE.stale(tmp_path)
    adapters.TABLE.write(tmp_path)
    assert not adapters.TABLE.stale(tmp_path)
    assert page.read_text("utf-8").count("\n| ") == 2 + 4
    monkeypatch.setattr("sys.argv", ["adapters", f"mine={final}", f"mine={whole}"])
    with pytest.raises(SystemExit, match="are both called 'mine': give one as NAME=FOLDER"):
        adapters.main()
    with pytest.raises(ValueError, match="cannot go by the model's name 'tiny'"):
        adapters.measured({"tiny": final}, "tiny", Sizes())
    # What was trained anew is measured anew.
    torch.nn.init.normal_(next(iter(lora.layers.values())).up)
    write(final / "lora.safetensors", {"unet": lora})
    monkeypatch.setattr("sys.argv", given)
    adapters.main()
    assert asked[4:] == ["mine", "other"]
    (final / "base.json").write_text(json.dumps({"generator": "others"}), "utf-8")
    with pytest.raises(ValueError, match="trained on other weights than those of tiny"):
        adapters.opened(final, "mine", device="cpu")
    (final / "base.json").unlink()
    monkeypatch.setattr("sys.argv", [*given, "--steps", "3"])
    with pytest.raises(SystemExit, match="give another file, or remove it"):
        adapters.main()
