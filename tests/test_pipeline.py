from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from tests.pictures import apart, same
from zoo.interface import Decoder, Generator, Sampling, Step, TextEncoder
from zoo.pipeline import Pipeline, UnheededNegative
from zoo.result import Result
from zoo.text.tokenizer import UnknownWords

PINK, RED = "a large pink butterfly", "a red circle"
Draw = Callable[..., Result]


@pytest.fixture
def draw(tiny: Pipeline) -> Draw:
    def call(prompts: str | list[str], **settings: object) -> Result:
        return tiny(prompts, **{"progress": False, **settings})  # type: ignore[arg-type]

    return call


def test_result(draw: Draw) -> None:
    result = draw([PINK, RED], n=3, seed=5)
    assert result.tensor.shape == (6, 3, 32, 32)
    assert result.tensor.dtype == torch.float32
    assert 0 <= float(result.tensor.min()) < float(result.tensor.max()) <= 1
    assert result.prompts == (PINK,) * 3 + (RED,) * 3
    assert result.seeds == (5, 6, 7) * 2
    assert result.settings["steps"] == 3
    assert result.settings["sampler"] == "dpmpp_2m"
    assert len(result) == len(result.images) == 6
    assert all(image.mode == "RGB" and image.size == (32, 32) for image in result.images)


def test_defaults_are_four_images_and_the_models_settings(draw: Draw) -> None:
    assert draw(RED, steps=1).seeds == (0, 1, 2, 3)


def test_parts_are_what_the_interface_says(tiny: Pipeline) -> None:
    assert isinstance(tiny.text_encoder, TextEncoder)
    assert isinstance(tiny.generator, Generator)
    assert isinstance(tiny.decoder, Decoder)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_an_image_depends_on_nothing_but_itself(draw: Draw, sampler: str) -> None:
    """Alone, in a batch of eight, split over batches, in another order, among other prompts: the same picture."""
    eight = draw(PINK, n=8, sampler=sampler).tensor
    assert not same(eight[0], eight[1])
    assert same(draw(PINK, n=1, seed=3, sampler=sampler).tensor[0], eight[3])
    assert same(draw(PINK, n=8, batch=3, sampler=sampler).tensor, eight)
    order = [6, 1, 3]
    assert same(draw(PINK, seed=order, sampler=sampler).tensor, eight[order])
    assert same(draw([RED, PINK], seed=[7, 3], n=1, sampler=sampler).tensor[1], eight[3])


def test_four_threads_share_one_pipeline(draw: Draw) -> None:
    calls = [(PINK, 0), (RED, 1), ("", 2), ("粉色的蝴蝶,小精灵,卡通", 3)]
    alone = [draw(prompt, n=1, seed=seed, sampler="euler_ancestral").tensor for prompt, seed in calls]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(draw, p, n=1, seed=s, sampler="euler_ancestral") for p, s in calls * 2]
        together = [job.result().tensor for job in jobs]
    assert all(same(a, b) for a, b in zip(alone * 2, together, strict=True))


def test_prompt_guidance_and_negative_prompt_matter(draw: Draw) -> None:
    pink = draw(PINK, n=1).tensor
    assert not same(pink, draw(RED, n=1).tensor)
    assert not same(pink, draw(PINK, n=1, guidance=2.0).tensor)
    assert not same(pink, draw(PINK, n=1, negative=RED).tensor)
    assert same(pink, draw(PINK, n=1, negative="").tensor)
    both = draw([PINK, PINK], n=1, negative=["", RED])
    assert same(both.tensor[:1], pink)
    assert same(both.tensor[1:], draw(PINK, n=1, negative=RED).tensor)
    assert both.negatives == ("", RED)


def test_a_negative_prompt_without_guidance_is_told_to_change_nothing(draw: Draw) -> None:
    with pytest.warns(UnheededNegative, match="at guidance 1: expect it to change nothing") as told:
        led = draw(PINK, n=1, negative=RED, guidance=1.0)
    assert told[0].filename == __file__, "it points at the call"
    assert same(led.tensor, draw(PINK, n=1, guidance=1.0).tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnheededNegative)
        draw(PINK, n=1, negative=RED)
        draw(PINK, n=1, negative="", guidance=1.0)


