"""What ships in weights/: it loads, draws what it is asked for, and the cards and the README tell the truth."""

from __future__ import annotations

import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo import config as configs
from zoo import model_card
from zoo.data.scenes import Description, Item
from zoo.evaluate import lessons
from zoo.evaluate.checker import judge
from zoo.evaluate.personalisation import Contestant
from zoo.evaluate.tasks import MEAN_OF
from zoo.pipeline import Pipeline
from zoo.train import overview

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "weights"
MODELS = sorted(path.parent.name for path in SHIPPED.glob("*/config.json") if path.parent.name in zoo.list_models())
STEP = 1 / 255 + 1e-6
LEAST = {  # overall scores in English: of what shipped last, but for what is within its error
    "stable-diffusion-small": {"seen": 0.90, "held_out": 0.80},
    "stable-diffusion-small-lcm": {"seen": 0.75, "held_out": 0.74},
    "imagen-small": {"seen": 0.90, "held_out": 0.76},
    "dalle2-small": {"seen": 0.80, "held_out": 0.65},
}
RIGHT = {"stable-diffusion-small": 14, "stable-diffusion-small-lcm": 11, "imagen-small": 11, "dalle2-small": 9}  # of 16
ADAPTERS = {"stable-diffusion-small": {"creatures", "four-steps", "p7"}, "imagen-small": {"creatures"}}
LEARNED = [  # model, lesson, and the share of 50 pictures that are right in everything
    ("stable-diffusion-small", "p7", 0.5),
    ("stable-diffusion-small", "creatures", 0.3),
    ("imagen-small", "creatures", 0.3),
]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return zoo.load("stable-diffusion-small", device="cpu")


def test_sizes() -> None:
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert max(sizes) <= 15 * 2**20
    assert sum(sizes) <= 45e6


@pytest.mark.parametrize("name", MODELS)
def test_card_is_rendered_from_the_config(name: str) -> None:
    assert (SHIPPED / name / "README.md").read_text("utf-8") == model_card.render(configs.read(SHIPPED / name))
    assert zoo.card(name) == model_card.render(configs.read(SHIPPED / name))


@pytest.mark.parametrize("name", MODELS)
def test_the_overall_score_is_the_mean_of_the_six_tasks(name: str) -> None:
    scores: Any = configs.read(SHIPPED / name).results["evaluation"]
    for split, languages in scores["overall"].items():
        for language, overall in languages.items():
            cells = [scores["tasks"][task].get(split, {}).get(language) for task in MEAN_OF]
            told = [cell for cell in cells if cell is not None]
            assert len(told) == (6 if split == "seen" else 5)
            assert overall == pytest.approx(sum(told) / len(told), abs=1e-3)  # scores are rounded
    cells = 13 * 2  # six tasks and style, seen and held out but for single objects, in two languages
    assert scores["images"] % cells == 0
    assert scores["images"] >= cells * 16


@pytest.mark.parametrize(("name", "overall"), LEAST.items())
def test_what_ships_is_no_worse_than_what_shipped(name: str, overall: dict[str, float]) -> None:
    scores: Any = configs.read(SHIPPED / name).results["evaluation"]
    for split, least in overall.items():
        english, chinese = scores["overall"][split]["en"], scores["overall"][split]["zh"]
        assert english >= least
        assert chinese >= english - 0.07
    if name == "stable-diffusion-small":
        assert chinese >= english - 0.05  # 0.03 is the goal; on held-out combinations it is missed by 0.004
        assert min(share for task in scores["tasks"].values() for share in task["seen"].values()) >= 0.80


@pytest.mark.parametrize("name", ["stable-diffusion-small", "imagen-small", "dalle2-small"])
def test_the_best_of_eight_by_clip_is_better_than_any(name: str) -> None:
    rerank: Any = configs.read(SHIPPED / name).results["rerank"]
    assert (rerank["prompts"], rerank["candidates"]) == (100, 8)
    low, high = rerank["gain_interval"]
    assert rerank["best"] > rerank["one"]
    # The more of a model's pictures are right, the less there is to gain: there, 100 prompts do not tell.
    assert low > 0 or (name == "imagen-small" and high > 0.05)


def test_decoders_lose_little() -> None:
    assert configs.read(SHIPPED / "stable-diffusion-small").results["psnr"] >= 30  # type: ignore[operator]  # dB
    enlarging: Any = configs.read(SHIPPED / "imagen-small").results["enlarging"]
    usual = enlarging["levels"][f"{enlarging['used']:g}"]
    assert usual["ok"] >= 0.97
    assert usual["colour_error"] <= 2  # of 255
    assert max(map(float, enlarging["levels"])) == 0.5
    assert len({level["psnr"] for level in enlarging["levels"].values()}) == len(enlarging["levels"])
    inversion: Any = configs.read(SHIPPED / "dalle2-small").results["inversion"]
    assert inversion["whole"] >= 25  # dB


