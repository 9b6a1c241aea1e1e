"""A tiny unCLIP decoder through the whole of training, on the embeddings of a tiny CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.dalle2.unclip import prior, towers, write_clip
from tests.train.ends import check_recomputed, check_resumed
from zoo import tensors
from zoo.config import PartConfig
from zoo.dalle2.decoder import FILE, UnclipDecoder, UnclipNetwork, UnclipNetworkConfig
from zoo.data.captions import caption
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import ImageNoise
from zoo.efficient_unet import EfficientUNet
from zoo.evaluate.checker import Verdict
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import Representation, Sampling, TextFeatures
from zoo.pipeline import Pipeline
from zoo.train import RecipeError, TrainingError, cache, pixels, run, text_to_image, unclip
from zoo.train.recipe import read_toml, validate
from zoo.weights import load_part

ROOT = Path(__file__).parents[2]
RECIPE = """
part = "unclip-decoder"
steps = 3
batch = 4
threads = 1
log_every = 1
factor = 4
judged = 8
sampling = {steps = 2, guidance = 2.0, threshold = 1.0}
model = {channels = [8, 16], attention = [false, true], head_width = 8, groups = 4, blocks_per_level = 1, \
context_width = 12}
[data]
scenes = 12
size = 64
workers = 1
"""
UPSAMPLER = """
part = "super-resolution"
name = "upsampler"
reads = false
steps = 2
batch = 2
threads = 1
log_every = 1
enlarged = 8
factor = 4
sampling = {steps = 2, threshold = 1.0, augmentation = 0.1}
model = {channels = [8, 16], self_attention = [false, false], text_attention = [false, false], heads = 2, groups = 4, \
blocks_per_level = [1, 1]}
[data]
scenes = 12
size = 64
workers = 1
"""
KINDS = {
    "captions": ["noise=1.0"],
    "alone": ["reads=false"],
    "learned": ["variance=learned_range", "prediction=epsilon"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a tiny CLIP, the recipes, and a cache."""
    home = tmp_path_factory.mktemp("home")
    write_clip(home / "clip", scene_words.read_bytes(), window=64)
    (home / "decoder.toml").write_text(RECIPE, "utf-8")
    (home / "upsampler.toml").write_text(UPSAMPLER, "utf-8")
    return home


