"""Intervals: known values, and that they cover the truth as often as they say."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from zoo.evaluate.intervals import of_mean, of_share


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [  # 81 of 263, 0 of 20 and 1 of 29: Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0000)),
    ],
)
def test_published_intervals_of_a_share(right: int, n: int, expected: tuple[float, float]) -> None:
    assert of_share(right, n) == pytest.approx(expected, abs=5e-5)


def test_the_mean_of_one_task_is_its_share() -> None:
    for right, n in ((0, 5), (3, 7), (16, 16)):
        assert of_mean([(right, n)]) == pytest.approx(of_share(right, n))


def test_tasks_that_are_alike_are_one_pile() -> None:
    for right in (0, 5, 16):
        assert of_mean([(right, 16)] * 6) == pytest.approx(of_share(6 * right, 96))


def test_a_mean_lies_in_its_interval_which_tasks_that_differ_make_narrower() -> None:
    differing, alike = of_mean([(98, 100), (2, 100)]), of_mean([(50, 100), (50, 100)])
    assert differing[0] < 0.5 < differing[1]
    assert differing[1] - differing[0] < 0.5 * (alike[1] - alike[0])


def test_a_small_task_weighs_as_much_as_a_large_one() -> None:
    low, high = of_mean([(0, 4), (1000, 1000)])
    assert low < 0.5 < high
    assert high - low > 0.15, "four pictures say little, however many the other task has"


@pytest.mark.parametrize("n", [4, 16, 100])
@pytest.mark.parametrize(
    "truth",
    [
        (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
        (0.97, 0.97, 0.97, 0.97, 0.97, 0.97),
        (0.99, 0.99, 0.99, 0.99, 0.99, 0.99),
        (1.0, 1.0, 1.0, 0.9, 0.8, 0.6),
        (0.1, 0.2, 0.5, 0.7, 0.9, 0.95),
        (1.0, 1.0, 1.0, 1.0, 1.0, 0.5),
    ],
)
def test_intervals_of_a_mean_cover_the_truth(n: int, truth: tuple[float, ...]) -> None:
    interval = cache(lambda counts: of_mean([(right, n) for right in counts]))  # drawn again and again
    drawn = np.sort(np.random.default_rng(n).binomial(n, truth, (4000, len(truth))))
    covered = [low <= np.mean(truth) <= high for low, high in (interval(tuple(row)) for row in drawn.tolist())]
    assert np.mean(covered) >= 0.92  # 0.928 at worst, over 20,000 reports


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        of_share(right, n)
    with pytest.raises(ValueError, match="no interval"):
        of_mean([(3, 4), (right, n)])


def test_no_tasks_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        of_mean([])
