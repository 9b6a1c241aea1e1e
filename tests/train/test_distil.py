"""A tiny U-Net is trained, distilled, and drawn from in a few steps of one network call each."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from tests.train.ends import check_recomputed
from zoo.adapt.files import LORA as LORA_FILE
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Conditioning, Sampling
from zoo.stable_diffusion.parts import UNET, LatentGenerator, VaeDecoder
from zoo.text.clip import ClipTextEncoder
from zoo.train import RecipeError, checkpoint, lcm, run, vae
from zoo.train.distil import load_teacher
from zoo.train.methods import goes_with, weights_of
from zoo.train.phases import PhasesTask
from zoo.train.task import Batch
from zoo.weights import save_model

pytestmark = pytest.mark.usefixtures("same_cache")

LCM = """
part = "lcm"
judged = 0
steps = 6
batch = 2
threads = 1
log_every = 1
guidance_width = 16
skip = 100
[optimiser]
warmup = 0
[data]
scenes = 8
size = 64
workers = 1
"""


LORA = LCM.replace('"lcm"', '"lcm-lora"').replace("guidance_width = 16", "rank = 2")
PHASES = LORA.replace("lcm-lora", "phases-lora").replace("skip = 100", "substeps = 2\nown = 0.5")


@pytest.fixture(scope="module")
def teacher(home: Path) -> Path:
    """A folder that a run of the part "unet" exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.setattr("zoo.train.cache.PROBED", 2)
        (home / "lcm.toml").write_text(LCM, encoding="utf-8")
        (home / "lcm-lora.toml").write_text(LORA, encoding="utf-8")
        (home / "phases-lora.toml").write_text(PHASES, encoding="utf-8")
        frozen = [f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"]
        return run(home / "unet.toml", [f"out={home / 'teacher'}", "judged=0", *frozen], device="cpu").folder


@pytest.fixture
def overrides(home: Path, teacher: Path) -> list[str]:
    return [f"teacher={teacher}", f"vae={home / 'vae' / 'final'}", f"text_encoder={home / 'text'}"]


@pytest.fixture(scope="module")
def model(home: Path, teacher: Path) -> Path:
    """The same teacher as the generator of a model folder."""
    parts = ClipTextEncoder.load(home / "text"), generator(teacher), VaeDecoder(vae.load(home / "vae" / "final"))
    save_model(home / "model", *parts, family="Stable Diffusion", resolution=(64, 64))
    return home / "model"


def generator(folder: Path) -> LatentGenerator:
    return LatentGenerator.load(folder, json.loads((folder / "config.json").read_text("utf-8")))


def test_a_student_is_distilled_and_draws(
    home: Path, teacher: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = run(home / "lcm.toml", [*overrides, f"out={tmp_path / 'out'}"], device="cpu")
    assert (tmp_path / "out" / "samples" / "00000006.png").is_file()
    student, taught = generator(summary.folder), generator(teacher)
    assert student.config.guidance_range == (1.0, 7.0)
    assert student.config.unet.guidance_width == 16
    assert (student.needs, student.produces) == (taught.needs, taught.produces)
    assert (student.config.prediction, student.config.schedule) == (taught.config.prediction, taught.config.schedule)
    weights = load_file(summary.folder / UNET)
    assert weights["guidance.project.weight"].abs().max() > 0  # it began at zero
    assert not torch.equal(weights["stem.weight"], load_file(teacher / UNET)["stem.weight"])

    calls = list[tuple[int, Tensor | None]]()
    forward = type(student.denoiser.network).forward

    def counted(network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append((len(x), conditioning.guidance))
        return forward(network, x, t, conditioning)  # type: ignore[arg-type]

    monkeypatch.setattr(type(student.denoiser.network), "forward", counted)
    text = ClipTextEncoder.load(home / "text")
    features, null = text.encode(["a red star", "a blue star"]), text.null(2)
    settings = Sampling(4, "lcm", "lcm", guidance=4.0)
    made = student.generate(features, null, ImageNoise([0, 1]), settings).data
    assert made.shape == (2, 4, 32, 32)
    assert made.isfinite().all()
    assert [(batch, told.tolist()) for batch, told in calls if told is not None] == [(2, [4.0, 4.0])] * 4


def test_a_student_begins_as_its_teacher(home: Path, teacher: Path, overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, f"out={tmp_path / 'out'}", "steps=1", "optimiser.lr=1e-12"]
    before, after = load_file(teacher / UNET), load_file(run(home / "lcm.toml", settings, device="cpu").folder / UNET)
    assert after.keys() - before.keys() == {"guidance.project.weight"}
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", [lcm.LcmTask, lcm.LcmLoraTask, PhasesTask])
def test_a_resumed_distillation_is_the_uninterrupted_one_bit_for_bit(
    kind: type[lcm.LcmTask | lcm.LcmLoraTask | PhasesTask],
    home: Path,
    model: Path,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target is part of a checkpoint as well: it is the loop's average."""
    plain = kind.batch

    def interrupted(task: lcm.LcmTask, step: int, rng: np.random.Generator) -> Batch:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, step, rng)

    name = {lcm.LcmTask: "lcm", lcm.LcmLoraTask: "lcm-lora", PhasesTask: "phases-lora"}[kind]
    recipe = home / f"{name}.toml"
    if kind is not lcm.LcmTask:
        overrides = [f"teacher={model}", *overrides[1:]]
    whole, halves = [*overrides, f"out={tmp_path / 'whole'}"], [*overrides, f"out={tmp_path / 'halves'}"]
    run(recipe, whole, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "batch", interrupted)
        stopped = run(recipe, halves, device="cpu")
    assert not stopped.finished
    assert 0 < stopped.step < 6
    assert run(recipe, halves, device="cpu", resume=True).finished
    one, two = (load_file(checkpoint.found(tmp_path / name / "checkpoints")[0]) for name in ("whole", "halves"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_blocks_may_be_computed_again(home: Path, model: Path, overrides: list[str], tmp_path: Path) -> None:
    check_recomputed(home / "phases-lora.toml", tmp_path, f"teacher={model}", *overrides[1:])


def test_the_target_of_both_kinds_of_student_decays_alike() -> None:
    settings = {"part": "lcm", "steps": 1, "teacher": "nowhere"}
    assert [kind.model_validate(settings).ema for kind in (lcm.LcmRecipe, lcm.LcmLoraRecipe)] == [0.95, 0.95]
    assert lcm.LcmLoraRecipe.model_validate(settings).guidance == 7.0


def test_the_target_is_the_running_average(home: Path, overrides: list[str], tmp_path: Path) -> None:
    """Without an average, a target is the student of the step before: another run than with one."""
    runs = (
        run(home / "lcm.toml", [*overrides, f"out={tmp_path / str(ema)}", f"ema={ema}"], device="cpu")
        for ema in (0.0, 0.95)
    )
    paths = [checkpoint.found(summary.folder.parent / "checkpoints")[0] for summary in runs]
    one, two = (load_file(path)["model.network.stem.weight"] for path in paths)
    assert not torch.equal(one, two)  # the average is not only what ships: it moved the student


@pytest.mark.parametrize(("part", "sampler", "spacing"), [("lcm", "lcm", "lcm"), ("phases", "ddim", "trailing*2")])
def test_a_lora_is_distilled_and_draws_in_single_calls(
    home: Path, model: Path, overrides: list[str], tmp_path: Path, part: str, sampler: str, spacing: str
) -> None:
    recipe, settings = home / f"{part}-lora.toml", [f"teacher={model}", *overrides[1:], f"out={tmp_path / 'out'}"]
    summary = run(recipe, settings, device="cpu")
    assert (tmp_path / "out" / "samples" / "00000006.png").is_file()
    pipe = zoo.load(model, device="cpu")
    assert goes_with(summary.folder, weights_of(pipe))  # the teacher is as it was

    asked = {"n": 1, "seed": [0, 1], "steps": 4, "sampler": sampler, "spacing": spacing, "progress": False}
    plain = pipe(["a red star", "a blue star"], guidance=1.0, **asked).tensor
    pipe.load_lora(summary.folder, name="few")
    assert pipe.adapters()["few"].modules["unet"] > 10
    calls = list[int]()
    network = pipe.generator.denoiser.network  # type: ignore[attr-defined]
    network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    made = pipe(["a red star", "a blue star"], guidance=1.0, adapters={"few": 1.0}, **asked).tensor
    assert calls == [2] * 4
    assert not torch.equal(made, plain)

    again = run(
        recipe,
        [*settings[:-1], f"out={tmp_path / 'again'}", f"init={summary.folder}", "steps=1", "optimiser.lr=1e-12"],
        device="cpu",
    )
    one, two = (load_file(folder / LORA_FILE) for folder in (summary.folder, again.folder))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("part", "override", "said"),
    [
        ("lcm", "teacher=nowhere", "teacher = nowhere: "),
        ("lcm", 'layers=["nothing"]', "'nothing' matches none"),
        ("lcm", "compile=true", "compile = true does not go with a LoRA"),
        ("lcm", "guidance_width=16", "unknown key guidance_width"),
        ("phases", "solver=ddpm", "solver = 'ddpm'"),
        ("phases", "spacing=sideways", "stops = 4, spacing = 'sideways': unknown spacing"),
        ("phases", "substeps=300", "no room for 300 steps"),
        ("phases", "skip=100", "unknown key skip"),
    ],
)
def test_recipes_of_loras_that_cannot_be(
    home: Path, model: Path, overrides: list[str], tmp_path: Path, part: str, override: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / f"{part}-lora.toml", [f"teacher={model}", *overrides[1:], f"out={tmp_path}", override], device="cpu")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("teacher=nowhere", "no trained U-Net in teacher = nowhere"),
        ("guidance=8", r"guidance = 8 of the sample grid is outside guidance_range \(1.0, 7.0\)"),
        ("guidance_width=15", "guidance_width"),
        ("model.channels=[8]", "unknown key model"),
        ("dropout=0.1", "unknown key dropout"),
        ("skip=30", "skip=30, times 20 apart"),
    ],
)
def test_recipes_that_cannot_be(home: Path, overrides: list[str], tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "lcm.toml", [*overrides, f"out={tmp_path / 'out'}", override], device="cpu")


def test_another_text_space_than_the_teachers_is_refused(
    home: Path, teacher: Path, overrides: list[str], tmp_path: Path
) -> None:
    stranger = tmp_path / "teacher"
    shutil.copytree(teacher, stranger)
    said = json.loads((stranger / "config.json").read_text("utf-8"))
    said["text"]["space"] = "clip-other"
    (stranger / "config.json").write_text(json.dumps(said), "utf-8")
    with pytest.raises(RecipeError, match="text_encoder = .*but the teacher was trained in clip-other"):
        run(home / "lcm.toml", [*overrides, f"out={tmp_path / 'out'}", f"teacher={stranger}"], device="cpu")


def test_a_model_folder_is_a_teacher_and_a_student_is_none(
    home: Path, overrides: list[str], tiny_models: Path, tmp_path: Path
) -> None:
    assert load_teacher(tiny_models / "tiny").config.guidance_range is None
    student = run(home / "lcm.toml", [*overrides, f"out={tmp_path / 'out'}", "steps=1"], device="cpu").folder
    with pytest.raises(RecipeError, match="cannot be distilled"):
        load_teacher(student)
