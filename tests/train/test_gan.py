"""A tiny GAN is trained, resumed, exported, shipped and read back; and its two networks learn what they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zoo
from tests.train.ends import check_resumed
from zoo.gan.discriminator import Discriminator
from zoo.gan.generator import FusionGenerator
from zoo.gan.parts import GanGenerator
from zoo.interface import Conditioning
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, TrainingError, gan, optimise, run, text_to_image
from zoo.train.assemble import assemble
from zoo.train.model_recipe import ShipRecipe
from zoo.train.recipe import read_toml, validate
from zoo.train.task import Batch, to_float

ROOT = Path(__file__).parents[2]
NETWORK = (
    "channels = [8, 8, 8, 8], attention = [false, false, true, false], context_width = 16, sentence_width = 8, "
    "pool_heads = 2, head_width = 8, groups = 4"
)
RECIPE = f"""
part = "gan"
judged = 0
steps = 3
batch = 4
threads = 1
log_every = 1
model = {{{NETWORK}, noise_width = 6, hidden_width = 8}}
discriminator = {{{NETWORK}}}
[data]
scenes = 8
size = 64
workers = 1
"""
FILES = ("gan/model.safetensors", "discriminator/model.safetensors")

pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def recipe(home: Path) -> Path:
    path = home / "gan.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def said(home: Path, out: str, *more: str) -> list[str]:
    return [f"text_encoder={home / 'text'}", f"out={home / out}", *more]


@pytest.fixture
def task(home: Path, recipe: Path) -> gan.GanTask:
    """On a fixed path: the first batch, in full precision."""
    more = ["autocast=no", "dropout=0", "penalised=1"]
    return gan.GanTask(validate(gan.GanRecipe, read_toml(recipe, said(home, "task", *more))), torch.device("cpu"))


def first(task: gan.GanTask) -> Batch:
    return task.batch(0, np.random.default_rng(0))


def learned(task: gan.GanTask, which: str, what: str, steps: int = 40) -> tuple[float, float]:
    """A figure of the loss on one batch before and after one of the two networks has trained on it alone."""
    torch.manual_seed(0)
    model, batch, found = task.build(), first(task), list[float]()
    optimiser = torch.optim.Adam(model.get_submodule(which).parameters(), lr=3e-3)
    for _ in range(steps):
        torch.manual_seed(1)
        loss, metrics = task.loss(model, batch, 0.0)
        found.append(float(metrics[what]))
        model.zero_grad()
        loss.backward()
        optimiser.step()
    return found[0], found[-1]


def test_the_discriminator_learns_to_tell(task: gan.GanTask) -> None:
    before, after = learned(task, "discriminator", "told", steps=120)
    assert after < 0.7 * before


def test_the_generator_learns_to_fool(task: gan.GanTask) -> None:
    before, after = learned(task, "generator", "fooled")
    assert after < before - 0.01


def test_each_network_learns_from_its_own_loss(task: gan.GanTask) -> None:
    """The discriminator's gradient is that of telling, the generator's that of fooling a discriminator held fixed."""
    task = gan.GanTask(task.recipe.model_copy(update={"penalty": 0.0}), torch.device("cpu"))
    torch.manual_seed(0)
    model, batch = task.build(), first(task)
    generator, discriminator = gan._generator(model), gan._discriminator(model)
    with torch.no_grad():
        for parameter in model.parameters():  # none at zero, or little would reach the other network
            parameter.add_(0.05 * torch.randn(parameter.shape))
    torch.manual_seed(1)
    loss, metrics = task.loss(model, batch, 0.0)
    loss.backward()
    both = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    torch.manual_seed(1)
    made = generator(torch.randn(4, 6), task.read(batch))
    images, wrong = to_float(batch["images"]), task.read({"tokens": batch["wrong"]})
    verdicts = [discriminator(p, t) for p, t in ((images, task.read(batch)), (images, wrong), (made, task.read(batch)))]
    told = torch.relu(1 - verdicts[0]).mean() + (torch.relu(1 + torch.stack(verdicts[1:])).mean(1)).mean()
    assert float(metrics["told"]) == pytest.approx(told.item(), rel=1e-4)
    expected = torch.autograd.grad(told, list(discriminator.parameters()), retain_graph=True, allow_unused=True)
    for (name, _), gradient in zip(discriminator.named_parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(both[f"discriminator.{name}"], gradient, rtol=1e-3, atol=1e-5)
    expected = torch.autograd.grad(-verdicts[2].mean(), list(generator.parameters()))
    for (name, _), gradient in zip(generator.named_parameters(), expected, strict=True):
        torch.testing.assert_close(both[f"generator.{name}"], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_one_pass_gives_all_three_verdicts(task: gan.GanTask, masked: bool) -> None:
    torch.manual_seed(0)
    network = Discriminator(task.recipe.discriminator)
    images, made, tokens, other = (torch.randn(2, *shape) for shape in [(3, 64, 64)] * 2 + [(5, 16)] * 2)
    masks = (torch.rand(2, 2, 5) < 0.7) | (torch.arange(5) == 0) if masked else (None, None)
    text, wrong = Conditioning(tokens=tokens, mask=masks[0]), Conditioning(tokens=other, mask=masks[1])
    found = gan._verdicts(network, images, made, text, wrong)
    for verdict, (pictures, said) in zip(found, ((images, text), (images, wrong), (made, text)), strict=True):
        torch.testing.assert_close(verdict, network(pictures, said), rtol=1e-4, atol=1e-5)


def test_wrong_texts_are_of_another_picture_or_changed(task: gan.GanTask, home: Path) -> None:
    batch = first(task)
    tokens, wrong = batch["tokens"], batch["wrong"]
    assert wrong.dtype == tokens.dtype
    assert torch.equal(wrong[2:], tokens[1:3]), "the second half is that of the picture before"
    rng = np.random.default_rng(0)
    rows, _ = rng.integers(8, size=4), rng.integers(2, size=4)  # scenes, and which of their captions
    texts = [task._altered(task.scenes.scenes[row], rng) for row in rows[:2]]
    with torch.no_grad():
        expected = ClipTextEncoder.load(home / "text").encode(texts).tokens
    torch.testing.assert_close(wrong[:2].float(), expected, atol=2e-2, rtol=1e-2)
    again = first(task)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_the_discriminators_rate_is_its_own(task: gan.GanTask) -> None:
    model = task.build()
    made = optimise.optimiser(task.recipe.optimiser, model, task.pace)
    paces = {id(p): group["pace"] for group in made.param_groups for p in group["params"]}
    assert {paces[id(p)] for p in gan._generator(model).parameters()} == {1.0}
    assert {paces[id(p)] for p in gan._discriminator(model).parameters()} == {4.0}
    assert {(group["betas"], group["weight_decay"]) for group in made.param_groups} == {((0.0, 0.9), 0.0)}


def test_it_trains_ships_and_draws(home: Path, recipe: Path, tmp_path: Path) -> None:
    summary = run(recipe, said(home, "gan", "changed=0.25", "penalised=0.5"), device="cpu")
    assert summary.finished
    assert {*summary.figures} == {"variety"}
    assert summary.figures["variety"] > 0
    assert (home / "gan" / "samples" / "00000003.png").is_file()
    shutil.copytree(home / "text", tmp_path / "text")
    story = {"recipe": {"part": "clip"}, "step": 1, "images": 4, "minutes": 0.1}
    (tmp_path / "text" / "training.json").write_text(json.dumps(story), "utf-8")
    shipped = read_toml(ROOT / "recipes" / "gan-small.toml") | {
        "text_encoder": {"kind": "clip-text", "run": tmp_path / "text", "arguments": {}},
        "generator": {"kind": "gan", "run": summary.folder},
        "decoder": {"kind": "cascade", "run": summary.folder, "arguments": {}},
        "bits": 16,
        "out": tmp_path,
    }
    folder = assemble(ShipRecipe.model_validate(shipped))
    assert not (folder / "discriminator").exists()
    pipe = zoo.load(folder, device="cpu")
    drawn = pipe("a red star", n=3, progress=False)
    assert drawn.tensor.shape == (3, 3, 64, 64)
    assert drawn.settings["steps"] == 1
    assert isinstance(pipe.generator, GanGenerator)
    stored = load_file(summary.folder / FILES[0])
    assert all(torch.equal(stored[name].float(), t) for name, t in pipe.generator.network.state_dict().items())


def test_the_checker_judges_its_pictures(home: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.evaluate.checker import Verdict

    monkeypatch.setattr(text_to_image, "judge", lambda picture, scene: Verdict(True, {}, ()))
    summary = run(recipe, said(home, "judged", "judged=1", "steps=1", "penalty=0"), device="cpu")
    variety = summary.figures.pop("variety")
    assert variety > 0
    assert summary.figures == dict.fromkeys(("seen_en", "seen_zh", "held_out_en", "held_out_zh"), 1.0)


def test_resume_is_bit_for_bit(home: Path, recipe: Path) -> None:
    check_resumed(recipe, home / "gan-parts", *said(home, "gan-parts"))


def test_it_can_start_from_exported_weights(home: Path, recipe: Path) -> None:
    run(recipe, said(home, "gan-first"), device="cpu")
    start = f"init={home / 'gan-first' / 'final'}"
    run(recipe, said(home, "gan-second", start, "optimiser.lr=1e-12"), device="cpu")
    for file in FILES:
        before, after = (load_file(home / out / "final" / file) for out in ("gan-first", "gan-second"))
        assert all(torch.allclose(before[name].float(), after[name].float(), atol=2e-3) for name in before)
    with pytest.raises(TrainingError, match="misshapen"):
        run(recipe, said(home, "gan-third", start, "model.hidden_width=9"), device="cpu")


def test_it_is_not_made_to_be_recomputed(home: Path, recipe: Path) -> None:
    with pytest.raises(TrainingError, match="gan has no blocks that can be computed again"):
        run(recipe, said(home, "recomputed", "recompute=true"), device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.context_width=24", "set model.context_width=16"),
        ("discriminator.context_width=24", "set discriminator.context_width=16"),
        ("model.side=2", r"data.size = 64, but \[model\] is built for 32"),
        ("discriminator.patch=1", r"\[discriminator\] is built for 32: 4 levels, the coarsest of side 4"),
        ("guidance=4.0", "guidance"),
        ("optimiser.kind=muon", "optimiser.kind"),
        ("discriminator.noise_width=6", "unknown key discriminator.noise_width"),
    ],
)
def test_what_does_not_fit_is_told(home: Path, recipe: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(recipe, said(home, "unfit", change), device="cpu")


def test_the_projects_recipes_are_recipes() -> None:
    trained = validate(gan.GanRecipe, read_toml(ROOT / "recipes" / "gan.toml"))
    rival = read_toml(ROOT / "recipes" / "unet.toml")
    ours = trained.model_dump(mode="json")
    assert ours["data"] == {"seed": 0, "workers": 0} | rival["data"]  # or it would not be a comparison
    assert all(ours[key] == rival[key] for key in ("text_encoder", "captions", "full"))
    with torch.device("meta"):
        network = FusionGenerator(trained.model)
    assert sum(p.numel() for p in network.parameters()) < 6_000_000
    shipped = ShipRecipe.model_validate(read_toml(ROOT / "recipes" / "gan-small.toml"))
    assert all((ROOT / path).is_file() for path in shipped.recipes)
