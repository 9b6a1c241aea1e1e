"""Scores of pipes that keep everything, replace everything, or edit perfectly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from zoo.data.draw import footprints
from zoo.data.scenes import is_heldout
from zoo.evaluate import editing
from zoo.evaluate.editing import Edit, as_tensor, edits, evaluate, sheet_rows, table
from zoo.pipeline import Pipeline

N = 2
Answer = Callable[[Edit, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


@dataclass
class Pictures:
    tensor: torch.Tensor


class FakePipe:
    """Answers each edit, which it knows by its seed, from what it was given."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked = {edit.seed: edit for kind in ("single", "relation") for edit in edits(kind, N)}

    def __call__(
        self, prompts: Sequence[str], *, n: int, seed: Sequence[int], progress: bool, **settings: object
    ) -> Pictures:
        assert n == 1
        images, masks = settings["image"], settings.get("mask")
        assert (masks is None) == ("strength" in settings)
        assert [self.asked[s].prompt for s in seed] == list(prompts)
        rows = range(len(prompts))
        made = [self.answer(self.asked[seed[i]], images[i], None if masks is None else masks[i]) for i in rows]
        return Pictures(torch.stack(made))


def keep(edit: Edit, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return image


def obey(edit: Edit, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    wanted = as_tensor(edit.after)
    return wanted if mask is None else torch.where(mask > 0, wanted, image)


def move(edit: Edit, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What was asked for, but in the opposite corner and nothing else."""
    thing = edit.after.objects[edit.which]
    corner = 0.3 if thing.x > 0.5 else 0.7
    return as_tensor(replace(edit.after, objects=(replace(thing, x=corner, y=corner, extent=0.4),)))


def scores(answer: Answer) -> editing.Editing:
    return evaluate(FakePipe(answer), n=N, strengths=(0.5,), batch=4, progress=False)[0]


def test_a_perfect_editor_scores_one() -> None:
    report = scores(obey)
    for change in editing.CHANGES:
        assert report["img2img"][change]["0.5"] == {"changed": 1, "kept": 1, "both": 1}
        inpainted = report["inpainting"][change]
        assert (inpainted["changed"], inpainted["kept"], inpainted["both"]) == (1, 1, 1)
        assert inpainted["outside"] == 0
        assert abs(inpainted["seam"]) < 0.5
    assert (report["scenes"], report["images"]) == (4 * N, 4 * N)
    assert json.loads(json.dumps(report)) == report
    assert "img2img, shape, strength 0.5" in table(report)


def test_who_keeps_all_has_changed_nothing() -> None:
    report = scores(keep)
    for change in editing.CHANGES:
        assert report["img2img"][change]["0.5"] == {"changed": 0, "kept": 1, "both": 0}
        assert report["inpainting"][change]["changed"] == 0
        assert report["inpainting"][change]["kept"] == 1


def test_who_replaces_all_has_kept_nothing() -> None:
    report = scores(move)
    for change in editing.CHANGES:
        shares = report["img2img"][change]["0.5"]
        assert shares["changed"] == 1
        assert shares["kept"] < 1
        assert shares["both"] == shares["kept"]
        inpainted = report["inpainting"][change]
        assert inpainted["kept"] == inpainted["both"] == 0
        assert inpainted["outside"] > 5


def test_a_patch_that_does_not_fit_its_surroundings_shows_as_a_seam() -> None:
    report = scores(lambda edit, image, mask: image if mask is None else (image + 0.2 * (0.5 - image).sign() * mask))
    assert all(40 < report["inpainting"][change]["seam"] < 60 for change in editing.CHANGES)


@pytest.mark.parametrize("kind", ["single", "relation"])
def test_edits_change_one_thing_and_name_nothing_held_out(kind: str) -> None:
    asked = edits(kind, 20)
    assert asked == edits(kind, 20)
    assert asked[:5] == edits(kind, 5)[:5]
    assert len({edit.seed for edit in asked}) == 40
    assert any(edit.prompt[0] >= "\u4e00" for edit in asked)
    for edit in asked:
        assert not is_heldout(edit.before.describe())
        assert not is_heldout(edit.after.describe())
        before, after = edit.before.objects[edit.which], edit.after.objects[edit.which]
        assert replace(after, **{edit.change: getattr(before, edit.change)}) == before != after
        mask = edit.mask[0] > 0
        cells = mask.reshape(16, 4, 16, 4).float().mean((1, 3))
        assert set(cells.unique().tolist()) <= {0.0, 1.0}, "masks consist of whole cells"
        for index, cover in enumerate(footprints(edit.before)):
            inside = torch.from_numpy(cover)[mask].sum() == cover.sum()
            assert inside == (index == edit.which)
        assert torch.from_numpy(footprints(edit.after)[edit.which])[~mask].sum() == 0, "the new object has room"


def test_sheet_rows_show_what_was_given_and_what_was_made() -> None:
    _, made = evaluate(FakePipe(obey), n=N, strengths=(0.3, 0.6), progress=False)
    rows = list(sheet_rows(made, rows=1))
    captions = [caption for caption, _ in rows]
    assert len(captions) == 2 * 3 + 2 * 3  # input, two strengths; input, masked input, output
    assert captions[0].startswith("strength 0.3, 0.6: ")
    assert captions[-1].startswith("inpainting: ")
    assert all(picture.shape == (3, 64, 64) for _, picture in rows)
    assert all(caption.isascii() for caption in captions)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"strengths": ()}, {"strengths": (0.0,)}, {"strengths": (1.2,)}])
def test_impossible_requests_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cannot evaluate"):
        evaluate(FakePipe(keep), **wrong)


def test_pictures_of_another_size_are_refused(tiny: Pipeline) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluate(tiny, n=1, progress=False, steps=1)
