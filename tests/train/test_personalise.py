"""Every way to personalise, on a tiny pipeline: what learns, what does not, what is left, and the way back in."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import zoo
from tests.conftest import wordpieces, write_model
from tests.dalle2 import unclip
from tests.imagen.tiny import base, stage, t5
from tests.train.ends import check_recomputed
from zoo.adapt import active
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.adapt.prefix import reading
from zoo.adapt.words import Word, inject, teach
from zoo.config import ROLES
from zoo.data.captions import ZH_COLOUR, ZH_OBJECT, plural
from zoo.data.folder import ImageFolder
from zoo.data.scenes import COLOURS, SHAPES, Description, Item, is_heldout
from zoo.diffusion.objective import Teacher
from zoo.diffusion.objective import loss as objective
from zoo.imagen.parts import CascadeDecoder
from zoo.interface import Conditioning
from zoo.pipeline import Pipeline
from zoo.train import RecipeError, TrainingError, adapters, run
from zoo.train.learners import learners
from zoo.train.methods import Method, usual
from zoo.train.optimise import optimiser
from zoo.train.personalise import AdapterRecipe, AdapterTask, _rows, exchanged
from zoo.train.recipe import read_toml, validate
from zoo.weights import save_model

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::zoo.text.tokenizer.UnknownWords")

RECIPE = """
part = "adapter"
model = "tiny"
pictures = "pictures"
steps = 4
batch = 3
threads = 1
autocast = "no"
log_every = 1
shown = 1
lora = {rank = 2}
prefix = {length = 3, hidden = 8}
optimiser = {lr = 0.05, warmup = 0}
"""
FILES = {
    "lora": {"lora.safetensors"},
    "prefix": {"prefix.safetensors"},
    "lora+prefix": {"lora.safetensors", "prefix.safetensors"},
    "textual-inversion": {"word.safetensors"},
}
SAID = "a Zip star"
WORD = ["method=textual-inversion", 'word={name="Zip", like="star"}']


@pytest.fixture(scope="module")
def words() -> bytes:
    """A sentencepiece model with pieces kept free."""
    return wordpieces(["<new0>", "<new1>"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, words: bytes) -> Path:
    """A folder with the models tiny, imagen and dalle2, five captioned pictures, and a recipe."""
    home = tmp_path_factory.mktemp("personal")
    write_model(home / "models" / "tiny", words)
    encoder = t5(words)
    chain = CascadeDecoder([stage("first", encoder.produces, 3), stage("second", None, 4)])
    defaults = {"steps": 2, "guidance": 2.0, "threshold": 1.0}
    imagen = home / "models" / "imagen"
    save_model(imagen, encoder, base(encoder.produces), chain, family="Imagen", resolution=(32, 32), defaults=defaults)
    clip, text = unclip.towers(unclip.write_clip(home / "clip", words))
    part = unclip.decoder(clip, text.produces, side=16, upsamplers=[unclip.upsampler()])
    dalle2 = (text, unclip.prior(clip, text.produces), part)
    said = {"family": "DALL-E 2", "resolution": (32, 32), "defaults": {"steps": 2}}
    save_model(home / "models" / "dalle2", *dalle2, image_encoder=clip, **said)
    rng, lines = np.random.default_rng(0), []
    (home / "pictures").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(home / "pictures" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": SAID + ["", " on a mint background"][i % 2]}))
    (home / "pictures" / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    (home / "recipe.toml").write_text(RECIPE, "utf-8")
    return home


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_MODELS", str(home / "models"))
    monkeypatch.setenv("ZOO_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


def by(method: str) -> list[str]:
    return WORD if method == "textual-inversion" else [f"method={method}"]


def recipe(home: Path, *overrides: str) -> AdapterRecipe:
    return validate(AdapterRecipe, read_toml(home / "recipe.toml", overrides))


def task(home: Path, *overrides: str) -> AdapterTask:
    return AdapterTask(recipe(home, *overrides), torch.device("cpu"))


def weights(pipe: Pipeline) -> dict[str, torch.Tensor]:
    return {f"{r}.{n}": t.clone() for r in ROLES for n, t in getattr(pipe, r).state_dict().items()}


def descend(learner: AdapterTask, steps: int) -> list[float]:
    """Losses of a fixed batch, at fixed times and noise."""
    torch.manual_seed(0)
    model = learner.build().train()
    mover, batch, losses = (
        optimiser(learner.recipe.optimiser, model, learner.pace),
        learner.batch(0, np.random.default_rng(0)),
        [],
    )
    for _ in range(steps):
        torch.manual_seed(1)
        loss, _ = learner.loss(model, batch, 0.0)
        loss.backward()
        mover.step()
        mover.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("method", get_args(Method))
def test_a_fixed_batch_is_learned_and_nothing_else_changes(home: Path, method: str) -> None:
    rate = "optimiser.lr=0.002" if method == "full" else "optimiser.lr=0.05"
    learner = task(home, *by(method), rate)
    before = weights(learner.pipe)
    losses = descend(learner, 12)
    assert min(losses[-2:]) < 0.98 * losses[0], losses
    after = weights(learner.pipe)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if method != "full":
        assert not changed
    else:
        assert {name.partition(".")[0] for name in changed} == {"generator"}
        assert len(changed) > 0.9 * sum(name.startswith("generator.") for name in before)


@pytest.mark.parametrize("method", get_args(Method))
def test_what_a_run_leaves_changes_the_pictures_that_ask_for_it(home: Path, method: str) -> None:
    summary = run(home / "recipe.toml", [*by(method), f"out={home / method}"], device="cpu")
    fresh = zoo.load("tiny", device="cpu")
    prompts = [SAID, "a red circle"]
    plain = fresh(prompts, n=1, steps=2, progress=False).tensor
    if method == "full":
        trained = zoo.load(summary.folder, device="cpu")
        assert trained.name == "full"
        assert not torch.equal(trained(prompts, n=1, steps=2, progress=False).tensor, plain)
        assert torch.equal(trained.text_encoder.encode(prompts).tokens, fresh.text_encoder.encode(prompts).tokens)
        return
    assert {file.name for file in summary.folder.glob("*.safetensors")} == FILES[method]
    assert sum(file.stat().st_size for file in summary.folder.glob("*.safetensors")) < 100_000
    for file in sorted(summary.folder.glob("*.safetensors")):
        if file.stem == "word":
            assert fresh.load_word(file) == "Zip"
        else:
            {"lora": fresh.load_lora, "prefix": fresh.load_prefix}[file.stem](file)
    unasked = fresh(prompts, n=1, steps=2, progress=False).tensor
    assert torch.equal(unasked[1], plain[1])
    if method == "textual-inversion":  # the word itself is how it is asked for
        assert not torch.equal(unasked[0], plain[0])
        return
    assert torch.equal(unasked[0], plain[0])
    asked = fresh(prompts, n=1, steps=2, adapters=dict.fromkeys(fresh.adapters(), 1.0), progress=False).tensor
    assert not torch.equal(asked[0], plain[0])


def test_a_word_is_trained_as_its_one_row(home: Path) -> None:
    learner = task(home, *WORD)
    encoder = learner.pipe.text_encoder
    table = encoder.model.get_input_embeddings().weight
    row = learner.trained.model["textual_inversion"].row
    ids = [int(i) for i in encoder.tokenizer.pieces.encode("star")]
    assert torch.allclose(row, table[ids].mean(0))
    descend(learner, 3)
    assert [name for name, p in learner.build().named_parameters() if p.requires_grad] == ["textual_inversion.row"]
    stored = home / "stored.safetensors"
    learner.trained.model["textual_inversion"].save(stored)
    fresh = zoo.load("tiny", device="cpu")
    spoken, mute = fresh.text_encoder.encode([SAID]).tokens, fresh.text_encoder.encode(["a star"]).tokens
    fresh.load_word(stored)
    assert torch.allclose(fresh.text_encoder.encode([SAID]).tokens, encoder.encode([SAID]).tokens, atol=1e-6)
    assert torch.allclose(
        fresh.text_encoder.encode(["zip的星星"]).tokens, encoder.encode(["zip的星星"]).tokens, atol=1e-6
    )
    assert not torch.equal(fresh.text_encoder.encode([SAID]).tokens, spoken)
    assert torch.equal(fresh.text_encoder.encode(["a star"]).tokens, mute)
    assert fresh.text_encoder.tokenizer.strangers(SAID) == [], "it is known now"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_identifier_is_learned_beside_a_method(home: Path, method: str) -> None:
    more = [f"method={method}", 'word={name="Zip", lr=0.01}', "optimiser.lr=0.02"]
    learner = task(home, *more)
    row = learner.trained.model["textual_inversion"].row
    start, table = row.detach().clone(), learner.pipe.text_encoder.model.get_input_embeddings().weight
    assert float(start.norm()) == pytest.approx(float(table.norm(dim=1).quantile(0.9)), rel=1e-4)
    assert learner.pace("textual_inversion.row") == pytest.approx(0.5)
    losses = descend(learner, 3)
    assert losses[-1] < losses[0]
    assert not torch.equal(row, start)
    folder = run(home / "recipe.toml", [*more, f"out={home / ('named-' + method)}"], device="cpu").folder
    assert (folder / "word.safetensors").is_file()
    assert adapters.opened(folder, "mine", device="cpu").pipe.text_encoder.tokenizer.words == {"Zip": "<new0>"}


def test_a_word_that_is_read_is_taken_back_wholly(home: Path) -> None:
    encoder = zoo.load("tiny", device="cpu").text_encoder
    before = encoder.encode([SAID]).tokens
    word = Word.fresh(encoder, "Zip", "<new0>", "star")
    injection = inject(encoder, word)
    assert encoder.tokenizer.words == {"Zip": "<new0>"}
    assert not torch.equal(encoder.encode([SAID]).tokens, before)
    injection.remove()
    injection.remove()
    assert encoder.tokenizer.words == {}
    assert torch.equal(encoder.encode([SAID]).tokens, before)
    teach(encoder, word)
    taught = encoder.encode([SAID]).tokens
    again = inject(encoder, Word("Zip", "<new0>", torch.zeros_like(word.row)))
    again.remove()
    assert encoder.tokenizer.words == {"Zip": "<new0>"}, "it was known before"
    assert torch.equal(encoder.encode([SAID]).tokens, taught)


def test_words_that_cannot_be_taught(home: Path, tmp_path: Path) -> None:
    pipe = zoo.load("tiny", device="cpu")
    with pytest.raises(ValueError, match="is 3 wide, but this encoder's embeddings are 32"):
        pipe.load_word(Word("Zip", "<new0>", torch.zeros(3)))
    with pytest.raises(ValueError, match="'<new9>' is no piece .* <new0>, <new1>"):
        pipe.load_word(Word("Zip", "<new9>", torch.zeros(32)))
    pipe.load_word(Word("Zip", "<new0>", torch.zeros(32)))
    with pytest.raises(ValueError, match="<new0> stands for 'Zip' already"):
        pipe.load_word(Word("Zap", "<new0>", torch.zeros(32)))
    for name, piece in (("Zip", "<new1>"), ("ZIP", "<new1>")):
        with pytest.raises(ValueError, match="'Zip' is known already, as it was learned with another adapter"):
            pipe.load_word(Word(name, piece, torch.zeros(32)))
    from safetensors.torch import save_file

    save_file({"row": torch.zeros(32)}, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match="no word written by zoo"):
        pipe.load_word(tmp_path / "word.safetensors")


def test_class_pictures_are_the_models_own_and_drawn_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["prompt=a Zip star", 'prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2"]
    first = task(home, *wanted)
    assert first.prior is not None
    pipe = zoo.load("tiny", device="cpu")
    drawn = pipe(["a star"], n=5, seed=list(range(10_000_000, 10_000_005)), steps=2, progress=False).tensor
    kept = pipe.decoder.encode((drawn * 255).round() / 255).data
    assert torch.allclose(first.prior.kept["generator"], kept, atol=1e-4)
    assert [first.prompts[i] for i in first.prior.prompts.tolist()] == ["a star"] * 5
    assert {first.prompts[i] for i in first.own.prompts.tolist()} == {"a Zip star"}, "captions give way to the prompt"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Pipeline, "__call__", never)
    again = task(home, *wanted, "method=full")
    assert again.prior is not None
    assert torch.equal(again.prior.kept["generator"], first.prior.kept["generator"])
    assert task(home, *wanted, "prior.weight=0").prior is None
    with pytest.raises(AssertionError, match="drawn again"):
        task(home, *wanted, "prior.pictures=6")


def test_views_are_learned_from(home: Path) -> None:
    once, often = task(home), task(home, "views=3")
    assert len(often.own) == 3 * len(once.own)
    assert often.own.prompts.tolist() == np.repeat(once.own.prompts.numpy(), 3).tolist()
    kept = often.own.kept["generator"]
    assert torch.allclose(kept[::3], once.own.kept["generator"], atol=1e-5)
    assert not torch.equal(kept[1], kept[0])


def test_pictures_beside_what_the_model_draws_are_learned_from(home: Path) -> None:
    more = ["prompt=star", "views=2", "prior.steps=2", "beside.subject=star", 'beside.things=["cat","fish"]']
    plain, learner = task(home, *more[:2]), task(home, *more, "beside.each=2")
    own = len(plain.own)
    said = [learner.prompts[i] for i in learner.own.prompts.tolist()]
    assert said[:own] == ["star"] * own
    assert [prompt.split()[-1] for prompt in said[own:]] == ["cat", "cat", "fish", "fish"] * (own // 2)
    assert all(prompt.startswith("star ") for prompt in said[own:])
    kept = learner.own.kept["generator"]
    assert torch.allclose(kept[:own], plain.own.kept["generator"], atol=1e-5)
    assert len({tuple(one.flatten().tolist()) for one in kept}) == len(said)
    with pytest.raises(RecipeError, match="beside.subject = 'moon' is not in the caption 'star'"):
        task(home, *more, "beside.subject=moon")


def test_the_prior_has_its_weight_in_the_loss(home: Path) -> None:
    learner = task(
        home, 'prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2", "prior.weight=0.25", "flip=true"
    )
    assert (len(learner.own), len(learner.prior or [])) == (10, 5)
    torch.manual_seed(0)
    loss, said = learner.loss(learner.build(), learner.batch(0, np.random.default_rng(0)), 0.0)
    assert set(said) == {"own", "prior"}
    assert float(loss.detach()) == pytest.approx(float(said["own"]) + 0.25 * float(said["prior"]), rel=1e-5)


def test_the_prior_has_a_weight_that_grows_and_a_floor_and_dropout_of_its_own(home: Path) -> None:
    more = ['prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2", "prior.weight=0.25", "prior.last=4"]
    learner = task(home, *more)
    model, batch = learner.build(), learner.batch(0, np.random.default_rng(0))

    def losses(learner: AdapterTask, progress: float) -> tuple[float, float, float]:
        torch.manual_seed(0)
        loss, said = learner.loss(model, batch, progress)
        return float(loss.detach()), float(said["own"]), float(said["prior"])

    for progress, weight in ((0.0, 0.25), (0.5, 1.0), (1.0, 4.0)):
        loss, own, prior = losses(learner, progress)
        assert loss == pytest.approx(own + weight * prior, rel=1e-5)
    for change in ("prior.floor=5", "prior.dropout=1"):
        _, mine, other = losses(task(home, *more, change), 0.0)
        assert mine == pytest.approx(own, rel=1e-5)
        assert other != pytest.approx(prior, rel=1e-3), change


def test_the_prior_has_a_batch_of_its_own(home: Path) -> None:
    more = ['prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2", "batch=2"]
    rows = task(home, *more, "prior.batch=6").batch(0, np.random.default_rng(0))
    assert (len(rows["own"]), len(rows["prior"])) == (2, 6)
    assert len(task(home, *more).batch(0, np.random.default_rng(0))["prior"]) == 2
    odd = task(home, *more, "prior.batch=5")
    rows = odd.batch(0, np.random.default_rng(0))
    with pytest.raises(TrainingError, match="2 processes cannot share 5 rows of 'prior' evenly"):
        odd.share(rows, 0, 2)


def test_guided_predictions_of_the_prior(home: Path) -> None:
    more = ['word={name="Zip", like="star"}', 'prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2"]
    with pytest.raises(RecipeError, match='guidance is of predictions: set learn = "predictions"'):
        task(home, *more, "prior.guidance=4")
    learner = task(home, *more, "prior.guidance=4", "prior.learn=predictions", "dropout=0.5")
    model, batch = learner.build(), learner.batch(0, np.random.default_rng(0))
    assert float(learner.loss(model, batch, 0.0)[1]["prior"]) < 1e-9
    moving = optimiser(learner.recipe.optimiser, model, learner.pace)
    for _ in range(3):
        loss, said = learner.loss(model, batch, 0.0)
        (loss - learner.recipe.prior.weight * said["prior"]).backward()
        moving.step()
        moving.zero_grad()
    assert float(learner.loss(model, batch, 0.0)[1]["prior"]) > 1e-6


def test_guided_predictions_drop_nothing(home: Path) -> None:
    guided = ['prior.prompts=["a star"]', "prior.learn=predictions", "prior.guidance=4"]
    with pytest.raises(RecipeError, match="drop no captions: leave dropout out"):
        recipe(home, *guided, "prior.dropout=0.5")
    assert recipe(home, *guided, "prior.dropout=0").prior.dropout == 0
    assert recipe(home, *guided[:2], "prior.dropout=0.5").prior.dropout == 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_led_away_from_is_encoded_anew_by_an_encoder_that_learns(
    home: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    more = ['lora.targets={text_encoder=["*"]}', 'prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2"]
    learner = task(home, *more, "prior.learn=predictions", "prior.guidance=4", f"dropout={dropout}")
    for layer in learner.trained.model["lora"]["text_encoder"].layers.values():
        torch.nn.init.normal_(layer.up)
    with active.use({"lora": 1.0}):
        now = learner.pipe.text_encoder.null(1).tokens
    seen: list[tuple[Tensor, Tensor | None]] = []

    def spied(*given: object, null: Conditioning, teacher: Teacher | None, **more: object) -> Tensor:
        seen.append((null.tokens, None if teacher is None else teacher.null.tokens))
        return objective(*given, null=null, teacher=teacher, **more)

    monkeypatch.setattr("zoo.train.personalise.objective", spied)
    learner.loss(learner.build(), learner.batch(0, np.random.default_rng(0)), 0.0)
    assert not torch.allclose(now, learner.null.tokens)
    for tokens, _ in seen:
        assert torch.allclose(tokens, now, atol=1e-6)
    assert [teacher is None for _, teacher in seen] == [True, False]
    assert torch.equal(seen[1][1], learner.null.tokens), "the teacher is what it was"


@pytest.mark.parametrize("on_null", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_prefix_is_off_where_captions_are_dropped(home: Path, on_null: bool, held: bool) -> None:
    """As it is in the unconditional branch of guidance, unless it is to act there."""
    more = ["method=lora+prefix", f"prefix.on_null={str(on_null).lower()}", "batch=6"]
    if held:
        more += ['prior.prompts=["a star"]', "prior.learn=predictions", "prior.pictures=5", "prior.steps=2"]

    def losses(dropout: float, gate: float) -> tuple[float, bool]:
        learner = task(home, *more, f"dropout={dropout}")
        layers = learner.trained.model["prefix"]["unet"].layers.values()
        for layer in layers:
            torch.nn.init.constant_(layer.gate, gate)
            torch.nn.init.normal_(layer.pairs)
        torch.manual_seed(0)
        loss, said = learner.loss(learner.build(), learner.batch(0, np.random.default_rng(0)), 0.0)
        loss.backward()
        return float(said["prior"] if held else loss.detach()), any(layer.gate.grad.any() for layer in layers)

    (dropped, learns), (without, _) = losses(1.0, 2.0), losses(1.0, 0.0)
    assert learns is on_null
    assert (abs(dropped - without) > 1e-5) is on_null
    (some, learns), (none, _), (every, _) = losses(0.5, 2.0), losses(0.5, 0.0), losses(0.0, 2.0)
    assert learns
    assert abs(some - none) > 1e-5
    assert abs(some - every) > 1e-5


@pytest.mark.parametrize("method", get_args(Method))
def test_a_prior_of_predictions_is_nothing_to_learn_until_something_is_forgotten(home: Path, method: str) -> None:
    (home / "more.txt").write_text("two stars\n\na blue cat \n", "utf-8")
    more = [f"method={method}", 'word={name="Zip", like="star"}', "dropout=0.5", "prior.learn=predictions"]
    more += ['prior.prompts=["a star", ""]', "prior.file=more.txt", "prior.pictures=6", "prior.steps=2"]
    learner = task(home, *more, 'full.parts=["generator","text_encoder"]')
    assert learner.recipe.prior.every == ("a star", "", "two stars", "a blue cat")
    assert learner.prior is not None
    assert {learner.prompts[i] for i in learner.prior.prompts.tolist()} == set(learner.recipe.prior.every)
    model, batch = learner.build(), learner.batch(0, np.random.default_rng(0))

    def prior(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return learner.loss(model, batch, 0.0)[1]["prior"]

    assert max(float(prior(seed)) for seed in range(3)) < 1e-9
    moving = optimiser(learner.recipe.optimiser, model, learner.pace)
    for _ in range(3):  # of what is new alone
        loss, said = learner.loss(model, batch, 0.0)
        (loss - learner.recipe.prior.weight * said["prior"]).backward()
        moving.step()
        moving.zero_grad()
    forgotten = float(prior(0))
    # A word of its own is in no prompt of the class's, and changes what is said of none.
    assert (forgotten < 1e-9) if method == "textual-inversion" else (forgotten > 1e-6)
    assert not [p for f in learner.before.values() for p in (f(*_one(learner)),) if p.requires_grad]


def _one(learner: AdapterTask) -> tuple[Tensor, Tensor, Conditioning]:
    """A latent, a time and what is said, as the only denoiser of a task is told them."""
    (one,) = learner.learners
    assert learner.prior is not None
    x0, said = one.told(learner.prior.kept[one.name][:1], _rows(learner.text, learner.prior.prompts[:1]))
    return x0, torch.tensor([500]), said


@pytest.mark.parametrize("model", ["tiny", "imagen", "dalle2"])
def test_blocks_may_be_computed_again(home: Path, tmp_path: Path, model: str) -> None:
    """Of the networks that adapters act in, which are not what is trained."""
    check_recomputed(home / "recipe.toml", tmp_path, f"model={model}", "prompt=a Zip star", "method=lora+prefix")


@pytest.mark.parametrize("method", ["lora+prefix", "full"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    more = [f"method={method}", "steps=6", 'prior.prompts=["a star"]', "prior.pictures=5", "prior.steps=2"]
    more += [
        'word={name="Zip", lr=0.02}',
        'full.parts=["generator","text_encoder"]',
        "optimiser.lr=0.01",
        "dropout=0.3",
    ]
    run(home / "recipe.toml", [*more, f"out={tmp_path / 'whole' / 'mine'}"], device="cpu")
    batch = AdapterTask.batch

    def stopping(self: AdapterTask, step: int, rng: np.random.Generator) -> object:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step, rng)

    other = [*more, f"out={tmp_path / 'other' / 'mine'}"]
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTask, "batch", stopping)
        stopped = run(home / "recipe.toml", other, device="cpu")
    assert not stopped.finished
    assert 0 < stopped.step < 6
    finished = run(home / "recipe.toml", other, device="cpu", resume=True)
    assert finished.step == 6
    files = sorted(file.relative_to(finished.folder) for file in finished.folder.rglob("*.safetensors"))
    assert files
    for file in files:
        one, two = load_file(finished.folder / file), load_file(tmp_path / "whole" / "mine" / "final" / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), file


def test_text_encoder_and_generator_trained_together_load_together(home: Path) -> None:
    more = ["method=full", 'full.parts=["generator","text_encoder"]', "optimiser.lr=0.01", f"out={home / 'whole'}"]
    summary = run(home / "recipe.toml", more, device="cpu")
    base_model, trained = (
        zoo.load("tiny", device="cpu"),
        zoo.load(summary.folder, device="cpu"),
    )  # checks that parts fit
    assert trained.text_encoder.produces.space != base_model.text_encoder.produces.space
    with pytest.raises(ValueError, match="space"):
        zoo.load("tiny", device="cpu", generator=trained.generator)


def test_two_methods_learn_at_two_rates(home: Path) -> None:
    learner = task(home, "method=lora+prefix", "lora.lr=0.01", "optimiser.lr=0.05")
    groups = optimiser(learner.recipe.optimiser, learner.build(), learner.pace).param_groups
    paces = {id(p): group["pace"] for group in groups for p in group["params"]}
    for name, parameter in learner.build().named_parameters():
        assert paces[id(parameter)] == pytest.approx(0.2 if name.startswith("lora.") else 1.0)


def test_lora_reaches_the_parts_that_are_named(home: Path) -> None:
    learner = task(home, 'lora.targets={text_encoder=["*.q_proj"], unet=[{pattern="*.to_q", rank=3, alpha=6}]}')
    loras = learner.trained.model["lora"]
    assert set(loras) == {"text_encoder", "unet"}
    assert {layer.rank for layer in loras["text_encoder"].layers.values()} == {2}
    assert {(layer.rank, layer.scale) for layer in loras["unet"].layers.values()} == {(3, 2.0)}
    own = task(home, "lora.alpha=8", 'lora.targets={unet=[{pattern="*.to_q", rank=4}, {pattern="*.to_k", alpha=4}]}')
    kinds = {(name[-4:], layer.rank, layer.scale) for name, layer in own.trained.model["lora"]["unet"].layers.items()}
    assert kinds == {("to_q", 4, 2.0), ("to_k", 2, 2.0)}, "what a target leaves open is the table's"
    assert learner.hears
    losses = descend(learner, 4)
    assert losses[-1] < losses[0]
    assert all(layer.up.abs().max() > 0 for layer in loras["unet"].layers.values())
    moved = [layer.up.abs().max() > 0 for layer in loras["text_encoder"].layers.values()]
    assert sum(moved) == 2, "all but the last layer, which the tokens taken one before it do not pass"


def test_imagen_learns_in_its_base_and_in_its_stages(home: Path) -> None:
    imagen = ["model=imagen", 'lora.targets={generator=["*.to_q"], decoder=["*"]}']
    learner = task(home, *imagen)
    assert [one.name for one in learner.learners] == ["generator", "first", "second"]
    sizes = {name: tuple(data.shape[2:]) for name, data in learner.own.kept.items()}
    assert sizes == {"generator": (8, 8), "first": (16, 16), "second": (32, 32)}
    losses = descend(learner, 5)
    assert losses[-1] < losses[0]
    one = task(home, "model=imagen", 'lora.targets={second=["*"]}')
    assert [learner.name for learner in one.learners] == ["second"], "the others would learn nothing"
    alone = task(home, "model=imagen", "method=full", 'full.parts=["decoder"]')
    assert [one.name for one in alone.learners] == ["first", "second"]
    before = weights(alone.pipe)
    alone.recipe.optimiser.__dict__["lr"] = 1e-3
    descend(alone, 2)
    after = weights(alone.pipe)
    assert {n.partition(".")[0] for n in before if not torch.equal(before[n], after[n])} == {"decoder"}


def test_a_stage_is_told_the_smaller_picture(home: Path) -> None:
    pipe = zoo.load("imagen", device="cpu")
    stage_learner = learners(pipe)[1]
    images = torch.rand(2, 3, 32, 32)
    kept = stage_learner.represent(images)
    assert torch.allclose(kept, torch.nn.functional.avg_pool2d(images, 2) * 2 - 1, atol=1e-6)
    x0, said = stage_learner.told(kept, pipe.text_encoder.encode([SAID, "a star"]))
    assert torch.equal(x0, kept)
    assert said.concat is not None
    assert said.augmentation is not None
    assert said.concat.shape == kept.shape
    assert bool((said.augmentation <= 0.1).all())
    assert (
        learners(pipe)[2].told(learners(pipe)[2].represent(images), pipe.text_encoder.encode(["", ""]))[1].tokens
        is None
    )


def test_dalle2_learns_in_its_prior_its_decoder_and_its_upsampler(home: Path) -> None:
    dalle2 = ["model=dalle2", 'lora.targets={prior=["*.to_q"], unclip=["*attentions*.to_q"], upsampler=["*"]}']
    learner = task(home, *dalle2)
    assert [one.name for one in learner.learners] == ["generator", "decoder", "upsampler"]
    sizes = {name: tuple(data.shape[1:]) for name, data in learner.own.kept.items()}
    assert sizes == {"generator": (8,), "decoder": (3 * 16 * 16 + 8,), "upsampler": (3, 32, 32)}
    losses = descend(learner, 6)
    assert losses[-1] < losses[0]
    for name, lora in learner.trained.model["lora"].items():
        assert any(layer.up.abs().max() > 0 for layer in lora.layers.values()), name
    for role, names in (("generator", ["generator"]), ("decoder", ["decoder", "upsampler"])):
        alone = task(home, "model=dalle2", "method=full", f'full.parts=["{role}"]', "optimiser.lr=1e-3")
        assert [one.name for one in alone.learners] == names
        before = weights(alone.pipe)
        descend(alone, 2)
        after = weights(alone.pipe)
        assert {n.partition(".")[0] for n in before if not torch.equal(before[n], after[n])} == {role}
        with torch.no_grad():
            for parameter in alone.trained.model.parameters():
                parameter.add_(1)
            for one in alone.learners:  # what the teacher is told does not move with what learns
                kept, now = alone.silence[one.name].vector, one.null(alone.null).vector
                if one.name == "decoder":
                    assert not torch.equal(kept, now)
                elif kept is not None:
                    assert torch.equal(kept, now)


def test_the_decoder_is_told_what_clip_sees_in_a_picture(home: Path) -> None:
    pipe = zoo.load("dalle2", device="cpu")
    prior, decoder, _ = learners(pipe)
    images, text = torch.rand(2, 3, 32, 32), pipe.text_encoder.encode([SAID, "a star"])
    seen = pipe.image_encoder.encode(images).data
    x0, said = decoder.told(decoder.represent(images), text)
    assert torch.allclose(x0, torch.nn.functional.avg_pool2d(images, 2) * 2 - 1, atol=1e-6)
    assert torch.equal(said.vector, torch.cat([seen, text.pooled], dim=1))
    assert torch.equal(said.tokens, text.tokens)
    assert torch.allclose(prior.denoiser.network.restore(prior.represent(images)), seen, atol=1e-5)
    assert not torch.equal(decoder.null(pipe.text_encoder.null(2)).vector, said.vector)
    pipe.image_encoder = None
    assert [one.name for one in learners(pipe)] == ["decoder", "upsampler"]
    with pytest.raises(ValueError, match="came without the CLIP"):
        learners(pipe)[0].represent(images)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("tiny", ["text_encoder", "unet", "vae"]),
        ("imagen", ["text_encoder", "unet", "first", "second"]),
        ("dalle2", ["text_encoder", "prior", "unclip", "upsampler"]),
    ],
)
def test_every_part_of_every_family_is_adapted_by_its_name(home: Path, model: str, names: list[str]) -> None:
    pipe = zoo.load(model, device="cpu")
    networks = pipe.adaptable()
    assert list(networks) == names
    for name, network in networks.items():
        made = LoRA.build(network.module, ["*"])
        for layer in made.layers.values():
            torch.nn.init.normal_(layer.up)
        write(home / f"{model}-{name}.safetensors", {name: made})
        report = pipe.load_lora(home / f"{model}-{name}.safetensors", name=name)
        assert {match.part for match in report.matched} == {name}
        assert len(report.matched) == len(made.layers)
    plain = pipe(SAID, n=1, steps=2, progress=False).tensor
    for name in names:
        assert not torch.equal(pipe(SAID, n=1, steps=2, progress=False, adapters={name: 1.0}).tensor, plain), name


ATTENTION = {"tiny": {"unet"}, "imagen": {"unet"}, "dalle2": {"prior", "unclip"}}


@pytest.mark.parametrize("model", ATTENTION)
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_an_adapter_is_made_for_every_family_without_targets(home: Path, model: str, method: str) -> None:
    more = [f"model={model}", f"method={method}", f"out={home / f'usual-{model}-{method}'}"]
    learner = task(home, *more)
    parts = learner.trained.model[method]
    networks = {name: network.module for name, network in learner.pipe.adaptable().items()}
    if method == "prefix":
        assert set(parts) == ATTENTION[model] - {"prior"}, "which has no attention that looks at text alone"
        assert all(set(one.layers) == set(reading(networks[name])) for name, one in parts.items())
    else:
        assert set(parts) == ATTENTION[model]
        ends = {name.rpartition(".")[2] for one in parts.values() for name in one.layers}
        assert ends == {"to_q", "to_k", "to_v", "to_out"} | (set() if model == "tiny" else {"text_k", "text_v"})
        for name, network in networks.items():
            told = {where for where, _ in network.named_modules() if where.endswith((".text_k", ".text_v"))}
            assert name not in parts or told <= set(parts[name].layers)
    folder = run(home / "recipe.toml", more, device="cpu").folder
    fresh = zoo.load(model, device="cpu")
    plain = fresh(SAID, n=1, steps=2, progress=False).tensor
    {"lora": fresh.load_lora, "prefix": fresh.load_prefix}[method](folder / f"{method}.safetensors")
    assert not torch.equal(fresh(SAID, n=1, steps=2, progress=False, adapters={method: 1.0}).tensor, plain)


def test_what_has_no_denoiser_is_not_adapted_unless_it_is_named(home: Path) -> None:
    pipe = zoo.load("dalle2", device="cpu")
    assert list(usual(pipe)) == ["prior", "unclip"]
    pipe.image_encoder = None  # without which a prior learns from no picture
    assert list(usual(pipe)) == ["unclip"]


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_what_dalle2_learned_changes_its_pictures(home: Path, method: str) -> None:
    targets = {
        "lora": 'lora.targets={unclip=["*attentions*"], prior=["*.to_q"], upsampler=["*.conv1"]}',
        "prefix": 'prefix.targets={unclip=["*attentions*"]}',
        "full": 'full.parts=["decoder", "text_encoder"]',
    }
    more = ["model=dalle2", f"method={method}", targets[method], f"out={home / ('dalle2-' + method)}"]
    folder = run(home / "recipe.toml", [*more, "optimiser.lr=0.02"], device="cpu").folder
    fresh = zoo.load("dalle2", device="cpu")
    plain = fresh(SAID, n=1, progress=False).tensor
    if method == "full":
        trained = zoo.load(folder, device="cpu")
        assert trained.image_encoder is not None
        assert not torch.equal(trained(SAID, n=1, progress=False).tensor, plain)
        assert trained.text_encoder.produces.space != fresh.text_encoder.produces.space
        return
    {"lora": fresh.load_lora, "prefix": fresh.load_prefix}[method](folder / f"{method}.safetensors")
    parts = {"lora": {"prior", "unclip", "upsampler"}, "prefix": {"unclip"}}
    assert set(fresh.adapters()[method].modules) == parts[method]
    assert torch.equal(fresh(SAID, n=1, progress=False).tensor, plain)
    assert not torch.equal(fresh(SAID, n=1, progress=False, adapters={method: 1.0}).tensor, plain)


def test_averaged_weights_are_shown_and_given_back(home: Path) -> None:
    learner = task(home, "method=lora")
    model = learner.build()
    other = task(home, "method=lora").build()
    for parameter in other.parameters():
        parameter.data.fill_(0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with exchanged(model, other):
        assert all(bool((p == 0.5).all()) for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    shown, figures = learner.inspect(other)
    assert shown is not None
    assert shown.shape[1] == 2 * 32
    assert figures == {}
    plain, _ = learner.inspect(model)
    assert not np.array_equal(shown, plain)


@pytest.mark.parametrize(
    "name", ["p7-lora", "p7-dreambooth", "p7-both", "p7-prefix", "creatures-lora", "maroon", "textual-inversion"]
)
def test_the_recipes_are_whole_and_name_pictures_that_are_there(name: str) -> None:
    root = Path(__file__).parents[2]
    said = validate(AdapterRecipe, read_toml(root / "recipes" / f"{name}.toml"))
    assert said.folder == Path("runs") / name
    assert len(ImageFolder(root / said.pictures)) >= 5
    assert said.prior.on == (name in ("p7-lora", "p7-dreambooth", "p7-both", "p7-prefix", "maroon"))
    assert not validate(AdapterRecipe, read_toml(root / "recipes" / f"{name}.toml", ["prior.weight=0"])).prior.on


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=tinny"], "did you mean"),
        (["pictures=nowhere"], "no folder nowhere"),
        (["pictures=models", "prompt=a star"], "no pictures in models"),
        (
            ["pictures=models"],
            r"no captions, neither in metadata\.jsonl nor in \.txt files .* or give prompt",
        ),
        (["method=lorra"], "method = 'lorra'"),
        (['lora.targets={unett=["*"]}'], "no part 'unett' to adapt: did you mean unet"),
        (['lora.targets={unet=["*.nothing"]}'], "matches none of the"),
        (["lora.targets={}"], "lora.targets is empty"),
        (['lora.targets={generator=["*.to_q"], unet=["*.to_k"]}'], "'generator' and 'unet' are both unet"),
        (["method=full", 'full.parts=["decoder"]'], "VaeDecoder, the decoder of tiny, has no denoiser"),
        ([*WORD, "word.piece=<new7>"], "keeps free for new words"),
        (["method=textual-inversion"], "needs to know the new word"),
        ([*WORD, "word.like=xylophone"], "does not know all of it"),
        (["method=prefix", 'prefix.targets={text_encoder=["*"]}'], "none of the 0 attentions"),
        (["prompt=" + "red " * 20], "shorten"),
        (["optimiser.kind=muon", "lora.lr=0.1"], "Muon has one rate"),
        (["compile=true"], "does not go with adapters"),
        (['beside.things=["a star"]'], "things beside what"),
        (["prior.file=more.text"], "no file more.text of prompts"),
        (['prior.prompts=["a","b","c"]', "prior.pictures=2"], "2 class pictures are too few for 3 prompts"),
    ],
)
def test_recipes_that_cannot_be(home: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "recipe.toml", [*overrides, f"out={home / 'unfit'}"], device="cpu")
    assert not (home / "unfit").exists()


@pytest.mark.parametrize("recipe", ["p7-lora", "p7-dreambooth", "p7-both", "p7-prefix", "maroon"])
def test_class_pictures_show_nothing_that_is_held_out(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    prompts = validate(AdapterRecipe, read_toml(ROOT / "recipes" / f"{recipe}.toml")).prior.every
    kept = [
        (colour, shape) for colour in COLOURS for shape in SHAPES if is_heldout(Description((Item(shape, colour),)))
    ]
    said = [f"{colour} ({shape}|{plural(shape)})" for colour, shape in kept]
    said += [f"{ZH_COLOUR[colour]}的?{ZH_OBJECT[shape][0]}" for colour, shape in kept]
    assert said
    assert not [(prompt, one) for prompt in prompts for one in said if re.search(one, prompt)]


def test_a_run_begins_with_what_another_left(home: Path) -> None:
    both = ["method=lora+prefix", 'word={name="Zip", like="star"}']
    left = run(home / "recipe.toml", [*both, f"out={home / 'first'}"], device="cpu").folder
    more = task(home, *both)
    fresh = {name: tensor.clone() for name, tensor in more.build().state_dict().items()}
    more.start(more.build(), left)
    begun = more.build().state_dict()
    changed = {name.split(".")[0] for name in begun if not torch.equal(begun[name], fresh[name])}
    assert changed == {"lora", "prefix", "textual_inversion"}
    (home / "again").mkdir()
    more.export(more.build(), home / "again")
    for file in ("lora.safetensors", "prefix.safetensors", "word.safetensors"):
        again, first = load_file(home / "again" / file), load_file(left / file)
        assert all(torch.allclose(again[name], first[name], atol=1e-3) for name in first), file
    with pytest.raises(ValueError, match="trained on other weights than those of imagen"):
        task(home, "model=imagen").trained.begin(left)
    with pytest.raises(ValueError, match="say model="):
        task(home, "method=full").trained.begin(left)
