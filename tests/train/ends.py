"""How two runs ended: what their last checkpoints hold, to the bit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from zoo.train import checkpoint


def check_same_end(whole: Path, resumed: Path) -> None:
    """Weights, averages and the optimiser's state of two runs' last checkpoints are the same, bit for bit.

    The resumed run must have moved its weights since the checkpoint before, or nothing would be shown.
    """
    ends = [checkpoint.found(out / "checkpoints") for out in (whole, resumed)]
    assert ends[0][0].name == ends[1][0].name
    expected, got, before = (load_file(path) for path in (ends[0][0], ends[1][0], ends[1][1]))
    assert {name.partition(".")[0] for name in expected} == {"model", "ema", "optimiser"}
    assert expected.keys() == got.keys()
    differing = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert not differing, differing
    for kind in ("model", "ema"):
        assert any(not torch.equal(got[name], before[name]) for name in got if name.startswith(f"{kind}."))
