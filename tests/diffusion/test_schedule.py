"""Golden numbers of the published schedules, and the maps between time, lambda and noise levels."""

from __future__ import annotations

import json
import math

import pytest
import torch

from zoo.diffusion.schedule import Schedule

LDM_F8 = Schedule("scaled_linear", start=0.0015, end=0.0195)


# alpha-bar at the end and range of sigma / alpha, as published or computed from the papers' formulas
@pytest.mark.parametrize(
    ("schedule", "low", "high", "power"),
    [
        (Schedule("scaled_linear"), 0.02917, 14.6146, 0.004660),
        (Schedule("linear"), 0.0100, 157.41, 4.036e-5),
        (LDM_F8, 0.0388, 83.82, 1.423e-4),
        (Schedule("cosine"), 0.00643, 2.0e4, 2.4e-9),
        (Schedule("sigmoid"), 0.0122, 158.74, 3.968e-5),
    ],
)
def test_ranges(schedule: Schedule, low: float, high: float, power: float) -> None:
    ratio = torch.exp(-schedule.lambdas)
    rounding = 3e-2 if schedule.name == "cosine" else 5e-3
    assert ratio[0].item() == pytest.approx(low, rel=rounding)
    assert ratio[-1].item() == pytest.approx(high, rel=rounding)
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(power, rel=rounding)


def test_stable_diffusion_signal_power() -> None:
    power = Schedule("scaled_linear").alphas_cumprod
    golden = {0: 0.99915, 250: 0.673793, 500: 0.276333, 750: 0.05617, 999: 0.00466}
    for t, value in golden.items():
        assert power[t].item() == pytest.approx(value, abs=6e-6)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_levels_agree_with_the_table_and_lambda_inverts(name: str, zero_snr: bool) -> None:
    schedule = Schedule(name, zero_snr=zero_snr)
    alpha, sigma = schedule.at(torch.arange(1000))
    torch.testing.assert_close(alpha**2, schedule.alphas_cumprod)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64))
    t = torch.tensor([0.0, 0.25, 1.0, 499.5, 998.75, 999.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.time_at(schedule.lambda_at(t)), t)
    assert (schedule.lambda_at(t).diff() < 0).all()


def test_clean_data_is_time_minus_one() -> None:
    schedule = Schedule()
    assert [level.item() for level in schedule.at(-1)] == [1.0, 0.0]
    assert schedule.lambda_at(-1).item() == math.inf
    assert schedule.time_at(math.inf).item() == -1
    assert schedule.time_at(torch.tensor([100.0, -100.0])).tolist() == [0, 999]  # clamped


def test_zero_terminal_snr_keeps_the_beginning() -> None:
    plain, zero = Schedule("scaled_linear"), Schedule("scaled_linear").zero_terminal_snr()
    alpha, sigma = zero.at(999)
    assert (alpha.item(), sigma.item()) == (0.0, 1.0)
    torch.testing.assert_close(zero.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (zero.alphas_cumprod[1:] < plain.alphas_cumprod[1:]).all()


def test_schedule_is_plain_data() -> None:
    schedule = Schedule("cosine", 500, 0.01).zero_terminal_snr()
    assert Schedule(**json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert len({schedule, Schedule("cosine", 500, 0.01, zero_snr=True)}) == 1


def test_tables_are_real_while_a_model_is_built_without_weights() -> None:
    with torch.device("meta"):
        assert Schedule("sigmoid").at(10)[0].item() > 0


@pytest.mark.parametrize(
    "schedule",
    [Schedule("linear"), Schedule("scaled_linear"), LDM_F8, Schedule("cosine"), Schedule("sigmoid")],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_diffusers_config_there_and_back(schedule: Schedule, zero_snr: bool) -> None:
    from diffusers import DDPMScheduler

    schedule = schedule.zero_terminal_snr() if zero_snr else schedule
    theirs = DDPMScheduler.from_config(schedule.to_diffusers())
    again = Schedule.from_diffusers(theirs.config)
    torch.testing.assert_close(again.alphas_cumprod, schedule.alphas_cumprod)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), schedule.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Schedule("cosin")
    with pytest.raises(ValueError, match="at least 2 steps"):
        Schedule(steps=1)
    with pytest.raises(ValueError, match=r"lie in \(0, 1\)"):
        Schedule(start=0.0)
    with pytest.raises(ValueError, match=r"times lie in \[0, 999\]"):
        Schedule().at(1000)
    with pytest.raises(ValueError, match="times lie in"):
        Schedule().at(-0.5)
    with pytest.raises(ValueError, match="trained_betas"):
        Schedule.from_diffusers({"trained_betas": [0.1]})
    with pytest.raises(ValueError, match="laplace"):
        Schedule.from_diffusers({"beta_schedule": "laplace"})
    with pytest.raises(ValueError, match=r"offset 0\.008"):
        Schedule("cosine", start=0.01).to_diffusers()
