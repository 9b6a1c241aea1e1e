"""The inpainting U-Net with nine channels: noisy latents, the mask, the latents of what the mask leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.diffusion.noise import ImageNoise
from zoo.pipeline import Pipeline

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

SEEDS = (5, 6)
PROMPTS = ["a pink cat", "two cats"]


@pytest.fixture(scope="module")
def pipe(checkpoints: dict[str, Checkpoint]) -> Pipeline:
    return zoo.load(checkpoints["inpaint"].folder, device="cpu")


def scene() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(64, 64)
    mask[16:48, 24:] = 1
    return images, mask


def settings(**more: Any) -> dict[str, Any]:
    noise = ImageNoise(SEEDS).draw("latent", -1, (2, 4, 8, 8))
    return {"n": 1, "noise": noise, "steps": 10, "guidance": 7.5, "progress": False, **more}


def test_it_draws_what_the_reference_draws(
    pipe: Pipeline, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, mask = scene()
    reference = checkpoints["inpaint"].reference()
    distribution = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    monkeypatch.setattr(f"{distribution}.sample", lambda self, generator=None: self.mean)  # as here
    expected = reference(
        PROMPTS,
        image=images * 2 - 1,
        mask_image=mask.expand(2, 1, 64, 64),
        height=64,
        width=64,
        latents=settings()["noise"],
        num_inference_steps=10,
        guidance_scale=7.5,
        output_type="np",
    ).images
    found = pipe(PROMPTS, image=images, mask=mask, **settings()).tensor
    reference_images = torch.from_numpy(expected).movedim(-1, 1)
    inside = mask.bool().expand_as(found)
    assert reference_images[inside].std() > 0.05
    assert ((found - reference_images)[inside].abs().max() * 255) <= 2
    assert torch.equal(found[~inside], images[~inside])  # what is not made anew stays as it was


def test_mask_and_picture_are_seen(pipe: Pipeline) -> None:
    images, mask = scene()
    inside = mask.bool().expand(2, 3, 64, 64)
    base = pipe(PROMPTS, image=images, mask=mask, **settings()).tensor[inside]
    hidden = torch.where(inside, torch.rand_like(images), images)
    assert torch.equal(pipe(PROMPTS, image=hidden, mask=mask, **settings()).tensor[inside], base)
    assert (pipe(PROMPTS, image=1 - images, mask=mask, **settings()).tensor[inside] - base).abs().max() > 0.02
    wider = mask.clone()
    wider[:, :] = 1
    assert (pipe(PROMPTS, image=images, mask=wider, **settings()).tensor[inside] - base).abs().max() > 0.02
    weaker = pipe(PROMPTS, image=images, mask=mask, strength=0.5, **settings()).tensor
    assert torch.equal(weaker[~inside], images[~inside])
    assert (weaker[inside] - base).abs().max() > 0.02


def test_without_a_picture_it_says_so(pipe: Pipeline) -> None:
    for given in ({}, {"image": scene()[0]}):
        with pytest.raises(ValueError, match="trained for inpainting: give image= and mask="):
            pipe(PROMPTS, **given, **settings())
