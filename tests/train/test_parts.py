"""Tiny autoencoders and U-Nets through the whole of training: recipe, caches, steps, export, and the way back."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.train.ends import check_resumed
from zoo.data.captions import ZH_COLOUR, ZH_OBJECT, caption
from zoo.data.scenes import COLOURS, SHAPES, Description, heldout
from zoo.evaluate.checker import Verdict
from zoo.stable_diffusion.parts import LatentGenerator, VaeDecoder
from zoo.stable_diffusion.unet import UNet
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, cache, checkpoint, run, text_to_image, unet, vae
from zoo.train.task import grid, to_float

pytestmark = pytest.mark.usefixtures("same_cache")


def _unet(home: Path, out: str, *more: str) -> list[str]:
    return [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}", f"out={home / out}", *more]


def test_the_trained_vae_is_read_back_with_latents_of_unit_variance(home: Path) -> None:
    trained = vae.load(home / "vae" / "final")
    images = to_float(torch.from_numpy(np.array(cache.Scenes(next((home / "cache").glob("scenes-*"))).images)))
    latents = trained.to_diffusion(trained.encode(images).mean)
    assert latents.shape == (8, 4, 32, 32)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=0.5)
    story = json.loads((home / "vae" / "final" / "training.json").read_text("utf-8"))
    assert set(story["figures"]) == {"psnr", "l1", "latent_std"}
    assert (home / "vae" / "samples" / "00000003.png").is_file()


def test_standardised_latents_reconstruct_the_same() -> None:
    torch.manual_seed(0)
    model = vae.VAE(vae.VAEConfig(channels=(8, 16), groups=4, blocks_per_level=1, middle_attention=False)).eval()
    images, noise = torch.rand(6, 3, 16, 16) * 2 - 1, torch.randn(6, 4, 8, 8)
    with torch.no_grad():
        model.quant_conv.bias[:4] += torch.tensor([-3.0, 0.0, 2.0, 5.0])  # channels far apart
        model.quant_conv.weight[:4] *= torch.tensor([0.2, 1.0, 4.0, 9.0])[:, None, None, None]
        before, _ = model(images, noise)
        vae.standardise(model, images)
        after, posterior = model(images, noise)
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(posterior.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(posterior.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4)


def test_latents_are_turned_towards_those_that_generators_know() -> None:
    torch.manual_seed(0)
    config = vae.VAEConfig(channels=(8, 16), groups=4, blocks_per_level=1, middle_attention=False)
    known, images = vae.VAE(config).eval(), torch.rand(64, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        moved = copy.deepcopy(known)
        mixed = torch.randn(4, 4) + torch.eye(4)  # other axes, other scales: the same latents, said otherwise
        moved.quant_conv.weight[:4] = torch.einsum("ij,jkhw->ikhw", mixed, moved.quant_conv.weight[:4])
        moved.quant_conv.bias[:4] = mixed @ moved.quant_conv.bias[:4] + 3
        before, _ = moved(images)
        vae.standardise(moved, images, like=known)
        after, posterior = moved(images)
        latents, theirs = (vae._rows([model.encode(images).mean]) for model in (moved, known))
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(latents, theirs - theirs.mean(0), atol=1e-3), "they were the same, said otherwise"
    assert posterior.logvar.isfinite().all()


def test_hues_are_turned_around_gray_in_a_share_of_the_pictures() -> None:
    torch.manual_seed(0)
    red = torch.tensor([0.6, -0.8, -0.8])[:, None, None].expand(400, 3, 16, 16)  # 0.8, 0.1, 0.1 of 1
    turned = (vae._turned_hues(red, 0.5) + 1) / 2
    changed = (turned - (red + 1) / 2).abs().amax(1) > 1e-6  # [pictures, height, width]
    share = changed.float().mean((1, 2))
    other = turned.permute(0, 2, 3, 1)[changed]

    assert 150 < (share > 0).sum() < 250
    assert 70 < (share == 1).sum() < 130, "half of them all over"
    assert share[(share > 0) & (share < 1)].max() < 0.5, "the others in a stripe"
    assert set(other.argmax(1).tolist()) == {0, 1, 2}  # now red, now green, now blue
    assert (other.sum(1) < 1.14).all()  # no lighter than before, but for what is clipped
    assert (other.sum(1) > 0.5 - 1e-3).all()
    gray = torch.full((1, 3, 2, 2), 0.4)
    shades = (vae._turned_hues(gray, 1.0) + 1) / 2
    torch.testing.assert_close(shades, shades[:, :1].expand_as(shades))  # gray stays gray


def test_the_discriminator_judges_but_is_not_judged() -> None:
    judge = vae.Discriminator(8)
    real, made = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16, requires_grad=True)
    fooled, told = vae._duel(judge, real, made)
    fooled.backward(retain_graph=True)
    assert made.grad is not None
    assert all(p.grad is None for p in judge.parameters())  # the decoder's loss leaves the judge alone
    made.grad = None
    told.backward()
    assert made.grad is None  # and the judge's loss leaves the decoder alone
    assert all(p.grad is not None for p in judge.parameters())


def test_a_unet_trains_and_draws_through_the_pipeline_parts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[torch.Tensor] = []

    def judge(picture: torch.Tensor, scene: Description) -> Verdict:  # the real one is slow to say no to noise
        judged.append(picture)
        return Verdict(len(judged) % 2 == 0, {}, ())

    monkeypatch.setattr(text_to_image, "judge", judge)
    run(home / "unet.toml", _unet(home, "first"), device="cpu")
    held = set((home / "cache").iterdir())
    judged.clear()
    summary = run(home / "unet.toml", _unet(home, "unet"), device="cpu")
    assert set((home / "cache").iterdir()) == held, "nothing is drawn or encoded twice"
    arguments = json.loads((summary.folder / "config.json").read_text("utf-8"))
    generator = LatentGenerator.load(summary.folder, arguments)
    assert generator.needs == replace(ClipTextEncoder.load(home / "text").produces, pooled=None)
    assert generator.produces.space == VaeDecoder(vae.load(home / "vae" / "final")).needs.space
    assert generator.shape(None) == (4, 32, 32)
    assert summary.figures == {"seen_en": 0.0, "seen_zh": 1.0, "held_out_en": 0.0, "held_out_zh": 1.0}
    assert all(p.shape == (3, 64, 64) and 0 <= p.min() <= p.max() <= 1 for p in judged)
    assert (generator.config.prediction, generator.config.schedule.name) == ("v", "cosine")


def test_cached_rows_belong_together(home: Path) -> None:
    """Row r of the latents is scene r, and rows 2r and 2r+1 of the text are its English and its Chinese caption."""
    pictures = cache.scenes(cache.SceneData(scenes=8, size=64, workers=1))
    text = ClipTextEncoder.load(home / "text")
    with torch.no_grad():
        (rows,) = text_to_image.captioned(pictures, text, 2, 0.3, 0.7, pooled=False)
    assert rows.shape == (16, 64, 16)
    rng = np.random.default_rng([5, 1, 7])
    said = caption(pictures.scenes[5], "zh", rng, bool(rng.random() < 0.3))
    with torch.no_grad():
        assert np.allclose(rows[11], text.encode([said]).tokens[0].numpy(), atol=1e-2)
    trained = vae.load(home / "vae" / "final")
    with torch.no_grad():
        latents = unet.latents(pictures, trained, VaeDecoder(trained).needs.space, torch.device("cpu"))
    image = to_float(torch.from_numpy(np.array(pictures.images[5:6])))
    with torch.no_grad():
        assert np.allclose(latents[5], trained.to_diffusion(trained.encode(image).mean)[0].numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.context_width=24", "model.context_width = 24, but the frozen parts need 16"),
        ("model.in_channels=8", "model.in_channels = 8, but the frozen parts need 4"),
        ("data.size=32", "judged=0"),
        ("vae=nowhere", "no trained VAE in nowhere"),
        ("text_encoder=nowhere", "nowhere"),
        ("schedule.name=cosin", "did you mean 'cosine'"),
    ],
)
def test_parts_that_do_not_fit_are_named(home: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "unet.toml", _unet(home, "unfit", override), device="cpu")


def test_sample_prompts_name_no_held_out_combination() -> None:
    """They are looked at while a model is made. No two of a prompt's words are a held-out pair, wherever they stand."""
    pairs, object_pairs = heldout()
    for prompt in text_to_image.PROMPTS:
        shapes = {s for s in SHAPES if re.search(rf"\b{s}", prompt) or ZH_OBJECT[s][0] in prompt}
        colours = {c for c in COLOURS if re.search(rf"\b{c}\b", prompt) or ZH_COLOUR[c] in prompt}
        assert shapes, prompt
        assert not {(colour, shape) for colour in colours for shape in shapes} & pairs
        assert len(shapes) == 1 or frozenset(shapes) not in object_pairs


