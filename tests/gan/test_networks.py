"""Generator and discriminator as functions: what they make, what they look at, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.conftest import shaken
from tests.gan.conftest import SIDE, SIZES, discriminator, generator_config, generator_network
from zoo.gan.discriminator import Discriminator, DiscriminatorConfig, gradient_penalty
from zoo.gan.generator import FusionBlock, FusionGenerator, FusionGeneratorConfig
from zoo.interface import Conditioning

LENGTH, WIDTH = 5, 32


def fixed(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(batch: int, seed: int = 1) -> Conditioning:
    return Conditioning(tokens=fixed(batch, LENGTH, WIDTH, seed=seed))


@pytest.fixture(scope="module")
def network() -> FusionGenerator:
    return generator_network().requires_grad_(False)


def test_a_generator_makes_pictures_of_its_size(network: FusionGenerator) -> None:
    made = network(fixed(3, 6), text(3))
    assert made.shape == (3, 3, SIDE, SIDE)
    assert made.isfinite().all()
    assert made.std() > 0.01


def test_it_hears_noise_and_text_each(network: FusionGenerator) -> None:
    made = network(fixed(2, 6), text(2))
    assert float((made - network(fixed(2, 6, seed=7), text(2))).abs().mean()) > 0.01
    assert float((made - network(fixed(2, 6), text(2, seed=7))).abs().mean()) > 0.01


@pytest.mark.parametrize("attention", [(False, False), (True, True)])
def test_levels_attend_or_not(attention: tuple[bool, bool]) -> None:
    names = [name for name, _ in FusionGenerator(generator_config(attention=attention)).named_modules()]
    assert sum(name.endswith("attention.to_q") for name in names) == sum(attention)
    made = generator_network(attention=attention)(fixed(2, 6), text(2))
    assert made.shape == (2, 3, SIDE, SIDE)


def test_masked_tokens_are_not_heard(network: FusionGenerator) -> None:
    given, mask = text(2), torch.tensor([[True, True, False, False, False], [True] * 5])
    assert given.tokens is not None
    other = given.tokens.clone()
    other[0, 2:] = 9.0
    made, same = (network(fixed(2, 6), Conditioning(tokens=tokens, mask=mask)) for tokens in (given.tokens, other))
    assert torch.allclose(made, same, atol=1e-6)
    discriminating, pictures = discriminator(), fixed(2, 3, SIDE, SIDE)
    verdicts = [discriminating(pictures, Conditioning(tokens=t, mask=mask)) for t in (given.tokens, other)]
    assert torch.allclose(*verdicts, atol=1e-5)


def test_fusing_before_pixels_are_repeated_is_fusing_after() -> None:
    block = FusionBlock(8, 4, 6, 8, upsample=True)
    shaken(block, 0)
    x, condition = fixed(2, 8, 4, 4), fixed(2, 6, seed=1)
    with torch.no_grad():
        made = block(x, condition)
        block.upsample = False
        late = block(torch.nn.functional.interpolate(x, scale_factor=2.0), condition)
    assert torch.allclose(made, late, atol=1e-5)


def test_what_begins_as_no_change_is_none() -> None:
    torch.manual_seed(0)
    plain = FusionGenerator(generator_config(attention=(False, False)))
    assert torch.equal(plain(fixed(2, 6), text(2)), plain(fixed(2, 6), text(2, seed=7))), "affine maps begin as none"


def test_a_discriminator_hears_pictures_and_text_each() -> None:
    network, pictures = discriminator(), fixed(3, 3, SIDE, SIDE)
    verdicts = network(pictures, text(3))
    assert verdicts.shape == (3,)
    assert not torch.allclose(verdicts, network(fixed(3, 3, SIDE, SIDE, seed=7), text(3)))
    assert not torch.allclose(verdicts, network(pictures, text(3, seed=7)))


@pytest.mark.parametrize("attention", [(False, False), (False, True), (True, True)])
def test_pictures_are_seen_once_for_several_texts(attention: tuple[bool, bool]) -> None:
    network = Discriminator(DiscriminatorConfig.model_validate(SIZES | {"attention": attention}))
    shaken(network, 0, scale=0.05)
    pictures = fixed(2, 3, SIDE, SIDE)
    seen = network.see(pictures)
    for seed in (1, 2):
        assert torch.allclose(network.judge(seen, text(2, seed)), network(pictures, text(2, seed)))


def slopes_of(network: Discriminator, pictures: Tensor, tokens: Tensor) -> Tensor:
    """The length of both gradients together, by differences along them."""
    found = torch.zeros(len(pictures), dtype=torch.float64)
    given = [pictures.clone().requires_grad_(), tokens.clone().requires_grad_()]
    slopes = torch.autograd.grad(network(given[0], Conditioning(tokens=given[1])).sum(), given)
    for which, slope in enumerate(slopes):
        unit = slope / slope.flatten(1).norm(dim=1).view(-1, *[1] * (slope.dim() - 1))
        ends = []
        for sign in (1, -1):
            moved = [pictures, tokens]
            moved[which] = moved[which] + sign * 1e-5 * unit
            ends.append(network(moved[0], Conditioning(tokens=moved[1])))
        found += (ends[0] - ends[1]).detach() / 2e-5
    return found


def test_the_penalty_is_the_papers() -> None:
    """Against differences of verdicts, in double precision; also what a step against its gradient does."""
    network = discriminator().double()
    pictures, tokens = fixed(3, 3, SIDE, SIDE).double(), fixed(3, LENGTH, WIDTH, seed=1).double()
    expected = 3.0 * slopes_of(network, pictures, tokens).pow(4).mean()
    penalty = gradient_penalty(network, pictures, Conditioning(tokens=tokens), weight=3.0, power=4.0)
    assert penalty.item() == pytest.approx(float(expected), rel=1e-3)
    penalty.backward()
    steps = [(p, p.grad) for p in network.parameters() if p.grad is not None]
    length = torch.stack([g.square().sum() for _, g in steps]).sum()
    with torch.no_grad():
        for p, g in steps:
            p -= 1e-3 * penalty / length * g
    after = gradient_penalty(network, pictures, Conditioning(tokens=tokens), weight=3.0, power=4.0)
    assert (after / penalty).item() == pytest.approx(1 - 1e-3, abs=2e-4)


@pytest.mark.parametrize("half", [False, True])
def test_the_penalty_reaches_every_part_that_looks(half: bool) -> None:
    network = discriminator()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        penalty = gradient_penalty(network, fixed(2, 3, SIDE, SIDE), text(2))
    penalty.backward()
    assert penalty.dtype == torch.float32
    for part in ("stem", "levels.1.block.conv1", "levels.1.attention.text_v", "sentence.to_out", "joint", "verdict"):
        gradient = network.get_submodule(part).weight.grad
        assert gradient is not None, part
        assert torch.isfinite(gradient).all(), part
        assert gradient.abs().sum() > 0, part


Config = type[FusionGeneratorConfig] | type[DiscriminatorConfig]


@pytest.mark.parametrize("config", [FusionGeneratorConfig, DiscriminatorConfig])
def test_the_defaults_are_of_pictures_as_the_zoos_scenes(config: Config) -> None:
    assert config().size == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (True,)}, "one entry for each of channels"),
        ({"channels": (), "attention": ()}, "one entry for each of channels"),
        ({"pool_heads": 5}, "do not divide into pool_heads=5"),
        ({"head_width": 3}, "multiples of head_width=3"),
        ({"groups": 3}, "groups=3, not 16"),
        ({"side": 0}, "greater than or equal to 1"),
        ({"depth": 2}, "Extra inputs"),
    ],
)
def test_a_network_that_cannot_be(change: dict[str, object], message: str) -> None:
    for config in (FusionGeneratorConfig, DiscriminatorConfig):
        with pytest.raises(ValidationError, match=message):
            config.model_validate(SIZES | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, d: g(fixed(2, 5), text(2)), r"noise has shape \[2, 5\]; needed is \[batch, 6\]"),
        (lambda g, d: g(fixed(2, 6), text(3)), r"tokens have shape \[3, 5, 32\]; needed is \[2, length, 32\]"),
        (lambda g, d: g(fixed(2, 6), Conditioning()), "tokens have shape None"),
        (lambda g, d: d(fixed(2, 3, 8, 8), text(2)), r"needed is \[batch, 3, 16, 16\]"),
        (lambda g, d: d(fixed(2, 3, SIDE, SIDE), Conditioning(tokens=fixed(2, 5, 31))), r"\[2, length, 32\]"),
        (
            lambda g, d: g(fixed(2, 6), Conditioning(tokens=fixed(2, 5, 32), mask=torch.ones(2, 4))),
            r"the mask has shape \[2, 4\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told(
    network: FusionGenerator, call: Callable[[FusionGenerator, Discriminator], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(network, discriminator())