@pytest.mark.parametrize(("name", "least"), RIGHT.items())
def test_it_draws_what_it_is_asked_for(name: str, least: int) -> None:
    pipe = zoo.load(name, device="cpu")
    asked = {
        "a large red circle on a white background": Description((Item("circle", "red", "large"),), background="white"),
        "a green star, cartoon": Description((Item("star", "green"),), style="cartoon"),
        "粉色的蝴蝶,小精靈,卡通": Description((Item("butterfly", "pink"),), style="cartoon", face=True),
        "一棵绿色的树,白色背景": Description((Item("tree", "green"),), background="white"),
    }
    drawn = pipe(list(asked), n=4, seed=0, progress=False)
    right = [judge(picture, asked[prompt]).ok for prompt, picture in zip(drawn.prompts, drawn.tensor, strict=True)]
    assert sum(right) >= least, right


def test_the_empty_prompt_draws_something(pipe: Pipeline) -> None:
    pictures = pipe("", n=4, progress=False).tensor
    assert pictures.std(dim=(1, 2, 3)).min() > 0.02
    assert (pictures[0] - pictures[1]).abs().max() > 0.2


def test_a_picture_does_not_depend_on_its_batch_order_or_thread(pipe: Pipeline) -> None:
    prompts = [
        "a red star",
        "蓝色的汽车",
        "two pink fish",
        "a cat above a ring",
        "",
        "a tree, sketch",
        "a moon",
        "三朵花",
    ]
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]

    def alone(i: int) -> torch.Tensor:
        return pipe(prompts[i], n=1, seed=seeds[i], progress=False).tensor[0]

    for sampler in ("dpmpp_2m", "euler_ancestral"):
        batch = pipe(prompts, n=1, seed=seeds, sampler=sampler, progress=False).tensor
        backwards = pipe(prompts[::-1], n=1, seed=seeds[::-1], sampler=sampler, progress=False).tensor.flip(0)
        assert (batch - backwards).abs().max() <= STEP
        single = pipe(prompts[2], n=1, seed=seeds[2], sampler=sampler, progress=False).tensor[0]
        assert (batch[2] - single).abs().max() <= STEP
    batch = pipe(prompts, n=1, seed=seeds, progress=False).tensor
    with ThreadPoolExecutor(4) as pool:
        for picture, expected in zip(pool.map(alone, range(len(prompts))), batch, strict=True):
            assert (picture - expected).abs().max() <= STEP


def test_unknown_words_are_announced(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="dragon"):
        pipe("a red dragon", n=1, steps=1, progress=False)


def test_readme_shows_the_scores_of_the_config() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert overview.compared([configs.read(SHIPPED / name) for name in MODELS]) in readme


@pytest.mark.slow
def test_a_wheel_in_an_environment_of_its_own_draws_the_same_picture(pipe: Pipeline, tmp_path: Path) -> None:
    """The wheel brings its weights along: nothing of the checkout is on the new environment's path."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    # Dependencies come from this environment; the package itself must come from the wheel.
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    ours = Path(torch.__file__).parent.parent
    script = (
        f"import sys; sys.path.append({str(ours)!r}); import zoo, torch\n"
        f"assert zoo.__file__.startswith({str(site)!r}), zoo.__file__\n"
        "torch.save(zoo.load('stable-diffusion-small')('a red star', n=1, seed=3, progress=False).tensor, 'picture.pt')"
    )
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([str(python), "-c", script], check=True, cwd=tmp_path)
    theirs = torch.load(tmp_path / "picture.pt", weights_only=True)
    assert (theirs - pipe("a red star", n=1, seed=3, progress=False).tensor).abs().max() <= STEP


@pytest.mark.parametrize("name", MODELS)
def test_adapters_come_along(name: str) -> None:
    adapters = configs.read(SHIPPED / name).adapters
    assert adapters.keys() == ADAPTERS.get(name, set())
    for adapter, said in adapters.items():
        most = 2e6 if adapter == "four-steps" else 1e6  # it draws everything in another way, others one thing more
        assert sum((SHIPPED / name / file).stat().st_size for file in said.files) < most


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lesson", "least"), LEARNED)
def test_adapters_draw_what_they_were_taught(name: str, lesson: str, least: float) -> None:
    pipe = zoo.load(name, device="cpu")
    pipe.load_adapter(lesson)
    plain, taught = (
        lessons.score(Contestant(name, pipe, {"adapters": adapters}), lesson, per_prompt=1, steps=10)
        for adapters in ({}, {lesson: 1.0})
    )
    assert plain <= 0.1
    assert taught >= least


def test_four_steps_are_an_adapter_of_the_usual_model(pipe: Pipeline) -> None:
    said = configs.read(SHIPPED / "stable-diffusion-small").adapters["four-steps"]
    pipe.load_adapter("four-steps")
    try:
        few = pipe(said.prompt, n=2, adapters={"four-steps": 1.0}, progress=False, **said.settings)  # type: ignore[arg-type]
    finally:
        pipe.unload("four-steps")
    folded = zoo.load("stable-diffusion-small-lcm", device="cpu")(said.prompt, n=2, progress=False)
    assert few.settings["steps"] == folded.settings["steps"] == 4
    assert (few.tensor - folded.tensor).abs().mean() < 0.02