def test_the_empty_prompt_is_unconditional(draw: Draw) -> None:
    """Guidance leads from no text to no text: its scale makes no difference."""
    assert same(draw("", n=1, guidance=1.0).tensor, draw("", n=1, guidance=9.0).tensor)


def test_given_noise(draw: Draw) -> None:
    noise = torch.randn(2, 4, 8, 8)
    a = draw(PINK, n=2, noise=noise)
    assert same(a.tensor, draw(PINK, n=2, seed=99, noise=noise).tensor)
    assert same(a.tensor[1:], draw(PINK, n=1, noise=noise[1:]).tensor)
    with pytest.raises(ValueError, match=r"noise has shape \[2, 4, 8, 9\], but .* start from \[2, 4, 8, 8\]"):
        draw(PINK, n=2, noise=torch.randn(2, 4, 8, 9))
    with pytest.raises(ValueError, match=r"start from \[3, 4, 8, 8\]"):
        draw(PINK, n=3, noise=noise)


def test_sizes(draw: Draw) -> None:
    assert draw(PINK, n=1, steps=1, height=16, width=40).tensor.shape == (1, 3, 16, 40)
    assert draw(PINK, n=1, steps=1, width=40).tensor.shape == (1, 3, 32, 40)
    with pytest.raises(ValueError, match="impossible size 30 x 32: .* multiples of 8; the nearest is 32 x 32"):
        draw(PINK, height=30)
    for bad in (0, -8):
        with pytest.raises(ValueError, match="impossible size"):
            draw(PINK, width=bad)


def test_callback_sees_every_step_and_may_stop(draw: Draw) -> None:
    seen: list[tuple[str, int]] = []

    def watch(stage: str, step: Step) -> bool:
        assert step.x0.shape == (2, 4, 8, 8)
        seen.append((stage, step.index))
        return step.index == 2

    result = draw(PINK, n=2, steps=6, callback=watch)
    assert seen == [("latent", 0), ("latent", 1), ("latent", 2)]
    assert result.tensor.shape[0] == 2


def test_progress(draw: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    draw(PINK, n=1)
    assert not capsys.readouterr().err
    draw(PINK, n=1, progress=True)
    assert "3/3" in capsys.readouterr().err
    draw(PINK, n=1, steps=10, image=torch.zeros(3, 32, 32), strength=0.4, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_start_from_an_image(draw: Draw) -> None:
    picture = draw(RED, n=1).images[0]
    close, far = (draw(RED, n=1, seed=8, steps=8, image=picture, strength=s).tensor for s in (0.2, 1.0))
    assert not same(close, far)
    assert same(far, draw(RED, n=1, seed=8, steps=8).tensor), "strength 1 forgets the image"
    tensor = draw(RED, n=1).tensor
    assert same(draw(RED, n=2, image=tensor, strength=0.5).tensor, draw(RED, n=2, image=picture, strength=0.5).tensor)
    large = picture.resize((90, 64))
    assert draw(RED, n=1, image=large, steps=2).tensor.shape == (1, 3, 32, 32)


def test_inpainting_keeps_what_the_mask_does_not_name(draw: Draw) -> None:
    picture = draw(RED, n=1, seed=4).tensor
    mask = torch.zeros(32, 32)
    mask[:, 16:] = 1
    for given in (mask, Image.fromarray((mask * 255).byte().numpy())):
        made = draw(PINK, n=2, image=picture, mask=given).tensor
        assert torch.equal(made[..., :16], picture[..., :16].expand(2, -1, -1, -1))
        assert not same(made[:1, ..., 16:], picture[..., 16:])
        assert not same(made[0], made[1])


def test_inpainting_sees_what_is_kept() -> None:
    """Of a shipped model: one with random weights hardly looks beyond a pixel."""
    pipe, mask = zoo.load("stable-diffusion-small", device="cpu"), torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    given = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
    how = {"n": 1, "steps": 4, "strength": 1.0, "progress": False}
    a, b = (pipe(RED, image=image, mask=mask, **how).tensor for image in given)  # type: ignore[arg-type]
    assert float((a - b)[..., 28:36, 28:36].abs().min()) > 2 / 255, "also where the decoder does not mix both"
    a, b = (pipe(RED, image=image, **how).tensor for image in given)  # type: ignore[arg-type]
    assert torch.equal(a, b), "without a mask strength 1 forgets the image"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "no prompts: give at least one"),
        ({"prompts": [3]}, "a prompt is text, not int"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, not 2.5"),
        ({"sampler": "dpmp_2m"}, "unknown sampler 'dpmp_2m'.*dpmpp_2m"),
        ({"spacing": "leadin"}, "leading"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 3, "seed": [1, 2]}, "2 seeds for 1 prompt and n=3"),
        ({"seed": []}, "0 seeds"),
        ({"seed": 1.5}, "a seed is a whole number, not 1.5"),
        ({"seed": -1}, "a seed lies between 0 and"),
        ({"negative": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"strength": 0.5}, "give image= as well"),
        ({"mask": torch.ones(32, 32)}, "give image= as well"),
        ({"image": torch.ones(3, 32, 32), "strength": 0.0}, r"strength must be in \(0, 1\], not 0.0"),
        ({"image": torch.full((3, 32, 32), 2.0)}, r"values outside \[0, 1\]"),
        ({"image": torch.ones(3, 32, 40)}, r"shape \[3, 32, 40\], expected \[3, 32, 32\]"),
        ({"image": [torch.ones(3, 32, 32)] * 3, "n": 2}, "3 images: give one for all"),
        ({"prompts": "a red star " * 9}, "27 tokens long and the text encoder reads at most 14: shorten"),
    ],
)
def test_errors_say_what_to_do(draw: Draw, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**{"prompts": RED, **settings})  # type: ignore[arg-type]