@pytest.fixture(autouse=True)
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs find what was drawn before; and the real checker is slow to say no to noise."""
    monkeypatch.setenv("ZOO_CACHE", str(home / "cache"))
    monkeypatch.setattr(cache, "PROBED", 2)
    monkeypatch.setattr(unclip, "judge", lambda picture, scene: Verdict(False, {}, ()))
    monkeypatch.setattr("zoo.evaluate.enlarging.judge", lambda picture, scene: Verdict(False, {}, ()))


def said(home: Path, out: str, *more: str) -> list[str]:
    return [f"text_encoder={home / 'clip'}", f"out={home / out}", *more]


def task(home: Path, *more: str) -> unclip.UnclipTask:
    recipe = validate(unclip.UnclipRecipe, read_toml(home / "decoder.toml", said(home, "task", "autocast=no", *more)))
    return unclip.UnclipTask(recipe, torch.device("cpu"))


def exported(folder: Path) -> UnclipDecoder:
    arguments = json.loads((folder / "config.json").read_text("utf-8"))
    part = load_part(folder, PartConfig(kind="unclip-decoder", arguments=arguments))
    assert isinstance(part, UnclipDecoder)
    return part


def test_decoder_and_upsampler_train_and_draw_together(home: Path) -> None:
    summary = run(home / "decoder.toml", said(home, "decoder"), device="cpu")
    assert set(summary.figures) == {"ok_seen", "ok_dev", "cosine_seen", "cosine_dev"}
    assert all(-1 <= figure <= 1 for figure in summary.figures.values())
    larger = run(home / "upsampler.toml", [f"out={home / 'upsampler'}"], device="cpu").folder
    chain = CascadeDecoder.load(larger, json.loads((larger / "config.json").read_text("utf-8"))).stages
    small, (clip, text) = exported(summary.folder), towers(home / "clip")
    assert small.needs == clip.produces
    assert small.needs_text == text.produces
    part = UnclipDecoder.of(small.network, small.config, chain)
    pipe = Pipeline(text, prior(clip, text.produces), part, defaults=Sampling(steps=2))
    drawn = pipe(["a red star", "红色的星星"], n=1, progress=False)
    assert drawn.tensor.shape == (2, 3, 64, 64)
    assert list(drawn.settings["stages"]) == ["decoder", "upsampler"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_decoder_is_the_uninterrupted_one_bit_for_bit(home: Path, kind: str) -> None:
    out = f"{kind}-resumed"
    resumed = check_resumed(home / "decoder.toml", home / out, *said(home, out, *KINDS[kind]))
    part = exported(resumed / "final")
    assert (part.needs_text is None) is (kind == "alone")
    assert part.denoiser.learns_variance is (kind == "learned")


def test_a_decoder_can_start_from_exported_weights(home: Path) -> None:
    run(home / "decoder.toml", said(home, "first"), device="cpu")
    more = [f"init={home / 'first' / 'final'}", "optimiser.lr=1e-12", "seed=5"]
    run(home / "decoder.toml", said(home, "second", *more), device="cpu")
    before, after = (load_file(home / out / "final" / FILE) for out in ("first", "second"))
    for name in before:
        assert torch.allclose(before[name].float(), after[name].float(), atol=2e-3), name


def test_a_decoder_can_start_from_the_base_of_imagen(home: Path) -> None:
    """Its U-Net is taken, the projection stays new, and a U-Net of another shape is refused."""
    one, folder = task(home), home / "based"
    torch.manual_seed(3)
    base, model = one.build().get_submodule("network.unet"), one.build()
    projection = {
        name: tensor.clone() for name, tensor in model.get_submodule("network.projection").state_dict().items()
    }
    (folder / "base").mkdir(parents=True)
    stored = {name: tensor.contiguous() for name, tensor in base.state_dict().items()} | {"pool.query": torch.ones(4)}
    save_file(stored, folder / "base" / "model.safetensors")
    one.start(model, folder)
    for name, tensor in model.get_submodule("network.unet").state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    for name, tensor in model.get_submodule("network.projection").state_dict().items():
        assert torch.equal(tensor, projection[name]), name
    del stored["head.weight"]
    save_file(stored, folder / "base" / "model.safetensors")
    with pytest.raises(ValueError, match="missing"):
        one.start(model, folder)
    with pytest.raises(TrainingError, match="decoder"):
        run(home / "decoder.toml", said(home, "none", f"init={home}"), device="cpu")


def test_cached_rows_belong_together(home: Path) -> None:
    one, (clip, text) = task(home), towers(home / "clip")
    batch = one.rows(np.array([7, 3]), np.random.default_rng(0))
    pictures = batch["images"].permute(0, 3, 1, 2) / 255
    assert torch.allclose(batch["embeddings"].float(), clip.embed_images(pictures), atol=2e-3)
    for row, scene in enumerate((7, 3)):
        assert np.array_equal(batch["images"][row], one.scenes.images[scene])
        found = []
        for which in range(2):
            rng = np.random.default_rng([scene, which, 7])
            words = caption(one.scenes.scenes[scene], text_to_image.LANGUAGES[which], rng, bool(rng.random() < 0.3))
            told = text.encode([words])
            assert told.pooled is not None
            both = (batch["tokens"][row], told.tokens[0]), (batch["vectors"][row], told.pooled[0])
            found.append(all(torch.allclose(cached.float(), true, atol=2e-2) for cached, true in both))
        assert sum(found) == 1
    network = one.build().network
    assert isinstance(network, UnclipNetwork)
    units = (torch.from_numpy(np.array(one.embeddings)).float() - network.mean) / network.std
    assert torch.allclose(units.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(units.std(0), torch.ones(8), atol=1e-4)


def test_embeddings_and_captions_are_dropped_each_by_itself(home: Path) -> None:
    def told(*more: str) -> tuple[Tensor, Tensor, Tensor]:
        """What of 400 samples is dropped: embedding, the caption's embedding, its tokens."""
        one = task(home, *more)
        denoiser = one.build()
        assert isinstance(denoiser, Denoiser)
        network = denoiser.network
        assert isinstance(network, UnclipNetwork)
        network.projection.null.data += 0.5
        batch = one.rows(np.arange(400) % 12, np.random.default_rng(0))
        torch.manual_seed(0)
        fed, empty = one.told(network, batch), one.text.null(1)
        assert fed.vector is not None
        assert fed.tokens is not None
        assert empty.pooled is not None
        image, pooled = fed.vector.chunk(2, 1)
        kept = torch.where((image == batch["embeddings"].float()).all(1), 0, 1)
        assert bool(((image == network.null()).all(1) | (kept == 0)).all())
        return kept.bool(), (pooled == empty.pooled).all(1), (fed.tokens == empty.tokens).flatten(1).all(1)

    image, pooled, tokens = told("dropout=0.1", "caption_dropout=0.5")
    assert torch.equal(pooled, tokens)
    assert float(image.float().mean()) == pytest.approx(0.1, abs=0.05)
    assert float(pooled.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert float((image & pooled).float().mean()) == pytest.approx(0.05, abs=0.04), "by chances of their own"
    image, pooled, _ = told("dropout=0", "caption_dropout=1")
    assert not image.any()
    assert pooled.all()


def test_the_null_embedding_is_learned(home: Path) -> None:
    one = task(home, "dropout=0.5")
    model = one.build()
    torch.nn.init.normal_(model.get_parameter("network.unet.head.weight"), std=0.1)  # it starts by saying nothing
    for block in model.modules():
        if hasattr(block, "conv2"):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    torch.manual_seed(0)
    loss, _ = one.loss(model, one.batch(0, np.random.default_rng(0)), 0.0)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert model.get_parameter("network.projection.null").grad.abs().max() > 0  # type: ignore[union-attr]


def test_it_learns_what_an_embedding_shows(home: Path) -> None:
    """What is decoded of a picture's embedding comes nearer to that picture than to others."""
    more = ["optimiser.lr=3e-3", "optimiser.warmup=5", "ema=0.9", "batch=8", "sample_every=1000", "factor=8"]
    summary = run(
        home / "decoder.toml", said(home, "learned", *more, "steps=100", "log_every=50", "reads=false"), device="cpu"
    )
    part, clip = exported(summary.folder), towers(home / "clip")[0]
    true = torch.from_numpy(np.array(task(home).scenes.images)).permute(0, 3, 1, 2).float() / 255
    nothing = TextFeatures(torch.zeros(12, 1, 1), None, None, "none")
    made = part.decode(clip.encode(true), nothing, nothing, ImageNoise(range(12)), [Sampling(steps=10)])
    small = torch.nn.functional.avg_pool2d(true, 8)
    distances = (made[:, None] - small[None]).square().flatten(2).mean(2)
    others = distances[~torch.eye(12, dtype=torch.bool)].mean()
    print(f"\n{float(distances.diagonal().mean()):.4f} from its own, {float(others):.4f} from others")
    assert float(distances.diagonal().mean()) < 0.7 * float(others)


def test_the_checker_looks_at_what_is_decoded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = task(home)
    model = one.build()
    shown: list[Tensor] = []

    def truth(part: UnclipDecoder, seen: Representation, *_: object) -> Tensor:
        fresh = next(f for f in one.fresh.values() if torch.equal(f.seen.data, seen.data))
        return torch.nn.functional.avg_pool2d(fresh.pictures, 4)

    def judged(picture: Tensor, description: object) -> Verdict:
        shown.append(picture)
        return Verdict(description in [scene.describe() for scene in one.fresh["dev"].scenes], {}, ())

    monkeypatch.setattr(UnclipDecoder, "decode", truth)
    monkeypatch.setattr(unclip, "judge", judged)
    picture, figures = one.inspect(model)
    assert (figures["ok_seen"], figures["ok_dev"]) == (0, 1)
    assert len(shown) == 16
    assert shown[0].shape == (3, 64, 64)
    assert picture is not None
    assert picture.shape == (4 * 64, 8 * 64, 3)
    pairs = picture.reshape(4, 64, 4, 2, 64, 3).astype(float)
    assert np.abs(pairs[:, :, :, 0] - pairs[:, :, :, 1]).mean() < 20, "each scene stands beside what is decoded of it"


def test_blocks_may_be_computed_again(home: Path) -> None:
    check_recomputed(home / "decoder.toml", home / "recomputed", *said(home, "recomputed", "noise=1.0"))


def test_embeddings_are_noised_beside_captions_alone(home: Path) -> None:
    """By a share of their own deviation that is drawn for each; those that stand alone are as CLIP made them."""
    chances = {"dropout": 0.0, "caption_dropout": 0.5, "noise": 0.5}
    one = task(home, *(f"{key}={value}" for key, value in chances.items()))
    network = cast(unclip.UnclipNetwork, cast(Denoiser, one.build()).network)
    rows = np.zeros(400, dtype=np.int64)
    batch = one.rows(rows, np.random.default_rng(0))
    torch.manual_seed(0)
    given = one.told(network, batch)
    assert given.vector is not None
    assert given.tokens is not None
    width = batch["embeddings"].shape[1]
    moved = (given.vector[:, :width] - batch["embeddings"].float()) / network.std
    alone = (given.tokens == one.empty.tokens.float()).flatten(1).all(1)
    assert 150 < alone.sum() < 250
    assert not moved[alone].any()
    sizes = moved[~alone].square().mean(1).sqrt()
    assert 0.2 < sizes.mean() < 0.3, "half of the most, on average"
    assert 0.1 < sizes.std() < 0.2, "each by a share of its own"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text_encoder=nowhere"], "nowhere"),
        (["data.size=32"], "multiples of 64"),
        (["factor=3"], "made 3 times smaller is no multiple of 2"),
        (["model.head_width=7"], "head_width=7"),
        (["model.in_channels=4"], r"\[model\] cannot be.*3 in_channels"),
        (["judged=4"], "judged"),
        (["reads=false", "noise=0.5"], "noise is for embeddings beside captions"),
        (["variance=learnt"], "variance"),
        (["sampling.sampler=dpmpp"], "unknown sampler 'dpmpp'"),
        (["sampling.steps=2000"], "2000"),
    ],
)
def test_what_cannot_be_trained(home: Path, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(home / "decoder.toml", said(home, "unfit", *overrides), device="cpu")


def test_a_network_without_tokens_cannot_be_told(home: Path) -> None:
    bare = RECIPE.replace(", context_width = 12", "")
    (home / "bare.toml").write_text(bare, "utf-8")
    with pytest.raises(RecipeError, match="model.context_width, the width of the tokens"):
        run(home / "bare.toml", said(home, "unfit"), device="cpu")


def test_the_recipes_of_the_repository_are_small() -> None:
    """At most 6.6 million parameters between the zoo's own CLIP and pictures of 32x32, beside the upsampler."""
    recipe = validate(unclip.UnclipRecipe, read_toml(ROOT / "recipes" / "unclip-decoder.toml"))
    projection = {
        "embedding_width": 256,
        "context_width": 192,
        "time_width": recipe.unet.embedding_width,
        "text_channels": recipe.unet.context_width,
    }
    network = UnclipNetworkConfig.model_validate({"unet": recipe.unet, "projection": projection})
    parameters = sum(p.numel() for p in tensors.on_meta(lambda: UnclipNetwork(network)).parameters())
    larger = validate(pixels.StageRecipe, read_toml(ROOT / "recipes" / "super-resolution.toml"))
    added = sum(p.numel() for p in tensors.on_meta(lambda: EfficientUNet(larger.network)).parameters())
    print(f"\n{parameters:,} parameters, and {added:,} of the upsampler")
    assert 6e6 < parameters < 7e6
    assert added < 3e6
    assert larger.factor == recipe.factor
    assert not larger.reads
    scenes = read_toml(ROOT / "recipes" / "unet.toml")["data"]["scenes"]  # type: ignore[index]
    assert recipe.data.scenes == larger.data.scenes == scenes
