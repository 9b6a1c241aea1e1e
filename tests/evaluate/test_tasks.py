"""The scored tasks: their splits, their prompts, and prompts of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.data.scenes import heldout, is_heldout
from zoo.evaluate.tasks import TASKS, cases, has_part, read_cases, scenes_for


@pytest.mark.parametrize("task", TASKS)
def test_seen_scenes_hold_nothing_held_out(task: str) -> None:
    assert not any(is_heldout(scene) for scene in scenes_for(task, "seen", 400))


@pytest.mark.parametrize("task", [t for t in TASKS if has_part(t, "test")])
@pytest.mark.parametrize(("part", "other"), [("dev", "test"), ("test", "dev")])
def test_held_out_scenes_belong_to_their_half(task: str, part: str, other: str) -> None:
    scenes = scenes_for(task, part, 200)
    assert all(is_heldout(scene, part) and not is_heldout(scene, other) for scene in scenes)
    _, object_pairs = heldout("all")
    by_objects = {frozenset(item.shape for item in scene.items) in object_pairs for scene in scenes}
    assert by_objects == {task in ("two objects", "position")}


def test_a_single_object_has_no_held_out_version() -> None:
    with pytest.raises(ValueError, match="no held-out version"):
        scenes_for("single object", "test", 1)
    with pytest.raises(ValueError, match="no scenes"):
        scenes_for("dreams", "seen", 1)


def test_scenes_repeat_and_grow_from_the_front() -> None:
    for task in TASKS:
        assert scenes_for(task, "seen", 20, seed=5)[:8] == scenes_for(task, "seen", 8, seed=5)
        assert scenes_for(task, "seen", 20, seed=5) != scenes_for(task, "seen", 20, seed=6)


def test_languages_share_scenes_and_seeds() -> None:
    asked = cases(6, seed=1)
    english, chinese = ([c for c in asked if c.language == language] for language in ("en", "zh"))
    assert [(c.task, c.split, c.scene, c.seed) for c in english] == [
        (c.task, c.split, c.scene, c.seed) for c in chinese
    ]
    assert all(c.prompt.isascii() for c in english)
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in c.prompt) for c in chinese)
    assert len(asked) == 6 * 2 * (2 * len(TASKS) - 1)
    assert len({(c.seed, c.language) for c in asked}) == len(asked)


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a red car left of a tree", "task": "position", "seed": 4,
         "scene": {"items": [{"shape": "car", "colour": "red"}, {"shape": "tree"}], "relation": "left of"}},
        {"prompt": "两辆绿色的汽车", "scene": {"items": [{"shape": "car", "colour": "green"}], "count": 2}},
    ]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    first, second = read_cases(file)
    assert (first.task, first.split, first.language, first.seed) == ("position", "seen", "en", 4)
    assert first.scene.to_dict() == {**rows[0]["scene"], "count": 1}
    assert (second.task, second.split, second.language) == ("custom", "held_out", "zh")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "JSON object"),
        ('{"prompt": "a car", "scene": {"items": [{"shape": "boat"}]}}', "line 2.*boat.*allowed: circle"),
        ('{"prompt": "a car", "scene": {"items": []}}', "one or two objects"),
        ('{"prompt": "a car", "scene": {"items": ["car"]}}', "line 2"),
        ('{"prompt": "a car"}', "expected a prompt"),
        ('{"prompt": "a car", "scene": {"items": [{"shape": "car"}]}, "colour": 1}', "unknown fields"),
        ('{"prompt": "a car", "scene": {"items": [{"shape": "car"}]}, "language": "fr"}', "allowed: en, zh"),
        ('{"prompt": "a car", "scene": {"items": [{"shape": "car"}]}, "seed": "x"}', "whole number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a car", "scene": {"items": [{"shape": "car"}]}}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_cases(file)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_cases(file)
