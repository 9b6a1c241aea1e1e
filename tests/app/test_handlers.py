"""From the page's fields to what it shows, without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from tests.app.conftest import write_lora
from zoo.app import draw
from zoo.app.handlers import Handlers
from zoo.app.models import Models
from zoo.app.page import build
from zoo.pipeline import Pipeline

RED = "a red circle"


@pytest.fixture
def handlers(models: Models) -> Handlers:
    return Handlers(models)


def test_what_is_shown(handlers: Handlers, models: Models, tiny: Pipeline) -> None:
    shown = handlers.draw(list(models.names), RED, pictures=2, seed=4, steps="2", guidance="2.5")
    drawings, pictures, files, group, step, number, development = next(shown)
    expected = tiny(RED, n=2, seed=4, steps=2, guidance=2.5, batch=1, progress=False).tensor
    assert torch.equal(drawings[0].result.tensor, expected)
    assert pictures.count("<img") == 4
    assert development.count("<img") == 4, "noisy and clean of two models"
    assert (group["visible"], step["maximum"], step["value"]) == (True, 2, 2)
    assert (number["visible"], number["maximum"]) == (True, 2)
    paths = [Path(path) for path in files["value"]]
    with Image.open(paths[0]) as image:
        assert json.loads(image.text["settings"])["guidance"] == 2.5  # type: ignore[attr-defined]
    assert "step 1 of 2" in handlers.develop(drawings, 1, 2)
    assert handlers.first(drawings).size == (512, 512)
    assert next(shown, None) is None
    assert not any(path.exists() for path in paths), "gradio has its own copies"


def test_unwatched_pictures_have_nothing_to_develop(handlers: Handlers) -> None:
    _, _, files, group, *_, development = next(handlers.draw(["tiny"], RED, steps="1", film=False))
    assert (group["visible"], development) == (False, "")
    assert [Path(path).suffix for path in files["value"]] == [".png"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"steps": "0"}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": "many"}, "steps are a whole number, not 'many'; leave the field empty for the model's own"),
        ({"guidance": "much"}, "guidance is a number, not 'much'"),
        ({"models": None}, "choose at least one model"),
        ({"pictures": None}, "the field Pictures is empty: say how many are to be drawn"),
        ({"prompt": "<b> " * 40}, "shorten '&lt;b&gt;"),
        ({"adapters": ["/etc/passwd"]}, "this page has no adapter '/etc/passwd'; there are: none, and those"),
    ],
)
def test_the_page_tells_what_the_library_tells(handlers: Handlers, said: dict[str, Any], message: str) -> None:
    with pytest.raises(gr.Error, match=message):
        next(handlers.draw(**{"models": ["tiny"], "prompt": RED, **said}))


def test_what_is_missing_is_asked_for(handlers: Handlers) -> None:
    said = (["tiny"], RED, "", 1, 0, "", "1", "", False, [], 1.0, 1.0, 1.0, 1.0)
    for act, given, message in (
        (handlers.redraw, None, "give a picture to start from"),
        (handlers.inpaint, None, "give a picture, then paint"),
        (handlers.inpaint, {"background": None, "layers": []}, "give a picture, then paint"),
        (handlers.inpaint, {"background": Image.new("RGB", (64, 64)), "layers": []}, "nothing is painted"),
    ):
        with pytest.raises(gr.Error, match=message):
            next(act(given, 0.5, *said))
    for edit, pictures in ((handlers.vary, 1), (handlers.interpolate, 2)):
        with pytest.raises(gr.Error, match="the field Pictures is empty"):
            next(edit("tiny", *[Image.new("RGB", (32, 32))] * pictures, None))
    with pytest.raises(gr.Error, match="nothing is drawn yet"):
        handlers.first([])


def test_inpainting_and_starting_from_a_picture(handlers: Handlers, tiny: Pipeline) -> None:
    said = (["tiny"], RED, "", 1, 3, "", "2", "", False, [], 1.0, 1.0, 1.0, 1.0)
    picture = tiny("a star", n=1, progress=False).images[0]
    drawn = next(handlers.redraw(picture, 0.5, *said))[0][0].result
    assert torch.equal(
        drawn.tensor, tiny(RED, n=1, seed=3, steps=2, image=picture, strength=0.5, progress=False).tensor
    )
    layer = Image.new("RGBA", (32, 32))
    layer.paste((255, 0, 0, 255), (0, 0, 16, 32))
    drawn = next(handlers.inpaint({"background": picture.convert("RGBA"), "layers": [layer]}, 1.0, *said))[0][0].result
    mask = layer.getchannel("A")
    expected = tiny(RED, n=1, seed=3, steps=2, image=picture, mask=mask, strength=1.0, progress=False)
    assert torch.equal(drawn.tensor, expected.tensor)


def test_adapters_that_visitors_bring(
    handlers: Handlers, tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one name stay two, and their strengths have sliders."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    mine, yours = (write_lora(tiny, tmp_path / folder / "style.safetensors", seed) for seed, folder in enumerate("ab"))
    change, offered = handlers.bring(str(mine), [], [])
    assert offered == [("style", str(mine))]
    assert change["value"] == [str(mine)]
    slid, first, second, *_ = handlers.strengths([str(mine)], [], *[1.0] * draw.ADAPTERS)
    assert slid == [str(mine)]
    assert (first["label"], first["visible"], first["value"]) == ("Strength of style", True, 1)
    assert not second["visible"]
    slid, first, second, *_ = handlers.strengths([str(mine), str(yours)], slid, 0.3, 0.7, 1.0, 1.0)
    assert (first["value"], second["value"]) == (0.3, 1), "a new one begins at 1, wherever the slider stood"
    slid, first, second, *_ = handlers.strengths([str(yours)], slid, 0.3, -0.5, 1.0, 1.0)
    assert (slid, first["value"], second["visible"]) == ([str(yours)], -0.5, False), "each keeps its own"
    drawn = [
        next(handlers.draw(["tiny"], RED, steps="1", film=False, adapters=[str(path)], strength_1=0.5))[0][0].result
        for path in (mine, yours, mine)
    ]
    assert torch.equal(drawn[0].tensor, drawn[2].tensor)
    assert not torch.equal(drawn[0].tensor, drawn[1].tensor)
    (name,) = drawn[0].settings["adapters"]  # type: ignore[misc]
    assert name.startswith("style-")
    many = [str(mine)] * draw.ADAPTERS
    with pytest.raises(gr.Error, match="5 adapters are chosen, but at most 4"):
        handlers.bring(str(yours), [], many)
    with pytest.raises(gr.Error, match="at most 4"):
        next(handlers.draw(["tiny"], RED, steps="1", film=False, adapters=[*many, str(yours)]))
    broken = tmp_path / "c" / "broken.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"no tensors")
    with pytest.raises(gr.Error, match="broken.safetensors"):
        handlers.bring(str(broken), [], [])


def test_the_page_is_laid_out_without_the_internet(models: Models) -> None:
    blocks = build(models, at_once=3)
    drawing = [fn for fn in blocks.fns.values() if fn.api_name in ("draw", "redraw", "inpaint")]
    assert len(drawing) == 3
    assert {(fn.concurrency_id, fn.concurrency_limit) for fn in drawing} == {("drawing", 3)}
    assert blocks.analytics_enabled is False
