"""Training computes in bfloat16 only where that is fast, unless the recipe says otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from zoo.train import precision
from zoo.train.precision import bf16_is_fast, in_half


@pytest.fixture(
    params=[(False, False, 0.0, False), (True, False, 0.5, True), (True, False, 2.0, False), (False, True, 0.2, True)]
)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """CPUs: without instructions for bfloat16; with AVX-512's, faster or slower than float32; with AMX."""
    avx512, amx, ratio, expected = request.param
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "seconds", {torch.bfloat16: ratio, torch.float32: 1.0}.__getitem__)
    bf16_is_fast.cache_clear()
    yield expected
    bf16_is_fast.cache_clear()


def test_auto_asks_the_device(fast: bool) -> None:
    assert in_half("auto", torch.device("cpu")) == fast


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_before_ampere_are_slow_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    bf16_is_fast.cache_clear()
    assert in_half("auto", torch.device("cuda")) == expected
    bf16_is_fast.cache_clear()


def test_a_recipe_decides(fast: bool) -> None:
    for device in ("cpu", "cuda"):
        assert in_half("bf16", torch.device(device))
        assert not in_half("no", torch.device(device))


def test_the_stopwatch() -> None:
    assert 0 < precision.seconds(torch.float32) < 10
