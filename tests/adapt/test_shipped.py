"""Adapters that come with a model: known by their names, and loaded with the word that they were learned with."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo
from tests.conftest import wordpieces, write_model
from zoo import config as configs
from zoo import model_card, registry
from zoo.adapt.formats import locate, write
from zoo.adapt.lora import LoRA, Target
from zoo.adapt.prefix import Prefix
from zoo.adapt.words import Word
from zoo.app.draw import Wish, draw
from zoo.app.models import Models
from zoo.call.unmet import UnmetSettings
from zoo.film import record
from zoo.pipeline import Pipeline
from zoo.train.loop import STORY, begun_with
from zoo.train.methods import BASE, goes_with, weights_of, write_base
from zoo.train.model_recipe import Adapter, ShipRecipe
from zoo.train.recipe import Recipe
from zoo.train.ship import add_adapters

ZIP = "a Zip circle"
QUICK = {"n": 1, "steps": 1, "progress": False}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a training left, of a LoRA and a word, for the model spare."""
    write_model(tmp_path / "models" / "spare", wordpieces(["<new0>", "<new1>"]))
    monkeypatch.setenv("ZOO_MODELS", str(tmp_path / "models"))
    lora = LoRA.build(zoo.load("spare", device="cpu").adaptable()["unet"].module, [Target(pattern="*.to_q", rank=2)])
    for low in lora.layers.values():
        torch.nn.init.normal_(low.up, std=0.3)
    folder = tmp_path / "run" / "final"
    folder.mkdir(parents=True)
    write(folder / "lora.safetensors", {"unet": lora})
    Word("Zip", "<new0>", torch.randn(32)).save(folder / "word.safetensors")
    write_base(weights_of(zoo.load("spare", device="cpu")), {"generator"}, folder)
    story = {"recipe": {"part": "adapter"}, "before": {}, "step": 3, "images": 24, "minutes": 0.5}
    (folder / STORY).write_text(json.dumps(story), "utf-8")
    return folder


def recipe(run: Path) -> ShipRecipe:
    part = {"base": "spare"}
    parts = {"text_encoder": part, "generator": part, "decoder": part}
    added = {"zip": Adapter(run=run, summary="A way to move.", prompt=ZIP)}
    return ShipRecipe.model_validate(
        {"name": "spare", "bits": 8, "family": "any", "summary": "", "resolution": (32, 32), "adapters": added} | parts
    )


def added(run: Path) -> Path:
    folder = registry.find("spare")
    add_adapters(folder, recipe(run))
    return folder


def test_it_is_known_by_its_name(run: Path) -> None:
    plain = zoo.load("spare", device="cpu")(ZIP, **QUICK).tensor
    folder = added(run)
    assert registry.list_adapters("spare") == ["zip"]
    assert registry.list_adapters("nothing") == []
    assert "adapters: zip" in registry.describe("spare")
    pipe = zoo.load("spare", device="cpu")
    report = pipe.load_lora("zip")
    assert report is not None
    worded = pipe(ZIP, **QUICK, adapters={}).tensor
    drawn = pipe(ZIP, **QUICK, adapters={"zip": 1.0}).tensor
    assert not torch.equal(worded, plain), "the word was taught with it"
    assert not torch.equal(drawn, worded)
    by_hand = zoo.load(folder, device="cpu")
    by_hand.load_lora(run / "lora.safetensors", name="mine")
    by_hand.load_word(run / "word.safetensors")
    assert torch.allclose(by_hand(ZIP, **QUICK, adapters={"mine": 1.0}).tensor, drawn, atol=0.02), "but for rounding"
    assert pipe.load_adapter("zip", name="again") == "again"


