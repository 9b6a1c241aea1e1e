"""Every sampler that diffusers also has walks diffusers' trajectory on the same model outputs, and the same noise.

Conventions of diffusers that a grid here does not have by name are followed by giving the times (`Grid.at`):
- its multistep DPM-Solver and UniPC place leading and linspace over steps + 1 times and leave the last out;
- its Euler and Heun do not round linspace times (compared where they are whole, or by giving the times).
Three are not followed, and compared where they make no difference:
- DDIM and PNDM step to t - T // steps even where linspace does not put the next time there;
- PNDM averages the network's raw outputs, which for v mixes different directions; `plms` always averages slopes of
  epsilon, and `plms_v` is what PNDM does with v;
- UniPC bh1 divides infinity by infinity on the step to zero noise; here that step is first order, as in bh2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from torch import Tensor

from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.samplers import find_sampler
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid, make_grid
from zoo.interface import Conditioning, Prediction

if TYPE_CHECKING:
    from tests.diffusion.conftest import Mixture

SHAPE = (3, 2, 4, 4)
SIGMA_FRAME = (
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.LMSDiscreteScheduler,
)
"""Schedulers whose state is x / alpha."""


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def our_walk(denoiser: Denoiser, sampler: str, grid: Grid, eta: float) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)

    def predict(x: Tensor, t: float, s: float | None = None) -> Prediction:
        return denoiser.predict(x, t, Conditioning(), s)

    steps = find_sampler(sampler, eta)(predict, start(), grid, lambda i: torch.randn(SHAPE, generator=random))
    return [step.x for step in steps]


def their_walk(denoiser: Denoiser, scheduler: Any, grid: Grid, eta: float) -> list[Tensor]:
    """The states diffusers reaches, in our frame, with the network asked at the grid's times."""
    random = torch.Generator().manual_seed(1)
    frame = isinstance(scheduler, SIGMA_FRAME)
    accepted = scheduler.step.__code__.co_varnames
    extra = {"generator": random} if "generator" in accepted else {}
    extra |= {"eta": eta} if "eta" in accepted else {}
    x = start() / grid.alpha[0].float() if frame else start()
    states = []
    for k, t in enumerate(scheduler.timesteps):
        time = grid.t[k].item() if len(scheduler.timesteps) == grid.steps else t.item()
        assert abs(time - t.item()) < 0.51  # diffusers rounds the times of Karras levels, we do not
        raw, values = denoiser(scheduler.scale_model_input(x, t), time, Conditioning())
        output = raw if values is None else torch.cat([raw, values], 1)
        x = scheduler.step(output, t, x, **extra).prev_sample
        states.append(x)
    if isinstance(scheduler, diffusers.PNDMScheduler):
        states = states[1:]  # the first step is made twice
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):
        states = [*states[1:-1:2], states[-1]]  # predictor and corrector are two steps to diffusers
    return [x * alpha.float() for x, alpha in zip(states, grid.alpha[1:], strict=True)] if frame else states


def check_same(denoiser: Denoiser, sampler: str, scheduler: Any, grid: Grid, eta: float = 0.0) -> None:
    ours, theirs = our_walk(denoiser, sampler, grid, eta), their_walk(denoiser, scheduler, grid, eta)
    assert len(ours) == len(theirs) == grid.steps
    for x, reference in zip(ours, theirs, strict=True):
        assert ((x - reference).abs().max() / reference.abs().max()).item() < 1e-4


def scheduler_for(kind: Any, denoiser: Denoiser, steps: int, **config: Any) -> Any:
    names = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
    off = dict.fromkeys(("clip_sample", "thresholding"), False)
    scheduler = kind.from_config(
        {**off, **denoiser.schedule.to_diffusers(), "prediction_type": names[denoiser.prediction], **config}
    )
    # Its float32 table is off by 1e-4 where alpha is near 0 or 1; the algorithms are compared on one table.
    scheduler.alphas_cumprod = denoiser.schedule.alphas_cumprod
    scheduler.set_timesteps(steps)
    return scheduler


