"""Which adapter acts on which image: per call, per image, per thread."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from zoo.adapt.active import use
from zoo.adapt.lora import LoRA, inject
from zoo.stable_diffusion.tiling import in_slices


@pytest.fixture
def adapted() -> nn.Module:
    """A convolution and a linear layer with the adapters a, b and c."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(2), nn.Linear(16, 4)).requires_grad_(False)
    for seed, name in enumerate("abc"):
        lora = LoRA.build(module, ["*"], seed=seed)
        for layer in lora.layers.values():
            nn.init.normal_(layer.up)
        inject(module, lora.requires_grad_(False), name)
    return module


@pytest.fixture
def alone(adapted: nn.Module) -> Callable[..., Tensor]:
    def call(x: Tensor, **strengths: float) -> Tensor:
        with use(strengths):
            return adapted(x)

    return call


def batch(n: int) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(n))


def test_every_image_has_its_own(adapted: nn.Module, alone: Callable[..., Tensor]) -> None:
    x, plain = batch(4), adapted(batch(4))
    each: list[dict[str, float]] = [{"a": 1.0}, {"b": -0.5}, {}, {"a": 0.3, "c": 2.0}]
    strengths = {name: torch.tensor([choice.get(name, 0.0) for choice in each]) for name in "abc"}
    with use(strengths):
        together = adapted(x)
        guided = adapted(torch.cat([x, x.flip(0)]))
    for i, choice in enumerate(each):
        assert torch.allclose(together[i], alone(x[i : i + 1], **choice)[0], atol=1e-5)
        # classifier-free guidance: all images once more behind the first, with what they are led away from
        assert torch.allclose(guided[4 + i], alone(x[3 - i : 4 - i], **choice)[0], atol=1e-5)
    assert torch.equal(together[2], plain[2])
    assert (together - plain)[[0, 1, 3]].abs().amin((1, 2)).min() > 1e-4
    assert torch.equal(adapted(x), plain), "nothing is left behind"


def test_images_that_are_given_some_at_a_time(adapted: nn.Module) -> None:
    x, strengths = batch(5), {"a": torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3]), "b": 0.5}
    with use(strengths, 5):
        together = adapted(x)
        apart = in_slices(adapted, x, 2 * 16)
        assert torch.equal(adapted(x), together)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


def test_off_is_the_base_to_the_bit(adapted: nn.Module) -> None:
    plain = adapted(batch(3))
    for off in ({}, {"a": 0.0}, {"a": torch.zeros(3)}, {"unknown": 1.0}):
        with use(off):
            assert torch.equal(adapted(batch(3)), plain)


def test_strengths_of_zero_leave_a_gradient(adapted: nn.Module) -> None:
    """As where all captions of a batch are dropped: a step of training is still one, in every process."""
    lora = LoRA.build(adapted, ["*"])
    inject(adapted, lora, "mine")
    with use({"mine": torch.zeros(3)}):
        adapted(batch(3)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in lora.parameters())


def test_the_inner_block_holds(adapted: nn.Module, alone: Callable[..., Tensor]) -> None:
    x = batch(2)
    with use({"a": 1.0}):
        with use({"b": 1.0}):
            assert torch.equal(adapted(x), alone(x, b=1.0))
        assert torch.equal(adapted(x), alone(x, a=1.0))
        with pytest.raises(RuntimeError), use({"b": 1.0}):
            raise RuntimeError
        assert torch.equal(adapted(x), alone(x, a=1.0))


def test_threads_do_not_hear_each_other(adapted: nn.Module, alone: Callable[..., Tensor]) -> None:
    x = batch(2)
    choices: list[dict[str, float]] = [{"a": 1.0}, {"b": 1.0}, {"c": 1.0}, {"a": 0.5, "c": -1.0}]
    wanted = [alone(x, **choice) for choice in choices]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            made = list(pool.map(lambda choice: alone(x, **choice), choices))
            assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
        with use({"a": 1.0}):
            assert torch.equal(pool.submit(adapted, x).result(), alone(x)), "another thread has its own context"
            context = contextvars.copy_context()
            assert torch.equal(pool.submit(context.run, adapted, x).result(), wanted[0])


def test_rows_that_are_no_copies_of_the_images(adapted: nn.Module) -> None:
    with use({"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}):
        for rows in (2, 6, 40):
            with pytest.raises(ValueError, match=f"'a': a batch of {rows} rows where there are 4 images"):
                adapted(batch(rows))


@pytest.mark.parametrize(
    ("strengths", "images", "said"),
    [
        ({"a": float("nan")}, None, "a finite number, got nan"),
        ({"a": torch.tensor([1.0, float("inf")])}, None, "finite"),
        ({"a": torch.ones(2, 1)}, None, r"shape \[2, 1\], expected \[images\]"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, None, "'b': 3 strengths for 2 images"),
        ({"a": torch.ones(2)}, 4, "2 strengths for 4 images"),
    ],
)
def test_strengths_that_cannot_be(strengths: dict[str, float | Tensor], images: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said), use(strengths, images):
        pass
