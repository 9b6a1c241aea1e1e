"""Published scheduler configs, read here and run by diffusers: the same states, from the same unit noise.

The files are those that diffusers' own `save_pretrained` writes. Stochastic schedulers are handed the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from torch import Tensor

from zoo.diffusion import convention, published
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import GivenNoise
from zoo.diffusion.sample import sample
from zoo.diffusion.samplers import SAMPLERS, ddpm, dpmpp_2m_sde, euler_ancestral, lcm
from zoo.diffusion.schedule import Schedule
from zoo.interface import Conditioning, Init, Sampling

if TYPE_CHECKING:
    from tests.diffusion.conftest import Mixture

SHAPE = (2, 3, 4, 4)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLMS = {"skip_prk_steps": True, "steps_offset": 1}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
OFF = {"clip_sample": False}

CASES: list[tuple[str, dict[str, object]]] = [
    ("DDIMScheduler", {**OFF, "steps_offset": 1, "set_alpha_to_one": False}),
    ("DDIMScheduler", {**OFF, **V}),
    ("DDIMScheduler", {**OFF, **V, **ZERO}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"thresholding": True, "clip_sample": False}),
    ("DDPMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.05}),
    ("DDPMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 50.0}),
    ("DDIMScheduler", {**OFF, "timestep_spacing": "linspace", "prediction_type": "sample"}),
    ("PNDMScheduler", PLMS),
    ("PNDMScheduler", {**PLMS, "set_alpha_to_one": True}),
    ("PNDMScheduler", {**PLMS, **V}),
    ("PNDMScheduler", {**PLMS, "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {**OFF, "steps_offset": 1}),
    ("DDPMScheduler", {**OFF, **V, "timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {**V, **ZERO}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, **V}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", V),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("LMSDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {**V, "timestep_spacing": "leading", "steps_offset": 1}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {**V, "timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {**V, **ZERO}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -1.5}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "timestep_spacing": "leading", "steps_offset": 1}),
    ("UniPCMultistepScheduler", {"solver_order": 1}),
    ("UniPCMultistepScheduler", {**V, "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {**V, **ZERO}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
]


def names(*, without: str = "") -> Iterator[Any]:
    for kind, config in CASES:
        if kind == without:
            continue
        yield pytest.param(kind, config, id=f"{kind.removesuffix('Scheduler')}-{'-'.join(map(str, config.values()))}")


def read(scheduler: Any, folder: Path) -> published.Published:
    scheduler.save_pretrained(folder)
    return published.read(json.loads((folder / "scheduler_config.json").read_text("utf-8")))


def noises() -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=source) for _ in range(40)]


def ours(said: published.Published, denoiser: Denoiser, steps: int, init: Init | None = None) -> Tensor:
    initial, *later = noises()
    given = {("sample", -1): initial, **{("sample", i): noise for i, noise in enumerate(later)}}
    sampling = Sampling(steps=steps, sampler=said.sampler, threshold=said.threshold, cap=said.cap)
    grid = said.convention.grid(said.schedule, steps)
    return sample(denoiser, Conditioning(), None, GivenNoise(given), sampling, SHAPE, init=init, grid=grid)


def theirs(
    scheduler: Any, denoiser: Denoiser, steps: int, monkeypatch: pytest.MonkeyPatch, init: Init | None = None
) -> Tensor:
    """As diffusers' pipelines sample, txt2img or img2img."""
    initial, *later = noises()
    turn = count()
    module = type(scheduler).__module__
    if hasattr(__import__(module, fromlist=["x"]), "randn_tensor"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: later[next(turn)])
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    if init is None:
        x = initial * scheduler.init_noise_sigma
    else:
        begin = (steps - int(steps * init.strength)) * scheduler.order
        times = times[begin:]
        scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
        x = scheduler.add_noise(init.data, initial, times[:1].repeat(len(initial)))
    for t in times:
        raw, _ = denoiser(scheduler.scale_model_input(x, t), float(t), Conditioning())
        x = scheduler.step(raw, t, x).prev_sample
    return x


