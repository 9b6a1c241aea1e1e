"""What visitors ask for is drawn: without a browser, as the library draws it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import zoo
from tests.app.conftest import write_lora
from tests.conftest import Lend
from tests.dalle2.unclip import decoder, prior, towers, write_clip
from zoo.app import edit, models, view
from zoo.app.draw import Drawing, Wish, draw, enlarged, longest, own_pixels, painted, save
from zoo.app.models import Models, label
from zoo.dalle2.edit import interpolate, variations
from zoo.film import Film, Frame
from zoo.pipeline import Pipeline
from zoo.weights import save_model

RED, PINK = "a red circle", "粉色的蝴蝶,小精灵,卡通"


def both(page: Models, **more: object) -> Wish:
    return Wish(**{"models": page.names, "prompt": RED, "steps": 2, **more})  # type: ignore[arg-type]


def test_every_model_draws_what_the_library_draws(models: Models, tiny: Pipeline, tiny_models: Path) -> None:
    told: list[tuple[float, str]] = []
    wish = both(models, prompt=PINK, negative=RED, n=2, seed=7, sampler="euler", steps=3, guidance=2.0)
    drawings = draw(models, wish, lambda share, what: told.append((share, what)))
    assert [drawing.model for drawing in drawings] == ["tiny", "other"]
    for drawing, pipe in zip(drawings, (tiny, zoo.load(tiny_models / "other", device="cpu")), strict=True):
        said = {"n": 2, "seed": 7, "sampler": "euler", "steps": 3, "guidance": 2.0, "negative": RED}
        assert torch.equal(drawing.result.tensor, pipe(PINK, progress=False, **said).tensor)
        assert drawing.films == []
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (told[0], told[-1]) == ((0.0, "loading tiny"), (1.0, "other: latent, step 3"))


def test_what_is_not_said_is_the_models_own(models: Models, tiny: Pipeline) -> None:
    (drawing,) = draw(models, Wish(["tiny"], RED))
    assert torch.equal(drawing.result.tensor, tiny(RED, n=1, progress=False).tensor)


def test_watching_changes_nothing(models: Models) -> None:
    plain, watched = (draw(models, both(models, n=2, film=film)) for film in (False, True))
    for a, b in zip(plain, watched, strict=True):
        assert float((a.result.tensor - b.result.tensor).abs().max()) <= 1 / 255, "alone and in a batch"
        assert [len(film.frames) for film in b.films] == [2, 2]
    assert longest(plain) == 0
    assert longest(watched) == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"models": []}, "choose at least one model"),
        ({"models": ["tinny"]}, "this page has no model 'tinny'; there are: tiny, "),
        ({"n": 9}, "1 to 8 pictures"),
        ({"n": 0}, "1 to 8 pictures"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"sampler": "dpmp_2m"}, "unknown sampler"),
        ({"seed": -1}, "a seed lies between"),
        ({"seed": None}, "a seed is a whole number, not None"),
        ({"prompt": "a red star " * 9}, "shorten"),
        ({"adapters": {"none": ("none.safetensors", 1.0)}}, "there is no adapter 'none.safetensors'"),
        ({"mask": Image.new("L", (32, 32))}, "give image= as well"),
    ],
)
def test_errors_are_the_librarys_own(models: Models, said: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(models, both(models, **said))
    assert draw(models, Wish(["tiny"], RED, steps=1)), "and the model is free again"


def test_unknown_words_are_told(models: Models) -> None:
    with pytest.warns(UserWarning, match="zeppelin"):
        (drawing,) = draw(models, Wish(["tiny"], "a red zeppelin", steps=1))
    assert drawing.unknown == ["zeppelin"]
    assert "it does not know zeppelin" in view.pictures([drawing], [[]])


def test_a_page_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'tinny'"):
        Models(["tinny"])
    monkeypatch.setattr("zoo.registry.shelves", list)
    with pytest.raises(ValueError, match="no models at hand"):
        Models()
    with pytest.raises(ValueError, match=r"there is no adapter at none\.safetensors: give a file"):
        Models([str(tmp_path)], ["none.safetensors"])
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="two adapters are called 'a'"):
        Models([str(tmp_path)], [str(tmp_path / "a.safetensors"), "other/a.safetensors"])


def test_a_page_has_no_place_for_words(tiny: Pipeline, tmp_path: Path) -> None:
    """Which change what the prompts of all visitors mean; in a hub repository it is seen when one is loaded."""
    word, plain = tmp_path / "word.safetensors", tmp_path / "plain.safetensors"
    for path, said in ((word, {"format": "zoo", "kind": "word"}), (plain, {"format": "pt"})):
        save_file({"row": torch.zeros(32)}, path, metadata=said)
    with pytest.raises(ValueError, match=r"word\.safetensors is a word, which would change what every visitor's"):
        Models([str(tmp_path)], [str(plain), str(word)])
    model = shared(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "load_adapter", lambda source, name: None)
        with pytest.raises(ValueError, match="owner/word is a word"), model.drawing({"word": "owner/word"}):
            pass
    with model.drawing({}) as pipe:
        assert pipe is tiny, "and the model is free again"


def test_labels(tmp_path: Path) -> None:
    assert label("stable-diffusion-small") == "stable-diffusion-small"
    assert label("owner/name") == "owner/name"
    assert label(str(tmp_path)) == tmp_path.name


def test_a_model_is_loaded_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    load = zoo.load
    monkeypatch.setattr("zoo.loading.load", lambda name, **how: calls.append(name) or load(name, **how))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(models.load, ["tiny"] * 4))
    assert calls == ["tiny"]
    assert all(one is found[0] for one in found)


def test_adapters_act_where_they_are_chosen(models: Models, tiny: Pipeline, tmp_path: Path) -> None:
    path = write_lora(tiny, tmp_path / "loud.safetensors")
    plain = draw(models, Wish(["tiny"], RED, steps=2))[0].result
    adapted = draw(models, Wish(["tiny"], RED, steps=2, adapters={"loud": (str(path), 0.5)}))[0].result
    assert not torch.equal(plain.tensor, adapted.tensor)
    assert adapted.settings["adapters"] == {"loud": 0.5}
    assert torch.equal(plain.tensor, draw(models, Wish(["tiny"], RED, steps=2))[0].result.tensor)


def test_adapters_wait_until_nobody_draws(
    tiny: Pipeline, lend: Lend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared(lend(tiny))
    path = str(write_lora(tiny, tmp_path / "late.safetensors"))
    entered, waits = threading.Event(), threading.Event()
    wait_for = model._idle.wait_for

    def told(idle: Callable[[], bool]) -> bool:
        waits.set()
        return wait_for(idle)

    def bring() -> None:
        with model.drawing({"late": path}) as pipe:
            assert "late" in pipe.adapters()
            entered.set()

    monkeypatch.setattr(model._idle, "wait_for", told)
    with ThreadPoolExecutor(1) as pool:
        with model.drawing({}) as pipe:
            brought = pool.submit(bring)
            assert waits.wait(30)
            with model._idle:  # the thread lets go of it once it waits
                assert not entered.is_set()
                assert "late" not in pipe.adapters()
        brought.result(30)
    assert entered.is_set()


def test_only_the_latest_adapters_stay(
    tiny: Pipeline, lend: Lend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "KEPT", 2)
    model = shared(lend(tiny))
    paths = {name: str(write_lora(tiny, tmp_path / f"{name}.safetensors")) for name in "abc"}
    for name, path in paths.items():
        with model.drawing({name: path}):
            pass
    assert list(tiny.adapters()) == ["b", "c"]
    with model.drawing({"a": paths["a"], "b": paths["b"]}):
        assert list(tiny.adapters()) == ["b", "a"], "those asked for stay"


def shared(pipe: Pipeline) -> models.Model:
    return models.Model(pipe)


def test_files_hold_the_settings(models: Models, tmp_path: Path) -> None:
    drawings = draw(models, both(models, prompt=PINK, n=2, seed=5, film=True))
    saved = save(drawings, tmp_path)
    assert [[path.suffix for path in paths] for paths in saved] == [[".png", ".png", ".gif", ".gif", ".png"]] * 2
    for drawing, paths in zip(drawings, saved, strict=True):
        with Image.open(paths[1]) as image:
            said = image.text  # type: ignore[attr-defined]
            assert image.tobytes() == drawing.result.images[1].tobytes()
        assert (said["prompt"], said["seed"], said["model"]) == (PINK, "6", drawing.result.model)
        assert json.loads(said["settings"])["steps"] == 2
    page = view.pictures(drawings, saved)
    assert page.count("<img") == 4
    assert page.count("<section>") == 2


def test_one_picture_has_no_sheet(models: Models, tmp_path: Path) -> None:
    saved = save(draw(models, both(models)), tmp_path)
    assert [[path.suffix for path in paths] for paths in saved] == [[".png"]] * 2


def test_enlarged_pictures_come_back_to_the_pixel(models: Models) -> None:
    small = draw(models, Wish(["tiny"], RED, steps=1))[0].result.images[0]
    large = enlarged(small)
    assert large.size == (512, 512)
    assert own_pixels(large, (32, 32)).tobytes() == small.tobytes()
    photo = large.rotate(10)
    assert own_pixels(photo, (32, 32)) is photo
    assert own_pixels(large, None) is large
    assert own_pixels(large, (24, 32)) is large


def test_painted_masks(tiny: Pipeline, models: Models) -> None:
    layer = Image.new("RGBA", (512, 512))
    layer.paste((255, 0, 0, 255), (0, 0, 256, 512))
    mask = painted([None, layer], (512, 512))
    assert np.asarray(mask)[:, :256].min() == 255
    assert np.asarray(mask)[:, 256:].max() == 0
    with pytest.raises(ValueError, match="nothing is painted"):
        painted([Image.new("RGBA", (8, 8))], (8, 8))
    before = tiny(RED, n=1, progress=False)
    wish = Wish(["tiny"], PINK, steps=2, image=enlarged(before.images[0]), mask=mask, strength=1.0)
    made = draw(models, wish)[0].result.tensor
    kept = slice(18, 32)  # the mask shrinks smoothly: next to its edge pixels are a little of both
    assert float((made[..., kept] - before.tensor[..., kept]).abs().max()) <= 1 / 255
    assert float((made[..., :14] - before.tensor[..., :14]).abs().max()) > 0.1


def test_starting_from_a_picture(tiny: Pipeline, models: Models) -> None:
    before = tiny(RED, n=1, progress=False).images[0]
    wish = Wish(["tiny"], PINK, steps=4, image=enlarged(before), strength=0.5)
    expected = tiny(PINK, n=1, steps=4, image=before, strength=0.5, progress=False)
    assert torch.equal(draw(models, wish)[0].result.tensor, expected.tensor)


def test_every_stage_is_seen_to_develop(imagen_folder: Path, models: Models) -> None:
    page = Models([str(imagen_folder), *models.names], device="cpu")
    drawings = draw(page, Wish(page.names[:2], RED, film=True))
    assert longest(drawings) == 3
    seen = view.development(drawings, 3, 1)
    for said in ("base: step 3 of 3", "first: step 2 of 2", "second: step 2 of 2", "latent: step 3 of 3"):
        assert said in seen
    assert seen.count("<img") == 8
    assert "base: step 1 of 3" in view.development(drawings, 1, 1)


def test_what_cannot_be_seen_is_said(models: Models) -> None:
    result = draw(models, Wish(["tiny"], RED, steps=1))[0].result
    prior = Film((Frame("prior", 1, 999.0, None, None),))
    seen = view.development([Drawing("<b>", result, [prior], 1.0), Drawing("gan", result, [Film(())], 1.0)], 1, 1)
    assert "is no picture" in seen
    assert "It draws without steps." in seen
    assert "&lt;b&gt;" in seen
    assert "<b>" not in seen


@pytest.fixture
def painter(shelf: Path, tmp_path: Path, vocabulary: bytes) -> tuple[Models, str]:
    """A page with a DALL-E 2, and what it is called there."""
    clip, text = towers(write_clip(tmp_path / "towers", vocabulary))
    folder, reads = tmp_path / "unclip", text.produces
    parts = (text, prior(clip, reads), decoder(clip, reads, loud=0.03))
    save_model(folder, *parts, image_encoder=clip, family="DALL-E 2", resolution=(8, 8))
    return Models(["tiny", str(folder)], device="cpu"), str(folder)


def same(drawings: Sequence[Drawing], expected: zoo.Result) -> bool:
    (drawing,) = drawings
    return torch.equal(drawing.result.tensor, expected.tensor) and drawing.result.settings == expected.settings


def test_pictures_are_edited_by_models_that_can(painter: tuple[Models, str]) -> None:
    page, name = painter
    assert edit.able(page) == [name]
    pipe = zoo.load(name, device="cpu")
    first, last = (Image.effect_noise((8, 8), 60 + 60 * k).convert("RGB") for k in (0, 1))
    assert same(edit.vary(page, name, first, 2, seed=3), variations(pipe, first, 2, seed=3))
    assert same(edit.between(page, name, first, last, 3, seed=1), interpolate(pipe, first, last, 3, seed=1))
    with pytest.raises(ValueError, match="give a picture first"):
        edit.vary(page, name, None)
    with pytest.raises(ValueError, match="1 to 8 pictures"):
        edit.vary(page, name, first, 9)
    with pytest.raises(ValueError, match="only an UnclipDecoder"):
        edit.vary(page, "tiny", first)


def test_a_page_that_cannot_edit_says_which_models_can(models: Models) -> None:
    assert edit.able(models) == []
    assert "(tiny, other)" in edit.why_not(models)
    assert "DALL-E 2" in edit.why_not(models)