def test_it_acts_of_itself_where_prompts_say_its_word(run: Path) -> None:
    added(run)
    others = ["a circle", "a Zipper circle"]
    plain = zoo.load("spare", device="cpu")(others, **QUICK).tensor
    pipe = zoo.load("spare", device="cpu")
    pipe.load_lora("zip")
    assert pipe.adapters()["zip"].word == "Zip"
    asked = pipe([ZIP, "a zip circle"], **QUICK, adapters={"zip": 1.0})
    made = pipe([*others, ZIP, "a zip circle"], **QUICK)
    assert made.settings["adapters"] == [{}, {}, {"zip": 1.0}, {"zip": 1.0}]
    torch.testing.assert_close(made.tensor[2:], asked.tensor)
    assert torch.equal(pipe(others, **QUICK).tensor, plain), "what does not say it is as it was, to the bit"
    assert "adapters" not in pipe(others, **QUICK).settings
    pipe.load_lora("zip", name="again")
    assert pipe(ZIP, **QUICK).settings["adapters"] == {"again": 1.0}, "the word calls what came with it last"
    assert pipe.adapters()["zip"].word is None
    pipe.merge("again")
    assert "adapters" not in pipe(ZIP, **QUICK).settings, "what is merged acts already"
    torch.testing.assert_close(pipe(ZIP, **QUICK).tensor, asked.tensor[:1], atol=1e-4, rtol=0)


def test_a_prefix_acts_where_its_word_is_said_too(run: Path) -> None:
    pipe = zoo.load("spare", device="cpu")
    prefix = Prefix.build(pipe.adaptable()["unet"].module, length=2)
    (run / "lora.safetensors").unlink()
    prefix.save(run / "prefix.safetensors", "unet")
    pipe.load_prefix(run, name="mine")
    assert pipe(["a circle", ZIP], **QUICK).settings["adapters"] == [{}, {"mine": 1.0}]


def test_a_name_comes_before_a_folder_that_happens_to_be_called_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(run)
    monkeypatch.chdir(run)
    (run / "zip").mkdir()
    assert zoo.load("spare", device="cpu").load_adapter("zip") == "zip"


def test_a_wrong_name_is_told_those_there_are(run: Path) -> None:
    added(run)
    with pytest.raises(ValueError, match="no adapter 'zap'.*came with spare: zip"):
        zoo.load("spare", device="cpu").load_lora("zap")


def test_a_changed_file_is_not_loaded(run: Path) -> None:
    Word("Zip", "<new0>", torch.zeros(32)).save(added(run) / "adapters" / "zip" / "word.safetensors")
    with pytest.raises(ValueError, match="word.safetensors is damaged"):
        zoo.load("spare", device="cpu").load_lora("zip")


def test_one_word_is_not_learned_twice(run: Path) -> None:
    added(run)
    pipe = zoo.load("spare", device="cpu")
    pipe.load_lora("zip")
    before = pipe(ZIP, **QUICK).tensor
    Word("Zip", "<new0>", torch.zeros(32)).save(run / "word.safetensors")
    with pytest.raises(ValueError, match="'Zip' is known already"):
        pipe.load_lora(run, name="other")
    assert list(pipe.adapters()) == ["zip"], "nothing is half loaded"
    assert torch.equal(pipe(ZIP, **QUICK).tensor, before)
    assert pipe.report_lora("zip").matched


def with_settings(run: Path) -> Pipeline:
    """The model with the adapters zip and few, which is to be called with settings of its own."""
    few = Adapter(run=run, summary="Fewer.", prompt=ZIP, settings={"steps": 2, "sampler": "ddim", "interval": [1, 9.0]})
    one = recipe(run)
    add_adapters(registry.find("spare"), one.model_copy(update={"adapters": {**one.adapters, "few": few}}))
    return zoo.load("spare", device="cpu")


