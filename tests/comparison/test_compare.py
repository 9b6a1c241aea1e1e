"""Models side by side, with whole models of random weights."""

from __future__ import annotations

import csv
import gc
import io
import re
import sys
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.gan.conftest import write_gan
from zoo import cli
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA
from zoo.comparison import run, table
from zoo.comparison.result import Comparison, Row
from zoo.diffusion.samplers import SAMPLERS
from zoo.evaluate import fresh, tasks
from zoo.pipeline import Pipeline

PROMPTS = ["a large pink butterfly", "a red circle | two", "粉色的蝴蝶,小精灵,卡通"]
MARKUP = '<b>&amp;"'
QUICK = {"device": "cpu", "repeats": 1, "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def lora(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = torch.Generator().manual_seed(0)
    made = LoRA.build(tiny.adaptable()["unet"].module, ["*"], seed=source)
    for layer in made.layers.values():
        layer.up.data = 0.3 * torch.randn(layer.up.shape, generator=source)
    path = tmp_path_factory.mktemp("loras") / "p7.safetensors"
    write(path, {"unet": made})
    return path


@pytest.fixture(scope="module")
def found(tiny_models: Path) -> Comparison:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZOO_MODELS", str(tiny_models))
        return zoo.compare(["tiny", "tiny@ddim:3", "wide"], PROMPTS, n=2, seed=4, **QUICK)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def pixels(row: Row, number: int) -> bytes:
    return row.pictures[number].tobytes()


def test_every_model_draws_the_same_prompts_with_the_same_seeds(found: Comparison, tiny: Pipeline) -> None:
    own = tiny(PROMPTS, n=2, seed=4, steps=2, progress=False)
    assert [p.tobytes() for p in own.images] == [p.tobytes() for p in found.rows[0].pictures]
    other = tiny(PROMPTS, n=2, seed=4, steps=3, sampler="ddim", progress=False)
    assert [p.tobytes() for p in other.images] == [p.tobytes() for p in found.rows[1].pictures]
    assert found.seeds == (4, 5)
    assert [row.settings["steps"] for row in found.rows] == [2, 3, 2], "a spec's own steps come first"
    assert [row.pictures[0].size for row in found.rows] == [(32, 32), (32, 32), (64, 64)]
    assert [row.evaluations["generator"] for row in found.rows] == [4, 6, 4]


def test_all_models_are_read_as_is_said(shelf: Path) -> None:
    found = zoo.compare(["tiny", "other"], "a star", reading={"dtype": torch.bfloat16}, **QUICK)
    for row in found.rows:
        pipe = zoo.load(row.name, device="cpu", dtype=torch.bfloat16)
        assert pixels(row, 0) == pipe("a star", n=1, steps=2, progress=False).images[0].tobytes()
    with pytest.raises(ValueError, match="^tiny: nothing that is loaded here heeds variant: leave it out"):
        zoo.compare(["tiny"], "a star", reading={"variant": "fp16"}, **QUICK)


def test_a_seed_of_another_library_is_one_seed(shelf: Path) -> None:
    assert zoo.compare(["tiny"], "a star", seed=np.int64(3), **QUICK).seeds == (3,)


@pytest.mark.slow
def test_ten_samplers_of_one_model(shelf: Path) -> None:
    found = zoo.compare([f"tiny@{name}" for name in SAMPLERS], "a red circle", **QUICK)
    assert [row.settings["sampler"] for row in found.rows] == list(SAMPLERS)
    assert len({pixels(row, 0) for row in found.rows}) > 3, "and not one of them every time"


def test_parts_and_adapters_and_folders(shelf: Path, lora: Path) -> None:
    specs = [
        *("tiny", f"tiny+{lora}", f"tiny+{lora}:0", f"tiny+{lora}:0.5+{lora}:0.5"),
        *(
            "tiny[generator=other/generator,decoder=other/decoder,text_encoder=other/text_encoder]",
            str(shelf / "other"),
        ),
    ]
    drawn = [pixels(row, 0) for row in zoo.compare(specs, "a red circle", **QUICK).rows]
    apart = max(abs(a - b) for a, b in zip(drawn[1], drawn[3], strict=True))
    assert apart <= 1, "half and half is the whole, but for rounding"
    assert drawn[0] == drawn[2] != drawn[1], "strength 0 is none"
    assert drawn[4] == drawn[5] != drawn[0], "other in all its parts"


def test_equal_steps(shelf: Path) -> None:
    asked = {name: value for name, value in QUICK.items() if name != "steps"}
    found = zoo.compare(["tiny@ddim:5", "tiny", "other@euler"], "a star", equal="steps", **asked)
    assert [row.settings["steps"] for row in found.rows] == [5, 5, 5]
    assert "All in the steps of tiny@ddim:5." in found.notes


def test_equal_time(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that a step of heun costs twice."""

    def cost(draw: object, repeats: int) -> list[float]:
        seen: list[dict[str, object]] = []
        with monkeypatch.context() as patched:
            patched.setattr(run, "_draw", lambda pipe, prompts, n, seed, how: seen.append(how))
            draw(0)  # type: ignore[operator]
        steps = int(str(seen[0]["steps"]))
        return [0.1 * steps * (2 if seen[0].get("sampler") == "heun" else 1)] * repeats

    monkeypatch.setattr(run, "seconds", cost)
    found = zoo.compare(["tiny@ddim", "tiny@heun"], "a star", equal="time", **{**QUICK, "steps": 12})
    assert [row.settings["steps"] for row in found.rows] == [12, 6]
    assert [row.seconds_per_image for row in found.rows] == pytest.approx([1.2, 1.2])
    assert any("1.2 s of tiny@ddim; at most 0% apart" in note for note in found.notes)


@pytest.mark.parametrize("equal", ["steps", "time"])
def test_a_generator_without_a_sampler_keeps_its_step(
    equal: run.Equal, shelf: Path, tmp_path: Path, vocabulary: bytes
) -> None:
    found = zoo.compare(["tiny", write_gan(tmp_path / "gan", vocabulary)], "a star", equal=equal, **QUICK)  # type: ignore[arg-type]
    assert found.rows[1].settings["steps"] == 1
    assert table.shown(found.rows[1])[:2] == ["–", "1"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions for the windows of these models, which are too short for true ones."""
    monkeypatch.setattr(fresh, "caption", lambda *given, **named: "a large red circle")
    monkeypatch.setattr(tasks, "phrase", lambda *given, **named: "a large red circle")


@pytest.mark.usefixtures("short")
def test_scores_are_the_same_to_the_digit_and_each_models_own(shelf: Path) -> None:
    first, again = (zoo.compare(["tiny", "other"], PROMPTS, scored=8, **QUICK) for _ in range(2))
    assert table.scores_csv(first) == table.scores_csv(again)
    tiny, other, drawn = rows(table.scores_csv(first))
    for score in ("clip_score", "clip_score_scenes", "kd_clip"):
        assert tiny[score] != other[score]
    assert drawn["model"] == table.DRAWN
    assert abs(float(drawn["kd_clip"])) < float(tiny["kd_clip"])
    assert tiny["fd_clip"] == "", "too few for it"


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_alignment_by_task(shelf: Path, tmp_path: Path) -> None:
    found = zoo.compare(["wide", "tiny"], "a star", alignment=1, **QUICK, height=64, width=64, out=tmp_path)
    again = zoo.compare(["wide"], "a star", alignment=1, **QUICK)
    mine = [row for row in rows(table.alignment_csv(found)) if row["model"] == "wide"]
    assert mine == rows(table.alignment_csv(again))
    assert {row["task"] for row in mine} >= {"overall", "cleanly drawn too", "counting", "style"}
    assert all(0 <= float(r["low"]) <= float(r["share"]) <= float(r["high"]) <= 1 for r in mine)
    overall = {(r["split"], r["language"]): r["share"] for r in mine if r["task"] == "overall"}
    assert float(rows(table.scores_csv(found))[0]["aligned_seen_en"]) == float(overall["seen", "en"])
    assert (tmp_path / "alignment.csv").read_text("utf-8") == table.alignment_csv(found)
    assert "Alignment of tiny" in Page((tmp_path / "report.html").read_text("utf-8")).texts


def test_speed_and_memory_have_a_file_of_their_own(found: Comparison) -> None:
    assert "second" not in table.scores_csv(found)
    speeds = rows(table.speed_csv(found))
    assert [row["model"] for row in speeds] == ["tiny", "tiny@ddim:3", "wide"]
    assert all(0 < float(row["fastest"]) <= float(row["seconds_per_image"]) <= float(row["slowest"]) for row in speeds)


def test_models_are_released_before_the_next(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Pipeline]] = []

    def load(*given: object, **named: object) -> Pipeline:
        gc.collect()
        assert not any(ref() for ref in alive), "the one before is still there"
        pipe = zoo.load(*given, **named)  # type: ignore[arg-type]
        alive.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(run, "load", load)
    zoo.compare(["tiny", "tiny@ddim", "wide"], "a star", **QUICK)
    assert len(alive) == 3


def test_prompts_that_clip_cannot_score(shelf: Path) -> None:
    long = " ".join(["a red circle"] * 4)
    with pytest.raises(ValueError, match="tiny: "):
        zoo.compare(["tiny"], " ".join(["red"] * 100), **QUICK)
    (row,) = zoo.compare(["tiny"], [""], **QUICK).rows
    assert row.scores["clip_score"] is None
    (both,) = zoo.compare(["tiny"], ["", long], **QUICK).rows
    (one,) = zoo.compare(["tiny"], [long], **QUICK).rows
    assert both.scores["clip_score"] == pytest.approx(one.scores["clip_score"], abs=1e-3)


@pytest.mark.parametrize(
    ("models", "asked", "message"),
    [
        (["tiny", "tinny"], {}, "tinny: unknown model 'tinny': did you mean"),
        (["tiny", "tiny@ddimm"], {}, "tiny@ddimm: unknown sampler 'ddimm'"),
        (["tiny", "tiny[decoder=nowhere/decoder]"], {}, "unknown model 'nowhere'"),
        (["tiny", "tiny@ddim:3"], {"equal": "steps"}, "leave the steps out of 'tiny@ddim:3'"),
        (["tiny"], {"equal": "memory"}, "equal must be"),
        (["tiny"], {"scored": 4}, "at least 8"),
        (["tiny"], {"inception": "x.pth"}, "say how many with scored="),
        (["tiny"], {"inception": "x.pth", "scored": 8}, "no Inception weights at 'x.pth'"),
        (["tiny"], {"language": "fr"}, "language must be one of en, zh"),
        (["tiny"], {"repeats": 0}, "repeats=0"),
        (["tiny"], {"negative": ["a star"]}, "negative is given for each prompt"),
        (["tiny"], {"noise": torch.zeros(1, 4, 8, 8)}, "noise is that of some pictures"),
        (["tiny"], {"n": 0}, "n must be at least 1"),
        (["tiny+nothing.safetensors"], {}, "tiny.nothing.safetensors: there is no adapter"),
        (["wide[generator=tiny/generator]"], {}, "wide.generator=tiny/generator.: "),
    ],
)
def test_mistakes_are_told(shelf: Path, models: list[str], asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.compare(models, "a star", **{**QUICK, **asked})  # type: ignore[arg-type]


def test_nothing_is_drawn_before_all_is_read(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "load", lambda *given, **named: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="unknown model 'tinny'"):
        zoo.compare(["tiny", "tinny"], "a star", **QUICK)


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_is_one_file_with_every_picture(found: Comparison, tmp_path: Path) -> None:
    paths = {path.name: path for path in found.save(tmp_path)}
    assert set(paths) == {path.name for path in tmp_path.iterdir()}
    assert set(paths) == {"grid.png", "scores.csv", "speed.csv", "table.md", "report.html"}
    text = paths["report.html"].read_text("utf-8")
    page = Page(text)
    assert page.open == []
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 3 * 2
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "prefers-color-scheme: dark" in text
    for said in (*PROMPTS, "tiny@ddim:3", "seconds an image ↓"):
        assert said in page.texts
    with Image.open(paths["grid.png"]) as grid:
        assert grid.width > 3 * 2 * 160


def test_texts_of_others_are_no_markup(shelf: Path, tmp_path: Path) -> None:
    found = zoo.compare(["tiny"], [MARKUP], **QUICK)
    found.save(tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert MARKUP in page.texts
    assert "b" not in {tag for tag, _ in page.tags}


def test_markdown_marks_the_best(found: Comparison) -> None:
    lines = str(found).splitlines()
    heads = [line for line in lines if line.startswith("| model |")]
    assert len(heads) == 2
    counts = {line.count("|") for line in lines if line.startswith("|")}
    assert counts == {head.count("|") for head in heads}
    cost = next(line for line in lines[lines.index(heads[1]) :] if line.startswith("| tiny@ddim:3 |"))
    assert "| 6 |" in cost, "more evaluations are not the best"
    assert sum("| **4** |" in line for line in lines) == 2, "both of the best are marked"


def test_grid_shows_each_picture_in_its_place(found: Comparison) -> None:
    grid = found.grid()
    last = found.rows[2].pictures[-1].resize((192, 192), Image.Resampling.BICUBIC)
    corner = grid.crop((grid.width - 16 - 192, grid.height - 8 - 192, grid.width - 16, grid.height - 8))
    assert corner.tobytes() == last.tobytes()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", "compare", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_command(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a star\n\n粉色的蝴蝶\n", "utf-8")
    asked = ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]
    quick = ["--device", "cpu", "--repeats", "1", "--steps", "2"]
    assert command(monkeypatch, "a red circle", "--models", "tiny", "tiny@ddim:3", "other", *asked, *quick) == 0
    out = capsys.readouterr().out
    assert "| tiny@ddim:3 | ddim | 3 |" in out
    assert out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert [text for text in page.texts if text in ("a red circle", "a star", "粉色的蝴蝶")] == [
        "a red circle",
        "a star",
        "粉色的蝴蝶",
    ]

    def broken(*_: object, err: bool = False, **__: object) -> None:
        if not err:
            raise BrokenPipeError("nobody reads")

    with monkeypatch.context() as patched:
        patched.setattr("typer.echo", broken)
        assert command(patched, "a red circle", "--models", "tiny", "--out", str(tmp_path / "unread"), *quick) == 2
    assert (tmp_path / "unread" / "report.html").is_file(), "what took long to measure is kept, whoever reads it"
    capsys.readouterr()
    for arguments, message in (
        (["a star"], "no models to compare"),
        (["--models", "tiny"], "no prompts to compare by"),
        (["a star", "--models", "tinny"], "did you mean 'tiny'"),
        (["a star", "--models", "tiny", "--equal", "space"], "equal must be"),
    ):
        assert command(monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model_by_two_samplers(tmp_path: Path) -> None:
    model = "stable-diffusion-small"
    prompts = ["a large red circle on a white background", "蓝色的汽车"]
    found = zoo.compare([f"{model}@:8", f"{model}@ddim:8"], prompts, scored=8, repeats=2, out=tmp_path, progress=False)
    first, second = found.rows
    assert first.parameters == second.parameters
    assert min(row.scores["clip_score"] or 0 for row in found.rows) > 25
    assert found.drawn is not None
    assert max(row.scores["kd_clip"] or 0 for row in found.rows) < 2
    assert (found.drawn["clip_score_scenes"] or 0) + 1 > max(row.scores["clip_score_scenes"] or 0 for row in found.rows)
    if first.memory is not None and second.memory is not None:
        assert second.memory < 1.5 * first.memory + 20, "the second starts where the first did"
