"""Published scheduler configs (diffusers' scheduler_config.json) as our schedule, sampler and convention of times.

What a config leaves out is that class's default. Options that belong to other schedulers change nothing, as published
files carry such; options that no scheduler here knows, and values that would draw something else, are errors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar, get_args

from zoo.diffusion.convention import Convention, Kind, Levels, Spread
from zoo.diffusion.denoiser import Target, Variance
from zoo.diffusion.schedule import Schedule

Options: TypeAlias = Mapping[str, object]
SPREADS: tuple[Spread, ...] = get_args(Spread)
NameT = TypeVar("NameT", bound=str)


@dataclass(frozen=True)
class Published:
    """What a scheduler config says, in our terms."""

    schedule: Schedule
    convention: Convention
    sampler: str
    prediction: Target
    variance: Variance
    threshold: float | None
    cap: float | None = None


PREDICTIONS: dict[str, Target] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
COMMON = {**BETAS, "trained_betas": None, "prediction_type": "epsilon", "steps_offset": 0}
CLIPPING = {
    **{"clip_sample": True, "clip_sample_range": 1.0},
    **{"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0},
}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
SOLVER = {
    **COMMON,
    **SIGMAS,
    **{k: v for k, v in CLIPPING.items() if not k.startswith("clip")},
    **{"timestep_spacing": "linspace", "rescale_betas_zero_snr": False, "final_sigmas_type": "zero"},
    **{"solver_order": 2, "lower_order_final": True, "use_flow_sigmas": False, "use_dynamic_shifting": False},
    **{"flow_shift": 1.0, "time_shift_type": "exponential"},
}
LINSPACE = {**COMMON, "timestep_spacing": "linspace"}

# The class's name: its convention, and its options with their defaults.
SCHEDULERS: dict[str, tuple[Kind, dict[str, object]]] = {
    "DDIMScheduler": (
        "strided",
        {
            **COMMON,
            **CLIPPING,
            "timestep_spacing": "leading",
            "set_alpha_to_one": True,
            "rescale_betas_zero_snr": False,
        },
    ),
    "PNDMScheduler": (
        "strided",
        {**COMMON, "timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
    ),
    "DDPMScheduler": (
        "chain",
        {
            **{**COMMON, **CLIPPING, "timestep_spacing": "leading"},
            **{"variance_type": "fixed_small", "rescale_betas_zero_snr": False},
        },
    ),
    "UnCLIPScheduler": (
        "chain",
        {
            **{**COMMON, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
            **{"clip_sample": True, "clip_sample_range": 1.0, "variance_type": "fixed_small_log"},
        },
    ),
    "EulerDiscreteScheduler": (
        "sigma",
        {
            **{**LINSPACE, **SIGMAS, "rescale_betas_zero_snr": False, "final_sigmas_type": "zero"},
            **{"interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "sigma_max": None},
        },
    ),
    "EulerAncestralDiscreteScheduler": ("sigma", {**LINSPACE, "rescale_betas_zero_snr": False}),
    "HeunDiscreteScheduler": (
        "sigma",
        {
            **{**LINSPACE, **SIGMAS, "beta_start": 0.00085, "beta_end": 0.012},
            **{"clip_sample": False, "clip_sample_range": 1.0},
        },
    ),
    "LMSDiscreteScheduler": ("sigma", {**LINSPACE, **SIGMAS}),
    "DPMSolverMultistepScheduler": (
        "solver",
        {
            **{**SOLVER, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False},
            **{"use_lu_lambdas": False, "lambda_min_clipped": -math.inf, "variance_type": None},
        },
    ),
    "UniPCMultistepScheduler": (
        "solver",
        {
            **{**SOLVER, "predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None},
            **{"sigma_min": None, "sigma_max": None, "shift_terminal": None},
        },
    ),
}
KNOWN = frozenset().union(*(options for _, options in SCHEDULERS.values()))

# Per class, options that must have one of these values; others would draw something else than is drawn here.
BUILT_IN: dict[str, dict[str, tuple[object, ...]]] = {
    "PNDMScheduler": {"skip_prk_steps": (True,), "prediction_type": ("epsilon", "v_prediction")},
    "UnCLIPScheduler": {
        **{"beta_schedule": ("squaredcos_cap_v2",), "timestep_spacing": ("linspace",)},
        **{"steps_offset": (0,), "prediction_type": ("epsilon", "sample")},
    },
    "EulerDiscreteScheduler": {
        **{"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
        **{"sigma_min": (None,), "sigma_max": (None,)},
    },
    "DPMSolverMultistepScheduler": {
        **{"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_order": (1, 2), "solver_type": ("midpoint",)},
        **{"use_lu_lambdas": (False,), "use_flow_sigmas": (False,), "use_dynamic_shifting": (False,)},
        **{"final_sigmas_type": ("zero",), "variance_type": (None, "learned", "learned_range")},
    },
    "UniPCMultistepScheduler": {
        **{"predict_x0": (True,), "solver_order": (1, 2, 3), "lower_order_final": (True,), "disable_corrector": ([],)},
        **{"solver_p": (None,), "use_flow_sigmas": (False,), "use_dynamic_shifting": (False,)},
        **{"sigma_min": (None,), "sigma_max": (None,), "shift_terminal": (None,)},
    },
}
SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "UnCLIPScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
}


def read(said: Options, kind: str | None = None) -> Published:
    """What a scheduler config says; `kind` is the class's name where the file is not the one to say it.

    Raises:
        ValueError: a scheduler or an option that is not known, or a value that cannot be followed.
    """
    name = kind or str(said.get("_class_name"))
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; those that can be followed are {', '.join(SCHEDULERS)}")
    convention, defaults = SCHEDULERS[name]
    given = {option: value for option, value in said.items() if not option.startswith("_")}
    if unknown := sorted(given.keys() - KNOWN):
        raise ValueError(f"unknown options of a scheduler: {', '.join(unknown)}; known are {', '.join(sorted(KNOWN))}")
    options = defaults | {option: value for option, value in given.items() if option in defaults}
    for option, values in BUILT_IN.get(name, {}).items():
        if options[option] not in values:
            supported = " or ".join(map(repr, values))
            raise ValueError(f"{option}={options[option]!r} of a {name} cannot be followed: supported is {supported}")
    schedule = Schedule.from_diffusers(options)
    if schedule.zero_snr and convention in ("sigma", "solver"):
        schedule = replace(schedule, floor=2.0**-24)  # these keep sigma / alpha finite
    variance = str(options.get("variance_type") or "fixed_small")
    least = float(str(options.get("lambda_min_clipped", -math.inf)))
    return Published(
        schedule,
        Convention(
            kind=convention,
            spread=_one_of(options, "timestep_spacing", SPREADS),
            offset=_whole(options, "steps_offset"),
            levels=_levels(options),
            to_data=bool(options.get("set_alpha_to_one", True)) and options.get("final_sigmas_type", "zero") == "zero",
            least_lambda=least if math.isfinite(least) else None,
            restart=name == "PNDMScheduler",
        ),
        _sampler(name, options),
        PREDICTIONS[_one_of(options, "prediction_type", PREDICTIONS)],
        _variance(variance),
        *_threshold(options),
    )


def _sampler(name: str, options: Options) -> str:
    if name in SAMPLERS:
        return SAMPLERS[name]
    if name == "PNDMScheduler":
        return "plms_v" if options["prediction_type"] == "v_prediction" else "plms"
    order = options["solver_order"]
    if name == "UniPCMultistepScheduler":
        kind = _one_of(options, "solver_type", ("bh1", "bh2"))
        names = {(1, "bh2"): "unipc_1", (2, "bh2"): "unipc", (2, "bh1"): "unipc_bh1", (3, "bh2"): "unipc_3"}
        if (order, kind) not in names:
            raise ValueError(f"solver_order={order} with solver_type={kind!r} of a {name} cannot be followed")
        return names[(order, kind)]  # type: ignore[index]  # checked in the line before
    if options["algorithm_type"] == "sde-dpmsolver++":
        return "dpmpp_2m_sde" if order == 2 else "ddpm"
    return "dpmpp_2m" if order == 2 else "euler"


def _levels(options: Options) -> Levels:
    asked: list[Levels] = [rule for rule in get_args(Levels)[1:] if options.get(f"use_{rule}_sigmas")]
    if len(asked) > 1:
        raise ValueError(f"a scheduler spreads its levels by one rule, not {' and '.join(asked)}")
    return asked[0] if asked else "spaced"


def _variance(name: str) -> Variance:
    names: dict[str, Variance] = {name: name for name in get_args(Variance)}
    names["fixed_small_log"] = "fixed_small"  # the same, put otherwise
    if name not in names:
        raise ValueError(f"variance_type={name!r} cannot be followed: supported is {', '.join(names)}")
    return names[name]


def _threshold(options: Options) -> tuple[float | None, float | None]:
    """How the clean estimate is kept in bounds: `threshold` and `cap` of `zoo.interface.Sampling`."""
    if options.get("thresholding"):
        quantile, most = (float(str(options[name])) for name in ("dynamic_thresholding_ratio", "sample_max_value"))
        if not 0 < quantile < 1:
            raise ValueError(f"dynamic_thresholding_ratio={quantile} cannot be followed: supported is between 0 and 1")
        return (quantile, most) if most > 1 else (1.0, None)
    if not options.get("clip_sample"):
        return None, None
    if options["clip_sample_range"] != 1:
        raise ValueError(f"clip_sample_range={options['clip_sample_range']!r} cannot be followed: supported is 1")
    return 1.0, None


def _one_of(options: Options, option: str, known: Collection[NameT]) -> NameT:
    for name in known:
        if name == options[option]:
            return name
    raise ValueError(f"{option}={options[option]!r} cannot be followed: supported is {', '.join(known)}")


def _whole(options: Options, option: str) -> int:
    value = options[option]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{option}={value!r} is not a whole number from 0 up")
    return value
