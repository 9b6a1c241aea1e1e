"""Weights that are mapped are looked at by the first call, all others while they are loaded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo import tensors
from zoo.finite import checked_later


def stored(path: Path, dtype: torch.dtype, value: float) -> Path:
    save_file({"weight": torch.full((2, 3), value, dtype=dtype), "bias": torch.zeros(2, dtype=dtype)}, path)
    return path


def load(path: Path) -> nn.Linear:
    return tensors.load(lambda: nn.Linear(3, 2), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_at_once_unless_someone_looks_later(tmp_path: Path, dtype: torch.dtype) -> None:
    path = stored(tmp_path / "a.safetensors", dtype, math.nan)
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit Linear:\n  not finite \(1\): weight"):
        load(path)


def test_loading_may_happen_within_autocast(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert load(stored(tmp_path / "a.safetensors", torch.float16, 1.0)).weight.dtype == torch.float32


def test_mapped_weights_are_looked_at_later(tmp_path: Path) -> None:
    good = stored(tmp_path / "good.safetensors", torch.float32, 1.0)
    bad = stored(tmp_path / "bad.safetensors", torch.float32, math.inf)
    with checked_later() as unread:
        load(good)
        unread.check()
        load(bad)
    for _ in range(2):  # they stay bad
        with pytest.raises(ValueError, match=r"bad\.safetensors holds NaN or infinity \(1\): weight\. Fetch"):
            unread.check()


def test_what_is_converted_is_read_and_looked_at(tmp_path: Path) -> None:
    with checked_later(), pytest.raises(ValueError, match=r"not finite \(1\): weight"):
        load(stored(tmp_path / "half.safetensors", torch.float16, math.nan))


def test_what_a_module_holds_is_looked_at_as_it_holds_it_by_then(tmp_path: Path) -> None:
    """Cast, say; what no module holds is let go."""
    bad = stored(tmp_path / "bad.safetensors", torch.float32, math.nan)
    large = stored(tmp_path / "large.safetensors", torch.float32, 1e5)
    with checked_later() as unread:
        load(bad)
        kept = load(large)
    assert unread.sources == [str(bad), str(large)]
    unread.keep([kept])
    kept.to(torch.bfloat16)
    unread.check()
    with checked_later() as unread:
        kept = load(large)
    unread.keep([kept])
    kept.to(torch.float16)
    with pytest.raises(ValueError, match=r"large\.safetensors holds NaN or infinity \(1\): weight\. .* as bfloat16"):
        unread.check()


def test_what_was_loaded_before_or_after_is_not_taken(tmp_path: Path) -> None:
    bad = stored(tmp_path / "bad.safetensors", torch.float32, math.nan)
    with checked_later() as unread:
        pass
    with pytest.raises(ValueError, match="not finite"):
        load(bad)
    unread.check()


def test_a_change_anywhere_renames_the_space_of_large_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = {"weight": torch.randn(1024, 1024), "bias": torch.randn(1000)}
    name = tensors.fingerprint(large)
    assert tensors.fingerprint({key: value.clone() for key, value in large.items()}) == name
    assert tensors.fingerprint({key: value.half() for key, value in large.items()}) == name
    assert tensors.fingerprint(large | {"weight": large["weight"] * 1.01}) != name  # a step of training
    assert tensors.fingerprint(large | {"weight": torch.cat([large["weight"], torch.zeros(1, 1024)])}) != name
    bias = large["bias"].clone()
    bias[-1] += 1
    assert tensors.fingerprint(large | {"bias": bias}) != name
