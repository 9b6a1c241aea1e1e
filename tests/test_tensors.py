from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo import tensors


def weights(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)} | changed


def test_half_precision_file_to_float32_module(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    tensors.write(path, weights(), torch.float16)
    stored = tensors.read(path)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    layer = tensors.on_meta(lambda: nn.Linear(3, 2))
    assert layer.weight.is_meta
    tensors.assign(layer, stored, source=path)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, weights()["weight"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors"]


def test_files_may_be_read_by_whom_new_files_may(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        tensors.write(tmp_path / "model.safetensors", weights())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644


def test_every_fault_is_listed_at_once() -> None:
    given = {"weight": torch.zeros(3, 2), "scale": torch.ones(1)}
    with pytest.raises(ValueError, match=r"here does not fit Linear") as caught:
        tensors.assign(tensors.on_meta(lambda: nn.Linear(3, 2)), given, source="here")
    message = str(caught.value)
    assert "missing (1): bias" in message
    assert "unexpected (1): scale" in message
    assert "misshapen (1): weight [3, 2] instead of [2, 3]" in message


def test_named_left_overs_only() -> None:
    layer = tensors.on_meta(lambda: nn.Linear(3, 2))
    tensors.assign(layer, weights(position_ids=torch.ones(1)), source="here", ignore=[r"position_ids"])
    with pytest.raises(ValueError, match="unexpected"):
        tensors.assign(layer, weights(position_ids2=torch.ones(1)), source="here", ignore=[r"position_ids"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    bad = weights(bias=torch.tensor([1.0, value]))
    with pytest.raises(ValueError, match=r"not finite \(1\): bias"):
        tensors.assign(tensors.on_meta(lambda: nn.Linear(3, 2)), bad, source="here")
    with pytest.raises(ValueError, match="bias holds NaN or infinity"):
        tensors.write(tmp_path / "x.safetensors", bad)
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_half_precision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="infinity as torch.float16"):
        tensors.write(tmp_path / "x.safetensors", {"a": torch.tensor([1e5])}, torch.float16)


def test_a_buffer_that_is_not_stored_is_not_left_without_values() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.arange(4), persistent=False)

    with pytest.raises(ValueError, match="leaves places of Counting without values"):
        tensors.assign(tensors.on_meta(Counting), {}, source="here")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors.write(path, weights())
    path.write_bytes(path.read_bytes()[:-8])
    for broken in (path, tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            tensors.read(broken)


def test_fingerprint() -> None:
    half = {name: tensor.half() for name, tensor in weights().items()}
    mark = tensors.fingerprint(weights())
    assert tensors.fingerprint(half) == mark
    assert tensors.fingerprint(dict(reversed(weights().items()))) == mark
    assert tensors.fingerprint(weights(bias=torch.tensor([1.0, 1.01]))) != mark
    assert tensors.fingerprint({"weight": weights()["weight"].reshape(3, 2), "bias": torch.ones(2)}) != mark


def test_eight_bits_are_half_of_half_precision_and_nearly_as_good(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    kernel = torch.randn(32, 64, 3, 3, generator=source) * torch.logspace(-3, 1, 32)[:, None, None, None]
    given = {
        "kernel": kernel,
        "bias": torch.randn(32, generator=source),
        "ids": torch.arange(5),
        "empty": torch.zeros(0, 4),
        "row": torch.randn(1, 64, generator=source),
    }
    tensors.write(tmp_path / "half.safetensors", given, torch.float16)
    tensors.write(tmp_path / "eight.safetensors", given, torch.int8)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "eight")]
    assert sizes[1] < 0.53 * sizes[0]
    stored = tensors.read(tmp_path / "eight.safetensors")
    assert stored.keys() == given.keys()
    assert torch.equal(stored["ids"], given["ids"])
    for name in ("bias", "row"):  # one scale would be too few
        assert torch.equal(stored[name], given[name].half())
    error = (stored["kernel"].float() - kernel).flatten(1).norm(dim=1) / kernel.flatten(1).norm(dim=1)
    assert float(error.max()) < 0.012, "each row has a scale of its own"
    tensors.write(tmp_path / "again.safetensors", stored, torch.int8)
    again = tensors.read(tmp_path / "again.safetensors")
    assert torch.allclose(again["kernel"].float(), stored["kernel"].float(), rtol=2e-3, atol=1e-6)


def test_eight_bits_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight holds NaN or infinity"):
        tensors.write(tmp_path / "nan.safetensors", weights(weight=torch.full((2, 3), torch.nan)), torch.int8)
    save_file({"w": torch.ones(2, 3, dtype=torch.int8), "w.scale": torch.ones(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd\.safetensors is damaged: the scales of w do not fit"):
        tensors.read(tmp_path / "odd.safetensors")


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    said = {f"key {i}": f"ß {i}" for i in range(8)}
    for i in range(4):  # safetensors writes its metadata in another order each time
        tensors.write(tmp_path / f"{i}", {"b": torch.ones(2), "a": torch.zeros(3)}, metadata=said)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(4)}) == 1
    assert tensors.metadata(tmp_path / "0") == said
    assert tensors.read(tmp_path / "0")["b"].tolist() == [1, 1]
