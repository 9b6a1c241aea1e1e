"""Films show every step of every stage, and end with the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import zoo
from tests.dalle2.unclip import decoder, prior, towers, upsampler, write_clip
from zoo.adapt.lora import LoRA, Target
from zoo.film import Film, Frame, record
from zoo.interface import Step
from zoo.pipeline import Pipeline

RED = "a red circle"


def test_every_step_of_a_latent_is_seen_and_the_last_is_the_picture(tiny: Pipeline) -> None:
    result, films = record(tiny, [RED, "a star"], n=2, seed=3, steps=4, progress=False)
    assert torch.equal(result.tensor, tiny([RED, "a star"], n=2, seed=3, steps=4, batch=1, progress=False).tensor)
    assert len(films) == 4
    for film, picture in zip(films, result.images, strict=True):
        assert [(frame.stage, frame.step) for frame in film.frames] == [("latent", k) for k in (1, 2, 3, 4)]
        assert film.frames[-1].clean is not None
        assert film.frames[-1].clean.tobytes() == picture.tobytes()
    first = films[0].frames[0]
    assert first.noisy is not None
    assert first.clean is not None
    assert first.noisy.tobytes() != first.clean.tobytes()


def test_a_film_is_of_the_state_that_is_decoded(tiny: Pipeline) -> None:
    """Told by hand: the decoder's picture of the state that the callback saw."""
    from zoo.interface import Representation

    seen: list[Step] = []
    _, (film,) = record(tiny, RED, n=1, steps=3, progress=False, callback=lambda _, step: seen.append(step))
    spec, nothing = tiny.generator.produces, tiny.text_encoder.null(1)
    for frame, step in zip(film.frames, seen, strict=True):
        assert frame.t == step.t
        for picture, latent in ((frame.noisy, step.x), (frame.clean, step.x0)):
            made = tiny.decoder.decode(Representation(latent, spec.kind, spec.space), nothing, nothing, None)  # type: ignore[arg-type]
            expected = (made[0] * 255).round().byte().permute(1, 2, 0)
            assert picture is not None
            assert (
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).int() - expected.int()
            ).abs().max() <= 1


def test_a_callback_still_ends_a_call_early(tiny: Pipeline) -> None:
    _, (film,) = record(tiny, RED, n=1, steps=6, progress=False, callback=lambda _, step: step.index == 2)
    assert len(film.frames) == 3


def test_adapters_act_on_what_is_seen(tiny: Pipeline) -> None:
    """Those of the decoder too: otherwise the last frame would not be the picture."""
    vae = tiny.adaptable()["vae"].module
    lora = LoRA.build(vae, [Target(pattern="decoder.*", rank=2)])
    source = torch.Generator().manual_seed(0)
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    tiny.load_lora({"vae": lora}, name="loud")
    try:
        result, (film,) = record(tiny, RED, n=1, steps=2, progress=False, adapters={"loud": 1.0})
        plain = tiny(RED, n=1, steps=2, progress=False)
    finally:
        tiny.unload("loud")
    assert not torch.equal(result.tensor, plain.tensor)
    assert film.frames[-1].clean is not None
    levels = [np.array(picture, int) for picture in (film.frames[-1].clean, result.images[0])]
    assert np.abs(levels[0] - levels[1]).max() <= 1


def test_every_stage_of_a_cascade_is_seen_at_its_own_size(imagen_folder: Path) -> None:
    pipe = zoo.load(imagen_folder, device="cpu")
    result, (film,) = record(pipe, RED, n=1, progress=False)
    assert {name: len(frames) for name, frames in film.stages.items()} == {"base": 3, "first": 2, "second": 2}
    sizes = {name: frames[-1].clean.size for name, frames in film.stages.items() if frames[-1].clean}
    assert sizes == {"base": (8, 8), "first": (16, 16), "second": (32, 32)}
    assert film.frames[-1].clean is not None
    assert film.frames[-1].clean.tobytes() == result.images[0].tobytes()


def test_embeddings_are_no_pictures(tmp_path: Path, vocabulary: bytes) -> None:
    clip, text = towers(write_clip(tmp_path / "clip", vocabulary))
    pipe = Pipeline(text, prior(clip, text.produces), decoder(clip, text.produces, upsamplers=[upsampler()]))
    stages = {"decoder": {"steps": 3}}
    result, (film,) = record(pipe, RED, n=1, steps=2, stages=stages, progress=False)
    assert {name: frames[-1].clean is None for name, frames in film.stages.items()} == {
        "prior": True,
        "decoder": False,
        "upsampler": False,
    }
    assert film.frames[-1].clean is not None
    assert film.frames[-1].clean.tobytes() == result.images[0].tobytes()
    with Image.open(film.save(tmp_path / "film.gif")) as gif:
        assert gif.n_frames == 3 + len(film.stages["upsampler"])  # type: ignore[attr-defined]


def plain(stage: str, step: int, side: int) -> Frame:
    """A red state and a green picture, the greener the later."""
    noisy, clean = (Image.new("RGB", (side, side), colour) for colour in ((200, 0, 0), (0, 100 + 20 * step, 0)))
    return Frame(stage, step, 0.0, noisy, clean)


def test_gif(tmp_path: Path) -> None:
    """The state on the left, the clean picture on the right, small stages as large as the last."""
    film = Film((*(plain("base", k, 8) for k in (1, 2, 3)), plain("super-resolution", 1, 64)))
    path = film.save(tmp_path / "film.gif")
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as gif:
        shown = list(ImageSequence.Iterator(gif))
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
    assert len(shown) == 4
    assert durations == [600, 600, 600, 1600]
    for frame, green in zip(frames, (120, 140, 160, 120), strict=True):
        assert frame.crop((8, 30, 200, 222)).getcolors() == [(192 * 192, (200, 0, 0))]
        assert frame.crop((208, 30, 400, 222)).getcolors() == [(192 * 192, (0, green, 0))]
        assert frame.crop((0, 0, 408, 30)).convert("L").getextrema()[0] < 100, "the title"
        assert frame.crop((0, 222, 408, 252)).convert("L").getextrema()[0] < 100, "the captions"
    titles = {frame.crop((0, 0, 408, 30)).tobytes() for frame in frames}
    assert len(titles) == 4, "each names its stage and step"


def test_long_films_go_faster(tmp_path: Path) -> None:
    long = Film(tuple(plain("base", k, 8) for k in range(1, 101)))
    with Image.open(long.save(tmp_path / "long.gif")) as gif:
        assert gif.info["duration"] == 60


def test_nothing_to_film(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draws without steps"):
        Film(()).save(tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


def test_what_the_safety_checker_hides_is_not_filmed(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_only(*, images: torch.Tensor, clip_input: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        return images, [index == 0 for index in range(len(images))]

    monkeypatch.setattr(tiny, "safety_checker", first_only)
    result, films = record(tiny, RED, n=2, steps=2, progress=False)
    assert result.unsafe == (True, False)
    assert [len(film.frames) for film in films] == [0, 2]