def test_grid_lays_pictures_out_in_rows() -> None:
    images = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    picture = grid(images, columns=2)
    assert picture.shape == (4, 4, 3)
    assert (picture[0, 0, 0], picture[0, 2, 0], picture[2, 0, 0], picture[2, 2, 0]) == (0, 128, 255, 255)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_a_part_can_start_from_exported_weights(home: Path, part: str) -> None:
    first, second = home / f"{part}-first", home / f"{part}-second"
    frozen = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"] if part == "unet" else []
    run(home / f"{part}.toml", [f"out={first}", *frozen], device="cpu")
    run(
        home / f"{part}.toml", [f"out={second}", f"init={first / 'final'}", "optimiser.lr=1e-12", *frozen], device="cpu"
    )
    name = f"{part}/model.safetensors"
    before, after = load_file(first / "final" / name), load_file(second / "final" / name)
    assert before.keys() == after.keys()
    for key in before:  # an export folds the latents' new mean and deviation into the 1x1 convolutions
        if "quant_conv" not in key:
            assert torch.allclose(before[key].float(), after[key].float(), atol=2e-3), key
    stories = [json.loads((out / "final" / "training.json").read_text("utf-8")) for out in (first, second)]
    assert stories[0]["before"] == {}
    assert stories[1]["before"] == {key: stories[0][key] for key in ("step", "images", "minutes")}


