"""README, cards, CSVs and configs say the same, and a changed number in any of them is found."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from zoo import config as configs
from zoo import model_card
from zoo.train.results import disagreements, shipped, write

ROOT = Path(__file__).parent.parent.parent
MODELS = [folder.name for folder, _ in shipped(ROOT)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the texts are rendered from and written to, without the tensors."""
    for path in [*ROOT.glob("weights/*/config.json"), *ROOT.glob("weights/*/README.md"), ROOT / "README.md"]:
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    write(tmp_path)
    return tmp_path


def test_this_checkout_agrees() -> None:
    assert MODELS
    assert disagreements(ROOT) == []


def test_what_was_written_agrees(checkout: Path) -> None:
    assert disagreements(checkout) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_changed_number_is_found_wherever_it_stands(checkout: Path, name: str) -> None:
    share = model_card.scores(configs.read(checkout / "weights" / name)).split("| **overall** | ")[1].split()[0]
    places = {
        "README.md": share,
        f"weights/{name}/README.md": share,
        f"results/{name}.csv": re.search(r"evaluation, overall, seen, en\",([0-9.]+)", csv_of(checkout, name))[1],
    }
    for place, number in places.items():
        path = checkout / place
        true = path.read_text("utf-8")
        at = true.index(number, true.index(f"| [{name}](") if place == "README.md" else 0)
        path.write_text(f"{true[:at]}0.9876{true[at + len(number) :]}", "utf-8")
        assert disagreements(checkout) == [f"{place} is not what the configs hold: run `make results`"]
        path.write_text(true, "utf-8")
    assert disagreements(checkout) == []


def test_a_missing_and_a_stale_file_are_found_and_written_anew(checkout: Path) -> None:
    (checkout / "results" / f"{MODELS[0]}.csv").rename(checkout / "results" / "gone.csv")
    assert len(disagreements(checkout)) == 2
    write(checkout)
    assert disagreements(checkout) == []


@pytest.mark.parametrize("name", MODELS)
def test_csv_holds_every_figure_as_it_is_stored(checkout: Path, name: str) -> None:
    rows = dict(list(csv.reader(csv_of(checkout, name).splitlines()))[1:])
    results = configs.read(ROOT / "weights" / name).results
    evaluated: dict = results["evaluation"]  # type: ignore[assignment, type-arg]
    assert float(rows["evaluation, overall, seen, en"]) == evaluated["overall"]["seen"]["en"]
    low, high = evaluated["intervals"]["tasks"]["counting"]["held_out"]["zh"]
    assert float(rows["evaluation, intervals, tasks, counting, held_out, zh, low"]) == low
    assert float(rows["evaluation, intervals, tasks, counting, held_out, zh, high"]) == high
    assert float(rows["parameters, generator"]) == results["parameters"]["generator"]  # type: ignore[call-overload, index]


@pytest.mark.parametrize("name", MODELS)
def test_cards_are_read_by_model_hubs(name: str) -> None:
    config = configs.read(ROOT / "weights" / name)
    data = ModelCard(model_card.render(config)).data
    assert data.license == config.licence.lower()
    assert data.language == list(config.languages)
    assert (data.pipeline_tag, data.library_name, data.model_name) == ("text-to-image", "zoo", name)
    told = {result.dataset_name: result.metric_value for result in data.eval_results}
    overall: dict = config.results["evaluation"]["overall"]  # type: ignore[assignment, call-overload, index, type-arg]
    assert told == {
        f"scenes, {split.replace('_', ' ')}, {language}": share
        for split, shares in overall.items()
        for language, share in shares.items()
        if share is not None
    }
    assert {result.task_type for result in data.eval_results} == {"text-to-image"}


def test_a_card_without_scores_is_read_too() -> None:
    config = configs.read(ROOT / "weights" / MODELS[0]).model_copy(update={"results": {}, "languages": ()})
    data = ModelCard(model_card.render(config)).data
    assert data.eval_results is None
    assert data.license == config.licence.lower()


def csv_of(root: Path, name: str) -> str:
    return (root / "results" / f"{name}.csv").read_text("utf-8")
