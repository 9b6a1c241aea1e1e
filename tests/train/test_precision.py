"""Training computes in bfloat16 only where that is fast, unless the recipe says otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from zoo.train.precision import bf16_is_fast, in_half


@pytest.fixture(params=[(False, False), (True, False), (False, True)])
def capable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """A CPU without instructions for bfloat16, with those of AVX-512, with those of AMX."""
    avx512, amx = request.param
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    bf16_is_fast.cache_clear()
    yield avx512 or amx
    bf16_is_fast.cache_clear()


def test_auto_asks_the_device(capable: bool) -> None:
    assert in_half("auto", torch.device("cpu")) == capable
    assert in_half("auto", torch.device("cuda"))


def test_a_recipe_decides(capable: bool) -> None:
    for device in ("cpu", "cuda"):
        assert in_half("bf16", torch.device(device))
        assert not in_half("no", torch.device(device))