def test_the_settings_that_go_with_it_are_at_hand(run: Path) -> None:
    pipe = with_settings(run)
    pipe.load_lora("zip")
    assert pipe.load_adapter("few", name="quick") == "quick"
    status = pipe.adapters()
    assert status["quick"].settings == {"steps": 2, "sampler": "ddim", "interval": [1, 9.0]}
    assert status["zip"].settings == {}
    settings = status["quick"].settings
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmetSettings)
        made = pipe(ZIP, n=1, progress=False, adapters={"quick": 1.0}, **settings)
        pipe(ZIP, n=1, progress=False, adapters={"quick": 1.0}, **{**settings, "interval": (1.0, 9.0)})
    assert made.settings["steps"] == 2


def test_a_call_with_other_settings_is_warned(run: Path) -> None:
    pipe = with_settings(run)
    pipe.load_lora("few")
    told = r"""'few' is made for steps=2, interval=\[1, 9.0\], but this call has steps=1, interval=None: .*or pass """
    with pytest.warns(UnmetSettings, match=told + r"""\*\*pipe.adapters\(\)\["few"\].settings""") as caught:
        pipe(["a circle", ZIP], **QUICK, sampler="ddim", adapters=[{}, {"few": 0.5}])
    assert caught[0].filename == __file__, "the caller is told"
    with pytest.warns(UnmetSettings):
        pipe(ZIP, **QUICK)  # its word calls it
    pipe.load_lora("zip", name="other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmetSettings)
        for adapters in ({}, {"few": 0.0}, {"other": 1.0}):
            pipe(ZIP, **QUICK, adapters=adapters)
        pipe("a circle", **QUICK)
    with pytest.raises(ValueError, match="'few': a strength is a finite number, got nan"):
        pipe(ZIP, **QUICK, adapters={"few": float("nan")})
    pipe.merge("few")
    with pytest.warns(UnmetSettings):
        pipe("a circle", **QUICK)


def test_training_goes_on_from_what_ships_and_tells_what_that_had_cost(run: Path, tmp_path: Path) -> None:
    folder = added(run)
    said = {"part": "adapter", "steps": 1, "out": tmp_path / "more", "init": folder / "adapters" / "zip"}
    cost = {"step": 3, "images": 24, "minutes": 0.5}
    assert begun_with(Recipe.model_validate(said)) == cost
    assert begun_with(Recipe.model_validate(said | {"init": run})) == cost
    for other in ({"init": None}, {"part": "unet"}, {"init": folder}, {"init": tmp_path / "adapters" / "zip"}):
        assert begun_with(Recipe.model_validate(said | other)) == {}


def test_a_page_draws_as_they_are_made_for_unless_it_is_told_otherwise(run: Path) -> None:
    made_for = with_settings(run)
    made_for.load_lora("few")
    page, told = Models(["spare"], device="cpu"), list[tuple[float, str]]()
    wish = Wish(["spare"], ZIP, adapters={"few": ("few", 1.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmetSettings)
        (drawn,) = draw(page, wish, lambda share, what: told.append((share, what)))
    expected = made_for(ZIP, n=1, progress=False, adapters={"few": 1.0}, **made_for.adapters()["few"].settings)
    assert torch.equal(drawn.result.tensor, expected.tensor)
    assert told[-1] == (1.0, "spare: latent, step 2")
    with pytest.warns(UnmetSettings):
        (drawn,) = draw(page, replace(wish, steps=1, sampler="euler"))
    assert (drawn.result.settings["steps"], drawn.result.settings["sampler"]) == (1, "euler")
    assert drawn.result.settings["interval"] == [1, 9.0]
    (drawn,) = draw(page, replace(wish, adapters={"few": ("few", 0.0)}))
    assert drawn.result.settings["steps"] == made_for.defaults.steps, "it does not act"


def test_a_comparison_and_a_film_go_on_where_settings_are_others(run: Path) -> None:
    pipe = with_settings(run)
    pipe.load_lora("few")
    with pytest.warns(UnmetSettings):
        assert zoo.compare(["spare+few"], ZIP, steps=1, repeats=1, device="cpu", progress=False).rows
    with pytest.warns(UnmetSettings):
        result, _ = record(pipe, ZIP, **QUICK, adapters={"few": 1.0})
    assert len(result.tensor) == 1


def test_the_card_tells_and_can_be_run(run: Path) -> None:
    card = model_card.render(configs.read(added(run)))
    assert "| `zip` | A way to move. | a Zip circle |" in card
    assert 'pipe.load_adapter("zip")\npipe("a Zip circle", adapters={"zip": 1.0})' in card


def test_everything_takes_it(run: Path) -> None:
    added(run)
    found = zoo.compare(["spare+zip:0", "spare+zip:0.5"], ZIP, steps=1, repeats=1, device="cpu", progress=False)
    plain, adapted = (row.pictures[0].tobytes() for row in found.rows)
    assert plain != adapted
    models = Models(["spare"], device="cpu")
    assert models.adapters == {"zip": "zip"}
    with models.load("spare").drawing(models.adapters) as pipe:
        assert list(pipe.adapters()) == ["zip"]


def test_a_decoder_that_only_shows_what_was_made_may_be_another(run: Path) -> None:
    pipe = zoo.load("spare", device="cpu")
    assert json.loads((run / BASE).read_text("utf-8")).keys() == {"text_encoder", "generator"}
    for role, goes in (("decoder", True), ("generator", False)):
        torch.nn.init.normal_(next(p for p in getattr(pipe, role).parameters() if p.ndim > 1))
        assert goes_with(run, weights_of(pipe)) is goes


def test_only_what_was_trained_on_the_model_is_added(run: Path) -> None:
    folder = registry.find("spare")
    said = (run / BASE).read_text("utf-8")
    (run / BASE).write_text(json.dumps(json.loads(said) | {"generator": "others"}), "utf-8")
    with pytest.raises(ValueError, match="trained on other weights than those in"):
        add_adapters(folder, recipe(run))
    (run / BASE).unlink()
    with pytest.raises(ValueError, match="holds no adapter: train it first"):
        add_adapters(folder, recipe(run))
    (run / BASE).write_text(said, "utf-8")
    for file in run.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="no or several adapters"):
        add_adapters(folder, recipe(run))
    assert not (folder / "adapters").exists()


def test_one_is_added_to_others(run: Path) -> None:
    one, folder = recipe(run), registry.find("spare")
    few = Adapter(run=run, summary="Fewer.", prompt=ZIP, settings={"steps": 4, "sampler": "ddim", "guidance": 1.0})
    both = one.model_copy(update={"adapters": {"few": few, **one.adapters}})
    add_adapters(folder, both, ["zip"])
    assert registry.list_adapters("spare") == ["zip"]
    add_adapters(folder, both, ["few"])
    assert list(configs.read(folder).adapters) == ["few", "zip"], "in the order of the recipe"
    card = model_card.render(configs.read(folder))
    assert '    adapters={"few": 1.0},\n    steps=4,\n    sampler="ddim",\n    guidance=1.0,\n).save("outputs")' in card
    add_adapters(folder, one)
    assert list(configs.read(folder).adapters) == ["zip"]
    with pytest.raises(ValueError, match="the recipe has no adapter 'zap', only few, zip"):
        add_adapters(folder, both, ["zap"])


def test_a_folder_of_several_adapters_is_ambiguous(run: Path) -> None:
    assert locate(run).name == "lora.safetensors", "a word beside it is no other choice"
    network = zoo.load("spare", device="cpu").adaptable()["unet"].module
    Prefix.build(network, length=2).save(run / "prefix.safetensors", "unet")
    with pytest.raises(ValueError, match="no or several adapters"):
        locate(run)
    (run / "lora.safetensors").unlink()
    assert locate(run).name == "prefix.safetensors"
    pipe = zoo.load("spare", device="cpu")
    assert pipe.load_adapter(run, name="p") == "p"
    assert "Zip" in pipe.text_encoder.tokenizer.words  # type: ignore[attr-defined]
    shutil.rmtree(run)