def test_weights_of_another_model_are_no_start(home: Path) -> None:
    overrides = [f"out={home / 'wider'}", f"init={home / 'vae' / 'final'}", "model.channels=[12, 16]"]
    with pytest.raises(TrainingError, match="misshapen"):
        run(home / "vae.toml", overrides, device="cpu")


def test_a_decoder_trained_alone_keeps_the_latents(home: Path) -> None:
    init, out = home / "vae" / "final", home / "decoder"
    run(home / "vae.toml", [f"out={out}", f"init={init}", "train=decoder", "noise=0.1", "crop=32"], device="cpu")
    before, after = vae.load(init), vae.load(out / "final")
    assert VaeDecoder(before).needs == VaeDecoder(after).needs
    assert before.config == after.config
    was, now = before.state_dict(), after.state_dict()
    kept = [name for name in was if name.startswith(("encoder.", "quant_conv."))]
    assert all(torch.equal(was[name], now[name]) for name in kept)
    assert any(not torch.equal(was[name], now[name]) for name in was if name.startswith("decoder."))


def test_a_decoder_trained_from_a_vae_that_shipped_in_eight_bits_fits_its_generators(home: Path) -> None:
    """The encoder is rounded, and its latents go by the name that they had before."""
    before, init, out = vae.load_part(home / "vae" / "final"), home / "shipped-vae", home / "decoder-of-shipped"
    arguments, _ = before.save(init, torch.int8)
    (init / "config.json").write_text(json.dumps(arguments), "utf-8")
    run(home / "vae.toml", [f"out={out}", f"init={init}", "train=decoder"], device="cpu")
    after = vae.load_part(out / "final")
    assert not torch.equal(after.vae.encoder.stem.weight, before.vae.encoder.stem.weight)
    assert after.needs == before.needs
    run(home / "vae.toml", [f"out={home / 'whole-of-shipped'}", f"init={init}"], device="cpu")
    assert vae.load_part(home / "whole-of-shipped" / "final").needs != before.needs, "another encoder, another space"


@pytest.mark.parametrize(
    ("crop", "said"),
    [("72", "crop = 72 must be at most data.size, which is 64"), ("33", "crop = 33 is no multiple of 2, by which")],
)
def test_windows_lie_within_pictures(home: Path, crop: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "vae.toml", [f"out={home / 'none'}", f"crop={crop}"], device="cpu")


def test_a_decoder_alone_needs_the_latents_it_decodes(home: Path) -> None:
    with pytest.raises(RecipeError, match="needs init"):
        run(home / "vae.toml", ["train=decoder"], device="cpu")
    with pytest.raises(RecipeError, match="no trained VAE"):
        run(home / "vae.toml", [f"out={home / 'none'}", "train=decoder", f"init={home}"], device="cpu")
    other = [f"out={home / 'none'}", "train=decoder", f"init={home / 'vae' / 'final'}", "model.latent_channels=3"]
    with pytest.raises(RecipeError, match="model is not that of init"):
        run(home / "vae.toml", other, device="cpu")


@pytest.mark.slow
def test_a_compiled_unet_learns_what_an_eager_one_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    compile_it = nn.Module.compile

    def traced(module: nn.Module) -> None:  # all but the last step, which needs a C++ compiler
        compiled.append(module)
        compile_it(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    ends = {}
    for how in ("false", "true"):
        said = [f"compile={how}", "steps=2", "judged=0", "autocast=no", "optimiser.warmup=0"]
        run(home / "unet.toml", _unet(home, f"compiled-{how}", *said), device="cpu")
        ends[how] = load_file(checkpoint.found(home / f"compiled-{how}" / "checkpoints")[0])
    assert [type(network) for network in compiled] == [UNet]
    assert ends["false"].keys() == ends["true"].keys()
    for name, eager in ends["false"].items():
        torch.testing.assert_close(ends["true"][name], eager, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("part", ["vae", "decoder", "unet", "muon"])
def test_a_resumed_part_is_the_uninterrupted_one_bit_for_bit(home: Path, part: str) -> None:
    frozen = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}", "judged=0"]
    alone = ["train=decoder", f"init={home / 'vae' / 'final'}", "noise=0.1"]
    latent = part in ("unet", "muon")
    recipe, muon = home / f"{'unet' if latent else 'vae'}.toml", [*frozen, "optimiser.kind=muon"]
    more = {"vae": [], "decoder": alone, "unet": frozen, "muon": muon}[part]
    check_resumed(recipe, home / f"{part}-parts", *more)