# our name, their scheduler and the settings that make it the same algorithm, eta
SAMPLERS: dict[str, tuple[str, Any, dict[str, Any], float]] = {
    "ddpm": ("ddpm", diffusers.DDPMScheduler, {}, 0.0),
    "ddim": ("ddim", diffusers.DDIMScheduler, {}, 0.0),
    "ddim eta .7": ("ddim", diffusers.DDIMScheduler, {}, 0.7),
    "euler": ("euler", diffusers.EulerDiscreteScheduler, {}, 0.0),
    "euler_ancestral": ("euler_ancestral", diffusers.EulerAncestralDiscreteScheduler, {}, 0.0),
    "heun": ("heun", diffusers.HeunDiscreteScheduler, {}, 0.0),
    "dpmpp_2m": ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}, 0.0),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    "unipc": ("unipc", diffusers.UniPCMultistepScheduler, {}, 0.0),
    "unipc_bh1": ("unipc_bh1", diffusers.UniPCMultistepScheduler, {"solver_type": "bh1"}, 0.0),
    "unipc_1": ("unipc_1", diffusers.UniPCMultistepScheduler, {"solver_order": 1}, 0.0),
    "unipc_3": ("unipc_3", diffusers.UniPCMultistepScheduler, {"solver_order": 3}, 0.0),
    "plms": ("plms", diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}, 0.0),
    "plms_v": ("plms_v", diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}, 0.0),
    "lms": ("lms", diffusers.LMSDiscreteScheduler, {}, 0.0),
}
MULTISTEP = (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler)
STRIDED = (diffusers.DDIMScheduler, diffusers.PNDMScheduler)
SPACINGS = ("leading+1", "trailing", "linspace")


def cases() -> Iterator[tuple[str, str, Target, str]]:
    for schedule, prediction, spacing in product(("scaled_linear", "linear", "cosine"), ("epsilon", "v"), SPACINGS):
        for sampler in SAMPLERS:
            if sampler == {"v": "plms", "epsilon": "plms_v"}[prediction]:
                continue
            # Cosine begins at sigma / alpha = 20,000: in that frame float32 holds no four digits of the data.
            if (
                schedule == "cosine"
                and spacing != "leading+1"
                and sampler in ("euler", "euler_ancestral", "heun", "lms", "plms", "plms_v")
            ):
                continue
            yield sampler, schedule, prediction, spacing


@pytest.mark.parametrize(("case", "name", "prediction", "spacing"), cases())
def test_same_trajectory(
    mixture_of: Callable[[Schedule], Mixture], case: str, name: str, prediction: Target, spacing: str
) -> None:
    steps, (sampler, kind, config, eta) = 10, SAMPLERS[case]
    # DDIM and PNDM meet linspace where there are as many times as steps.
    schedule = Schedule(name, steps if spacing == "linspace" and kind in STRIDED else 1000)
    denoiser = mixture_of(schedule).denoiser(prediction)
    placed, _, offset = spacing.partition("+")
    end = "sigma_min" if case == "unipc_bh1" else "zero"
    if kind in MULTISTEP:
        config = {**config, "final_sigmas_type": end}
    scheduler = scheduler_for(kind, denoiser, steps, timestep_spacing=placed, steps_offset=int(offset or 0), **config)
    if kind in MULTISTEP and placed != "trailing":
        grid = Grid.at(schedule, [*scheduler.timesteps.tolist(), 0 if end == "sigma_min" else -1])
    else:
        grid = make_grid(schedule, steps, spacing, end)
    check_same(denoiser, sampler, scheduler, grid, eta)


@pytest.mark.parametrize("case", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "unipc_3"])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_same_trajectory_on_karras_levels(mixture: Mixture, case: str, prediction: Target) -> None:
    sampler, kind, config, _ = SAMPLERS[case]
    denoiser = mixture.denoiser(prediction)
    scheduler = scheduler_for(kind, denoiser, 12, timestep_spacing="linspace", use_karras_sigmas=True, **config)
    check_same(denoiser, sampler, scheduler, make_grid(denoiser.schedule, 12, "karras"))


