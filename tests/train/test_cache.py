from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zoo.train import cache
from zoo.train.cache import SceneData, filled, filled_together, picked, scenes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "PROBED", 2)
    monkeypatch.setattr(cache, "CHUNK", 3)


def test_scenes_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SceneData(scenes=7, size=16, workers=1)
    first = scenes(data)
    assert (first.images.shape, first.images.dtype, len(first.scenes)) == ((7, 16, 16, 3), np.uint8, 7)
    for image, scene in zip(first.images, first, strict=True):
        assert (image == cache.render(scene, 16)).all()
    monkeypatch.setattr(cache, "_draw", lambda *_: pytest.fail("it was drawn again"))
    assert scenes(data).folder == first.folder


@pytest.mark.slow
def test_more_processes_draw_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = scenes(SceneData(scenes=8, size=16, workers=1))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "other"))
    together = scenes(SceneData(scenes=8, size=16, workers=2))
    assert together.folder != alone.folder
    assert (together.images == alone.images).all()
    assert together.scenes == alone.scenes


def test_every_setting_and_the_drawing_itself_name_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [{}, {"scenes": 3}, {"size": 8}, {"seed": 1}]
    folders = {scenes(SceneData.model_validate({"scenes": 2, "size": 16, "workers": 1} | s)).folder for s in settings}
    assert len(folders) == 4
    render = cache.render
    monkeypatch.setattr(cache, "render", lambda scene, size: 255 - render(scene, size))
    assert scenes(SceneData(scenes=2, size=16, workers=1)).folder not in folders


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.ones((2, 3))
        raise KeyboardInterrupt

    folder = tmp_path / "cache" / "array"
    folder.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        filled(folder, (4, 3), broken(), what="test")
    assert list(folder.parent.iterdir()) == []
    made = filled(folder, (4, 3), (np.full((2, 3), i) for i in range(2)), what="test")
    assert made.tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    again = filled(folder, (4, 3), broken(), what="test")
    assert again.dtype == np.float16
    assert (again == made).all()


def test_rows_come_in_the_order_asked_for() -> None:
    array = np.arange(10).reshape(5, 2)
    assert picked(array, np.array([3, 0, 3, 1])).tolist() == [[6, 7], [0, 1], [6, 7], [2, 3]]


def test_arrays_of_one_pass_fill_only_what_is_missing(tmp_path: Path) -> None:
    passes = 0

    def chunks(value: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal passes
        passes += 1
        for row in range(2):
            yield np.full((2, 3), value + row), np.full((2, 5), -value - row)

    names, vectors = tmp_path / "cache" / "names", tmp_path / "cache" / "vectors"
    names.parent.mkdir()
    (alone,) = filled_together({names: (4, 3)}, ((first,) for first, _ in chunks(1)), what="test")
    both = filled_together({names: (4, 3), vectors: (4, 5)}, chunks(7), what="test")
    assert both[0].tolist() == alone.tolist() == [[1] * 3] * 2 + [[2] * 3] * 2  # as it was
    assert both[1].tolist() == [[-7] * 5] * 2 + [[-8] * 5] * 2
    again = filled_together({names: (4, 3), vectors: (4, 5)}, chunks(9), what="test")
    assert [array.tolist() for array in again] == [array.tolist() for array in both]
    assert passes == 2  # a generator that nobody asks does not begin
