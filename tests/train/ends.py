"""How two runs ended, one of them cut short and resumed: what their last checkpoints hold, to the bit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from zoo.train import checkpoint, run


def check_resumed(recipe: Path, out: Path, *more: str) -> Path:
    """A run that was cut short before its last checkpoint and resumed ends as a whole one; returns the resumed one's
    folder, in `out`. `more` are overrides; the runs keep a checkpoint of every step unless they say otherwise.
    """
    whole, resumed = out / "whole", out / "resumed"
    said = ["checkpoint_every=1", "optimiser.warmup=0", *more]  # a rate that is felt from the first step on
    for folder in (whole, resumed):
        run(recipe, [*said, f"out={folder}"], device="cpu")
    checkpoint.found(resumed / "checkpoints")[0].unlink()  # as if it had been killed before the last one
    run(recipe, [*said, f"out={resumed}"], device="cpu", resume=True)
    check_same_end(whole, resumed)
    return resumed


def check_recomputed(recipe: Path, out: Path, *more: str) -> None:
    """A run whose blocks are computed again in the backward pass ends as one that keeps everything."""
    kept, again = out / "kept", out / "again"
    for folder in (kept, again):
        said = [
            "checkpoint_every=1",
            "optimiser.warmup=0",
            *more,
            f"recompute={'true' if folder == again else 'false'}",
        ]
        run(recipe, [*said, f"out={folder}"], device="cpu")
    check_same_end(kept, again)


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
