"""What a pipeline costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from zoo import cost
from zoo.pipeline import Pipeline


@pytest.mark.parametrize(("guidance", "halves"), [(1.0, 1), (3.0, 2)])
@pytest.mark.parametrize(
    ("sampler", "calls"), [("ddim", 4), ("euler", 4), ("heun", 6)]
)  # once where it leaves pure noise, and at the end
def test_evaluations_are_calls_times_batch_halves(
    tiny: Pipeline, sampler: str, calls: int, guidance: float, halves: int
) -> None:
    # Heun predicts once where it leaves all but pure noise, and at the end.
    with cost.evaluations(tiny) as counts:
        tiny(["a star", "a circle"], n=2, steps=4, sampler=sampler, guidance=guidance, batch=3, progress=False)
    assert counts == {"generator": 4 * calls * halves, "decoder": 0}
    tiny("a star", n=1, steps=1, progress=False)
    assert counts["generator"] == 4 * calls * halves, "no longer counted"


def test_parameters(tiny: Pipeline) -> None:
    counts = cost.parameters(tiny)
    assert list(counts) == ["text_encoder", "generator", "decoder"]
    assert counts["decoder"] == sum(p.numel() for p in tiny.decoder.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("takes", "start", "steps"),
    [
        (lambda s: 0.1 * s, 20, 10),
        (lambda s: 0.4 + 0.05 * s, 20, 12),
        (lambda s: 0.4 + 0.05 * s, 1, 12),
        (lambda s: 2.0 + 0.1 * s, 20, 1),
        (lambda s: 1e-6 * s, 20, cost.MOST_STEPS),
        (lambda s: 1.0, 20, 20),
        (lambda s: 0.1 * (2 * s - 1), 8, 6),
    ],
)
def test_steps_that_take_a_second(takes: Callable[[int], float], start: int, steps: int) -> None:
    assert cost.steps_in(1.0, takes, start) == steps


def test_a_guess_is_measured_and_mended() -> None:
    asked: list[int] = []

    def takes(steps: int) -> float:  # a tenth of a second each, but for one time that the clock was late
        asked.append(steps)
        return 0.1 * steps + (0.1 if len(asked) == 2 else 0)

    assert cost.steps_in(2.0, takes, 10) == 20
    assert asked[:2] == [5, 10]
    assert len(asked) == 3


def test_seconds_are_of_the_calls_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(now))
    turns: list[int] = []
    assert cost.seconds(turns.append, 3) == [1.0, 2.0, 3.0]
    assert turns == [0, 0, 1, 2]


HELD = """
import numpy as np
import torch
from zoo import cost

device = torch.device("cpu")
cost.release()
held = np.ones(20 * 2**20 // 8)
memory = cost.Memory(device)
print(memory.peak())
large = np.ones(64 * 2**20 // 8)  # 64 MiB, written to
del large
cost.release()
print(memory.peak())
del held
cost.release()
print(cost.Memory(device).peak())
"""


@pytest.mark.skipif(cost.resident() is None, reason="only Linux tells")
def test_memory_is_the_peak_beyond_what_was_there() -> None:
    # In a process with no threads of other tests, whose memory would count.
    done = subprocess.run([sys.executable, "-c", HELD], check=True, capture_output=True, text=True)
    first, peak, after = map(float, done.stdout.split())
    assert first < 8
    assert 60 < peak < 80
    assert after < 8, "the peak of before is forgotten"