def denoiser_of(mixture: Mixture, said: published.Published) -> Denoiser:
    denoiser = type(mixture)(said.schedule).denoiser(said.prediction)
    denoiser.times = said.convention.times
    return denoiser


@pytest.mark.parametrize(("kind", "config"), names())
@pytest.mark.parametrize("steps", [10, 7])
def test_a_published_scheduler_draws_the_same(
    kind: str, config: dict[str, object], steps: int, mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = getattr(diffusers, kind)(**SD, **config)
    said = read(scheduler, tmp_path)
    denoiser = denoiser_of(mixture, said)
    expected = theirs(scheduler, denoiser, steps, monkeypatch)
    found = ours(said, denoiser, steps)
    assert found.std() > 0.1
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 2e-3


# Begun midway, diffusers' LMS weighs slopes of steps that it never made; here it begins with those it has.
@pytest.mark.parametrize(("kind", "config"), names(without="LMSDiscreteScheduler"))
@pytest.mark.parametrize("strength", [0.75, 0.3])
def test_begun_midway_it_draws_the_same(
    kind: str,
    config: dict[str, object],
    strength: float,
    mixture: Mixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = getattr(diffusers, kind)(**SD, **config)
    said = read(scheduler, tmp_path)
    denoiser = denoiser_of(mixture, said)
    init = Init(torch.sin(torch.arange(96.0)).reshape(SHAPE), strength)
    expected = theirs(scheduler, denoiser, 10, monkeypatch, init)
    found = ours(said, denoiser, 10, init)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 2e-3


def test_options_of_other_schedulers_change_nothing() -> None:
    """As in the published Stable Diffusion 2.1."""
    said: dict[str, object] = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", **SD, "steps_offset": 1}
    assert published.read({**said, "skip_prk_steps": True, "trained_betas": None}) == published.read(said)


def test_samplers_that_add_noise_leave_none_in_the_picture() -> None:
    """Stable Diffusion 1 ends its own PLMS at the least noise, which another sampler's last step would add."""
    read = published.read({"_class_name": "PNDMScheduler", **SD, **PLMS, "set_alpha_to_one": False})
    for sampler in SAMPLERS:
        grid = convention.grid_of(read.convention, read.schedule, Sampling(5, sampler, convention.SPACING))
        assert grid is not None
        assert (float(grid.sigma[-1]) == 0) == (sampler in convention.NOISY), sampler
    drawn = {sampler for sampler in SAMPLERS if SAMPLERS[sampler] in (ddpm, euler_ancestral, dpmpp_2m_sde, lcm)}
    assert drawn == set(convention.NOISY)


def test_the_pipeline_may_name_another_class_than_the_file() -> None:
    said: dict[str, object] = {"_class_name": "DDIMScheduler", **SD, **PLMS}
    assert published.read(said, "PNDMScheduler").sampler == "plms"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "unknown scheduler 'KarrasVeScheduler'.*DDIMScheduler"),
        ({"_class_name": "DDIMScheduler", "an_option_of_tomorrow": 1}, "unknown options.*an_option_of_tomorrow"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps=False of a PNDMScheduler.*supported is True"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "odd"}, "timestep_spacing='odd'.*leading"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "prediction_type='flow'.*epsilon"),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": 2.0}, "clip_sample_range=2.0"),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "dynamic_thresholding_ratio": 1.5},
            "dynamic_thresholding_ratio=1.5",
        ),
        ({"_class_name": "UnCLIPScheduler", "timestep_spacing": "leading"}, "timestep_spacing='leading'"),
        ({"_class_name": "DDIMScheduler", "steps_offset": -1}, "steps_offset=-1"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "odd"}, "unknown beta_schedule 'odd'"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DDPMScheduler", "variance_type": "odd"}, "variance_type='odd'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "solver_order": 3}, "solver_type='bh1'"),
        (
            {"_class_name": "LMSDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "one rule, not karras and beta",
        ),
    ],
)
def test_what_cannot_be_followed_is_named(said: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        published.read(said)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="step"):
        convention.Convention("strided").grid(Schedule(), steps)
