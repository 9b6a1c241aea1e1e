"""What training leaves is opened again, beside the model that it adapts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zoo
from tests.conftest import write_model
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.evaluate import personalisation
from zoo.evaluate.personalisation import COLUMNS
from zoo.train import adapters


def test_what_a_run_left_is_opened_and_compared(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vocabulary: bytes
) -> None:
    final = tmp_path / "mine" / "final"
    lora = LoRA.build(zoo.load("tiny", device="cpu").adaptable()["unet"].module, ["*.to_q"])
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up)
    write(final / "lora.safetensors", {"unet": lora})
    with pytest.raises(ValueError, match="holds no adapters with their training.json"):
        adapters.opened(final, "mine")
    (final / "training.json").write_text(json.dumps({"recipe": {"model": "tiny"}}), "utf-8")
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
    drawn = personalisation.Drawn(dict.fromkeys(COLUMNS, 0.5), 1.0, torch.rand(50, 3, 8, 8))  # type: ignore[arg-type]
    monkeypatch.setattr(personalisation, "measure", lambda *_, **__: drawn)
    sheet = tmp_path / "sheet.png"
    given = ["adapters", str(final), f"other={final}", "--device", "cpu", "--sheet", str(sheet)]
    monkeypatch.setattr("sys.argv", given)
    adapters.main()
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["tiny", "mine", "other"]
    assert sheet.is_file()