def test_unknown_words_are_announced(draw: Draw) -> None:
    with pytest.warns(UnknownWords, match="does not know 'zeppelin'"):
        draw("a red zeppelin", n=1, steps=1)


def test_parts_that_fit_by_size_but_not_by_space(shelf: Path) -> None:
    with pytest.raises(ValueError, match="do not fit") as caught:
        zoo.load("tiny", device="cpu", text_encoder="other/text_encoder")
    message = str(caught.value)
    for said in ("text encoder other/text_encoder", "generator tiny/generator", "sizes agree", "To mend it"):
        assert said in message
    with pytest.raises(ValueError, match="generator tiny/generator .* and decoder other/decoder .* do not fit"):
        zoo.load("tiny", device="cpu", decoder="other/decoder")


def test_parts_that_do_not_fit_by_size(shelf: Path) -> None:
    with pytest.raises(ValueError, match="tokens are 48 wide, 32 are needed"):
        zoo.load("tiny", device="cpu", text_encoder="wide/text_encoder")


def test_parts_by_name_and_as_objects(shelf: Path, tiny: Pipeline, draw: Draw) -> None:
    taken = zoo.load(
        "other", device="cpu", generator="tiny/generator", text_encoder=tiny.text_encoder, decoder=tiny.decoder
    )
    assert taken.text_encoder is tiny.text_encoder
    assert same(taken(RED, n=1, progress=False).tensor, draw(RED, n=1).tensor)
    assert taken.defaults == tiny.defaults, "a generator is sampled as its own model says"
    with pytest.raises(ValueError, match=r"int cannot be the decoder: it is no zoo.interface.Decoder"):
        zoo.load("tiny", device="cpu", decoder=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"clip_skip": 1}, {"prediction": "v"}, {"variant": "fp16"}])
def test_options_of_published_checkpoints_are_refused_elsewhere(shelf: Path, option: dict[str, object]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"nothing that is loaded here heeds {name}: leave it out"):
        zoo.load("tiny", device="cpu", **option)  # type: ignore[arg-type]


