"""Tiny priors through the whole of training, between the two towers of a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.dalle2.unclip import write_clip
from tests.train.ends import check_resumed
from zoo import tensors
from zoo.clip import Clip
from zoo.config import PartConfig
from zoo.dalle2.autoregressive_prior import AutoregressiveConfig, AutoregressiveTransformer
from zoo.dalle2.part import PriorPart
from zoo.dalle2.prior import PriorConfig, PriorTransformer
from zoo.data.captions import caption
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Generator, Sampling
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, cache, prior, run, task_type, text_to_image
from zoo.train.recipe import read_toml, validate
from zoo.weights import load_part

PARTS = ("diffusion-prior", "autoregressive-prior", "one-step-prior")
RECIPE = """
steps = 3
batch = 4
threads = 1
log_every = 1
[model]
width = 16
heads = 2
layers = 1
[data]
scenes = 12
size = 64
workers = 1
"""
CODES = "dimensions = 3\nbuckets = 8\nlevels = 4"
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a tiny CLIP, the recipe of a tiny prior of each part, and a cache."""
    home = tmp_path_factory.mktemp("home")
    write_clip(home / "clip", scene_words.read_bytes(), window=64)
    for part in PARTS:
        model = f"[model]\n{CODES}" if part == "autoregressive-prior" else "[model]"
        recipe = f'part = "{part}"\ntext_encoder = "{home / "clip"}"\n{RECIPE.replace("[model]", model)}'
        (home / f"{part}.toml").write_text(recipe, encoding="utf-8")
    return home


@pytest.fixture(autouse=True)
def _small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(home / "cache"))
    monkeypatch.setattr(cache, "PROBED", 2)
    monkeypatch.setattr(prior, "FRESH", 6)