@pytest.mark.parametrize("case", ["ddim", "ddpm", "dpmpp_2m", "unipc", "plms"])
def test_many_steps_stay_together(mixture: Mixture, case: str) -> None:
    sampler, kind, config, _ = SAMPLERS[case]
    denoiser = mixture.denoiser("epsilon")
    scheduler = scheduler_for(kind, denoiser, 50, timestep_spacing="trailing", **config)
    check_same(denoiser, sampler, scheduler, make_grid(denoiser.schedule, 50, "trailing"))


@pytest.mark.parametrize("case", ["ddim", "plms"])
def test_stable_diffusion_ends_at_the_least_noise(mixture: Mixture, case: str) -> None:
    """The published Stable Diffusion 1 settings: leading, offset 1, `set_alpha_to_one` false."""
    sampler, kind, config, _ = SAMPLERS[case]
    denoiser = mixture.denoiser("epsilon")
    scheduler = scheduler_for(
        kind, denoiser, 20, timestep_spacing="leading", steps_offset=1, **{**config, "set_alpha_to_one": False}
    )
    check_same(denoiser, sampler, scheduler, make_grid(denoiser.schedule, 20, "leading+1", "sigma_min"))


def test_zero_terminal_snr_begins_at_pure_noise(mixture_of: Callable[[Schedule], Mixture]) -> None:
    denoiser = mixture_of(Schedule().zero_terminal_snr()).denoiser("v")
    scheduler = scheduler_for(diffusers.DDIMScheduler, denoiser, 10, timestep_spacing="trailing")
    check_same(denoiser, "ddim", scheduler, make_grid(denoiser.schedule, 10, "trailing"))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm_variances(mixture: Mixture, variance: Variance, spacing: str) -> None:
    class WithVariance(torch.nn.Module):
        exact = mixture.denoiser("epsilon").network

        def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            return torch.cat([self.exact(x, t, conditioning), torch.sin(3 * x)], 1)

    learned = variance == "learned_range"
    network = WithVariance() if learned else mixture.denoiser("epsilon").network
    denoiser = Denoiser(network, mixture.schedule, "epsilon", variance)
    scheduler = scheduler_for(diffusers.DDPMScheduler, denoiser, 10, timestep_spacing=spacing, variance_type=variance)
    ours = our_walk(denoiser, "ddpm", make_grid(mixture.schedule, 10, spacing), 0.0)
    theirs = their_walk(denoiser, scheduler, make_grid(mixture.schedule, 10, spacing), 0.0)
    if spacing == "trailing":
        # diffusers adds noise on the step to clean data, unless it is made at time 0; here that step has none.
        ours, theirs = ours[:-1], theirs[:-1]
    for x, reference in zip(ours, theirs, strict=True):
        assert ((x - reference).abs().max() / reference.abs().max()).item() < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm(mixture: Mixture, prediction: Target, steps: int) -> None:
    denoiser = mixture.denoiser(prediction)
    scheduler = scheduler_for(diffusers.LCMScheduler, denoiser, steps, original_inference_steps=50)
    grid = make_grid(mixture.schedule, steps, "lcm")
    assert grid.t[:-1].tolist() == scheduler.timesteps.tolist()
    check_same(denoiser, "lcm", scheduler, grid)


@pytest.mark.parametrize("spacing", ["leading", "leading+1", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20, 50, 333, 1000])
def test_same_times(spacing: str, steps: int) -> None:
    if (steps, spacing) in ((1, "linspace"), (1000, "leading+1")):
        steps = 2  # theirs begin a single step at time 0 (a clean image), and run past the schedule's end
    name, _, offset = spacing.partition("+")
    theirs = diffusers.DDIMScheduler(timestep_spacing=name, steps_offset=int(offset or 0))
    theirs.set_timesteps(steps)
    assert make_grid(Schedule(), steps, spacing).t[:-1].tolist() == theirs.timesteps.tolist()