def test_devices_and_types(shelf: Path) -> None:
    pipe = zoo.load("tiny", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.generator.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    low = pipe(RED, n=2, steps=8, progress=False).tensor
    full = pipe.to("cpu", torch.float32)(RED, n=2, steps=8, progress=False).tensor
    assert low.dtype == torch.float32
    assert 0 < apart(low, full) < 0.1 * apart(full, full.flip(0)), "far less than another seed's"
    assert {p.dtype for p in pipe.to(torch.bfloat16).decoder.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="device 'mars' cannot be used"):
        zoo.load("tiny", device="mars")
    with pytest.raises(ValueError, match="prediction is one of epsilon, x0, v, not 'noise'"):
        zoo.load("tiny", device="cpu", prediction="noise")  # type: ignore[arg-type]


def test_assembled_by_hand(tiny: Pipeline, draw: Draw) -> None:
    pipe = Pipeline(tiny.text_encoder, tiny.generator, tiny.decoder, defaults=Sampling(steps=3, guidance=5.0))
    assert same(pipe(PINK, n=1, progress=False).tensor, draw(PINK, n=1).tensor)
    assert "ClipTextEncoder" in repr(pipe)


def test_saving(draw: Draw, tmp_path: Path) -> None:
    result = draw([PINK, "粉色的蝴蝶,小精灵,卡通", ""], n=2, seed=3, negative="a star")
    paths = result.save(tmp_path / "new" / "folder")
    assert len(paths) == 7
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir()), "nothing half written is left"
    for index, path in enumerate(paths[:-1]):
        with Image.open(path) as image:
            assert image.text["prompt"] == result.prompts[index]  # type: ignore[attr-defined]
            assert image.text["negative"] == "a star"  # type: ignore[attr-defined]
            assert image.text["model"] == "tiny"  # type: ignore[attr-defined]
            assert int(image.text["seed"]) == result.seeds[index]  # type: ignore[attr-defined]
            assert json.loads(image.text["settings"])["guidance"] == 5.0  # type: ignore[attr-defined]
            assert list(image.getdata()) == list(result.images[index].getdata())
    with Image.open(paths[-1]) as sheet:
        assert sheet.width >= 2 * 160
        assert sheet.height >= 3 * 160
    assert result.save(tmp_path / "new" / "folder") == paths, "the same call writes the same files"
    other = draw(PINK, n=1, seed=3, steps=2).save(tmp_path / "new" / "folder")
    assert not set(other) & set(paths), "another call leaves them alone"


def test_files_tell_what_a_call_began_with(draw: Draw, tmp_path: Path) -> None:
    dark, light = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    upper = torch.zeros(32, 32)
    upper[:16] = 1
    begun: list[dict[str, object]] = [
        {},
        {"image": dark},
        {"image": light},
        {"image": dark, "mask": upper, "strength": 0.6},
        {"image": dark, "mask": 1 - upper, "strength": 0.6},
        {"noise": torch.zeros(1, 4, 8, 8)},
        {"noise": torch.ones(1, 4, 8, 8)},
    ]
    made = [draw(RED, n=1, steps=1, **one) for one in begun]
    assert len({path for result in made for path in result.save(tmp_path)}) == 2 * len(made)
    assert made[0].given == ""
    with Image.open(made[1].save(tmp_path)[0]) as image:
        assert image.text["given"] == made[1].given  # type: ignore[attr-defined]


def test_settings_make_the_image_again(draw: Draw) -> None:
    result = draw(RED, n=2, steps=4, sampler="ddim", eta=0.5, guidance=3.0, height=40)
    again = draw(result.prompts[1], n=1, seed=result.seeds[1], **result.settings)
    assert same(again.tensor, result.tensor[1:])
    led = draw([RED, PINK], n=1, steps=2, negative=["a star", ""])
    again = draw(led.prompts[0], n=1, seed=led.seeds[0], negative=led.negatives[0], **led.settings)
    assert same(again.tensor, led.tensor[:1])


def test_none_turns_off_what_the_model_has_on(tiny: Pipeline, draw: Draw) -> None:
    """And what is left out is the model's: else a picture drawn without could not be made again by its settings."""
    on = {"threshold": 0.5, "interval": (0.5, 2.0)}
    pipe = Pipeline(tiny.text_encoder, tiny.generator, tiny.decoder, defaults=replace(tiny.defaults, **on))
    off = pipe(PINK, n=1, threshold=None, interval=None, progress=False)
    assert (off.settings["threshold"], off.settings["interval"]) == (None, None)
    assert same(off.tensor, draw(PINK, n=1).tensor)
    assert same(pipe(PINK, n=1, progress=False, **off.settings).tensor, off.tensor)
    mine = pipe(PINK, n=1, progress=False)
    assert mine.settings["interval"] == (0.5, 2.0)
    assert not same(mine.tensor, off.tensor)
    assert pipe(PINK, n=1, guidance=None, progress=False).settings["guidance"] == tiny.defaults.guidance