@pytest.mark.parametrize("part", PARTS)
def test_a_prior_trains_and_makes_embeddings_for_decoders_of_its_clip(home: Path, part: str) -> None:
    summary = run(home / f"{part}.toml", [f"out={home / part}"], device="cpu")
    assert set(summary.figures) == {f"{what}_{half}" for what in ("cosine", "retrieval") for half in ("seen", "dev")}
    assert all(-1 <= figure <= 1 for figure in summary.figures.values())
    arguments = json.loads((summary.folder / "config.json").read_text("utf-8"))
    loaded = load_part(summary.folder, PartConfig(kind=part, arguments=arguments))
    assert isinstance(loaded, Generator)
    assert isinstance(loaded, PriorPart)
    text = ClipTextEncoder.load(home / "clip")
    assert loaded.needs == text.produces
    assert loaded.produces.space == Clip.load(home / "clip").image_space
    assert loaded.produces.shape == (8,)
    made = loaded.generate(
        text.encode(["a red star", "红色的星星"]), text.null(2), ImageNoise([0, 1]), Sampling(steps=2)
    )
    torch.testing.assert_close(made.data.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("part", PARTS)
def test_a_resumed_prior_is_the_uninterrupted_one_bit_for_bit(home: Path, part: str) -> None:
    check_resumed(home / f"{part}.toml", home / f"{part}-parts")


@pytest.mark.parametrize("part", PARTS)
def test_a_prior_can_start_from_exported_weights(home: Path, part: str) -> None:
    first, second = home / f"{part}-first", home / f"{part}-second"
    run(home / f"{part}.toml", [f"out={first}"], device="cpu")
    more = [f"out={second}", f"init={first / 'final'}", "optimiser.lr=1e-12", "seed=5"]
    run(home / f"{part}.toml", more, device="cpu")
    before, after = (load_file(folder / "final" / "prior" / "model.safetensors") for folder in (first, second))
    for name in before:
        assert torch.allclose(before[name].float(), after[name].float(), atol=2e-3), name


def test_cached_rows_belong_together(home: Path) -> None:
    """Row r of the embeddings is scene r; rows 2r and 2r+1 of tokens and text embeddings are its two captions."""
    kind = task_type("diffusion-prior")
    recipe = validate(kind.recipe_type, read_toml(home / "diffusion-prior.toml", ["autocast=no"]))
    task = kind(recipe, torch.device("cpu"))
    assert isinstance(task, prior.DiffusionPriorTask)
    clip, text = Clip.load(home / "clip"), ClipTextEncoder.load(home / "clip")
    batch = task.rows(np.array([7, 3]), np.random.default_rng(0))
    pictures = torch.from_numpy(np.array(task.scenes.images[[7, 3]])).permute(0, 3, 1, 2) / 255
    assert torch.allclose(batch["embeddings"].float(), clip.embed_images(pictures), atol=2e-3)
    for row, scene in enumerate((7, 3)):
        found = []
        for which in range(2):
            rng = np.random.default_rng([scene, which, 7])
            language = text_to_image.LANGUAGES[which]
            said = text.encode([caption(task.scenes.scenes[scene], language, rng, bool(rng.random() < 0.3))])
            assert said.pooled is not None
            found.append(
                torch.allclose(batch["tokens"][row].float(), said.tokens[0], atol=1e-2)
                and torch.allclose(batch["vectors"][row].float(), said.pooled[0], atol=1e-2)
            )
        assert sum(found) == 1
    model = task.build()
    clean, _ = task.clean(batch)
    standard = task.part(model).stored.standardise(task.measured())
    assert torch.allclose(standard.mean(0), torch.zeros(8), atol=1e-4)
    assert torch.allclose(standard.std(0), torch.ones(8), atol=1e-4)
    assert clean.shape == (2, 8)


def test_the_image_space_is_named_by_the_image_tower(home: Path) -> None:
    space = Clip.load(home / "clip").image_space
    for projection, same in (("text_projection", True), ("visual_projection", False)):
        other = Clip.load(home / "clip")
        with torch.no_grad():
            other.model.get_submodule(projection).weight[0, 0] += 1
        assert (other.image_space == space) is same
    assert Clip.load(home / "clip").half().image_space == space, "stored in half precision it is the same space"


def test_retrieval_tells_the_right_embedding_from_a_wrong_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = task_type("one-step-prior")
    task = kind(validate(kind.recipe_type, read_toml(home / "one-step-prior.toml")), torch.device("cpu"))
    assert isinstance(task, prior.OneStepPriorTask)
    model, asked = task.build(), task.asked
    assert {half: len(one.embeddings) for half, one in asked.items()} == {"seen": 6, "dev": 6}

    def told(part: object, *_: object, **__: object) -> torch.Tensor:
        return next(answers)

    monkeypatch.setattr("zoo.dalle2.one_step_prior.OneStepPrior.draw", told)
    seen, dev = asked["seen"].embeddings, asked["dev"].embeddings.roll(1, 0)
    answers = iter([seen, seen, dev, dev])  # one for each candidate
    _, figures = task.inspect(model)
    assert figures["retrieval_seen"] == 1
    assert figures["cosine_seen"] == pytest.approx(1, abs=1e-5)
    assert figures["retrieval_dev"] == 0
    assert figures["cosine_dev"] < 1


@pytest.mark.parametrize(
    ("part", "override", "said"),
    [
        ("diffusion-prior", "text_encoder=nowhere", "nowhere"),
        ("diffusion-prior", "model.heads=3", r"\[model\] cannot be: .*does not divide into heads=3"),
        ("diffusion-prior", "model.buckets=3", "unknown key model.buckets"),
        ("autoregressive-prior", "model.dimensions=9", "has no 9 components"),
        ("one-step-prior", "schedule.name=cosine", "unknown key schedule"),
    ],
)
def test_what_cannot_be_trained(home: Path, part: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / f"{part}.toml", [f"out={home / 'unfit'}", override], device="cpu")


def test_too_few_scenes_for_the_components(home: Path) -> None:
    more = [f"out={home / 'few'}", "data.scenes=3"]
    with pytest.raises(TrainingError, match="3 embeddings do not determine 3 components"):
        run(home / "autoregressive-prior.toml", more, device="cpu")


def test_processes_cannot_share_a_contrast(home: Path) -> None:
    kind = task_type("one-step-prior")
    task = kind(validate(kind.recipe_type, read_toml(home / "one-step-prior.toml")), torch.device("cpu"))
    with pytest.raises(TrainingError, match="train it in one process, with accumulate = 1"):
        task.share({}, 0, 2)


@pytest.mark.parametrize("part", PARTS)
def test_the_recipe_of_the_repository_is_small(part: str) -> None:
    """Between the zoo's own CLIP, each prior has at most five million parameters."""
    path = RECIPES / f"prior-{part.removesuffix('-prior')}.toml"
    recipe = validate(task_type(part).recipe_type, read_toml(path))
    assert isinstance(recipe, prior.PriorRecipe)
    said = {"embedding": 256, "text_width": 192, "length": 32, **recipe.model.model_dump()}

    def build() -> nn.Module:
        if part == "autoregressive-prior":
            return AutoregressiveTransformer(AutoregressiveConfig.model_validate(said))
        return PriorTransformer(PriorConfig.model_validate({**said, "timed": part == "diffusion-prior"}))

    parameters = sum(p.numel() for p in tensors.on_meta(build).parameters())
    print(f"\n{part}: {parameters:,} parameters")
    assert 1.5e6 < parameters < 3e6
