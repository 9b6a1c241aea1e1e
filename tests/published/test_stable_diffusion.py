"""Published Stable Diffusion folders: every network equals the reference, and so do the pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Conditioning
from zoo.pipeline import Pipeline
from zoo.text.bert import BertTextEncoder
from zoo.text.clip import ClipTextEncoder
from zoo.text.tokenizer import UnknownWords

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

KINDS = ("sd15", "sd21", "inpaint", "taiyi")
PROMPTS = {"taiyi": ["粉色的蝴蝶,小精灵,卡通", "a cat"]}
ENGLISH = ["a pink cat", "two cats, on a roof"]
STEPS, GUIDANCE, SIDE = 10, 7.5, 64
SEEDS = (5, 6)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> tuple[Pipeline, Checkpoint]:
    checkpoint = checkpoints[request.param]
    return zoo.load(checkpoint.folder, device="cpu"), checkpoint


def noise(like: int = 4) -> Tensor:
    return ImageNoise(SEEDS).draw("latent", -1, (2, like, SIDE // 8, SIDE // 8))


def same_noise(monkeypatch: pytest.MonkeyPatch, scheduler: Any) -> None:
    """Stochastic schedulers draw what our samplers draw."""
    turn = iter(range(1000))
    module = type(scheduler).__module__
    if hasattr(__import__(module, fromlist=["x"]), "randn_tensor"):
        draw = lambda shape, **_: ImageNoise(SEEDS).draw("latent", next(turn), shape)  # noqa: E731
        monkeypatch.setattr(f"{module}.randn_tensor", draw)


def same_pictures(found: Tensor, expected: Any, within: float = 2.0) -> None:
    reference = torch.from_numpy(expected).movedim(-1, 1)
    assert reference.std() > 0.05
    assert ((reference > 0) & (reference < 1)).float().mean() > 0.5  # not black and white by clipping
    assert (found - reference).abs().max() * 255 <= within


def test_networks_equal_the_reference(pair: tuple[Pipeline, Checkpoint]) -> None:
    pipe, checkpoint = pair
    prompts = PROMPTS.get(checkpoint.kind, ENGLISH)
    reference = checkpoint.reference()
    length = reference.tokenizer.model_max_length
    ids = reference.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, checkpoint.unet.config.in_channels, 8, 8, generator=source)
    images = torch.rand(2, 3, 64, 64, generator=source) * 2 - 1
    with torch.no_grad():
        text = reference.text_encoder(ids)[0]
        torch.testing.assert_close(pipe.text_encoder.encode(prompts).tokens, text, atol=1e-4, rtol=0)
        times = torch.tensor([3.0, 801.0])
        network, vae = pipe.generator.denoiser.network, pipe.decoder.vae
        expected = reference.unet(latents, times, text).sample
        torch.testing.assert_close(network(latents, times, Conditioning(tokens=text)), expected, atol=1e-4, rtol=0)
        posterior = reference.vae.encode(images).latent_dist
        ours = vae.encode(images)
        torch.testing.assert_close(ours.mean, posterior.mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.logvar, posterior.logvar, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            vae.decode(ours.mean), reference.vae.decode(posterior.mean).sample, atol=1e-4, rtol=0
        )


def test_what_the_folder_says_is_the_default(pair: tuple[Pipeline, Checkpoint]) -> None:
    pipe, checkpoint = pair
    assert pipe.size == (64, 64)
    assert pipe.name == checkpoint.folder.name
    assert (pipe.defaults.steps, pipe.defaults.guidance, pipe.defaults.spacing) == (50, 7.5, "published")
    assert pipe.defaults.sampler == ("ddim" if checkpoint.kind == "sd21" else "plms")
    assert isinstance(pipe.text_encoder, BertTextEncoder if checkpoint.kind == "taiyi" else ClipTextEncoder)
    assert {p.dtype for p in pipe.generator.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["sd15", "taiyi"])
def test_threads_share_a_tokenizer(kind: str, checkpoints: dict[str, Checkpoint]) -> None:
    """Also where prompts have words that are not known, which are looked for in the same pass."""
    encoder = zoo.load(checkpoints[kind].folder, device="cpu").text_encoder
    prompts = [f"{prompt} {'🦊 ' * (i % 3)}" for i, prompt in enumerate(PROMPTS.get(kind, ENGLISH) * 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWords)
        alone = [encoder.encode([prompt]).tokens for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda prompt: encoder.encode([prompt]).tokens, prompts))
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("kind", ["sd15", "sd21", "taiyi"])
def test_pictures_of_prompts(kind: str, checkpoints: dict[str, Checkpoint]) -> None:
    prompts = PROMPTS.get(kind, ENGLISH)
    pipe, reference = zoo.load(checkpoints[kind].folder, device="cpu"), checkpoints[kind].reference()
    expected = reference(
        prompts, latents=noise(), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np"
    ).images
    found = pipe(prompts, n=1, noise=noise(), steps=STEPS, progress=False).tensor
    same_pictures(found, expected)
    plain = pipe(prompts, n=1, noise=noise(), steps=STEPS, guidance=1.0, progress=False).tensor
    assert (plain - found).abs().max() > 4 / 255  # guidance and so the text shows


@pytest.mark.parametrize("strength", [0.6, 0.75])
@pytest.mark.parametrize("kind", ["sd15", "sd21", "taiyi"])
def test_pictures_of_pictures(kind: str, strength: float, checkpoints: dict[str, Checkpoint]) -> None:
    prompts = PROMPTS.get(kind, ENGLISH)
    pipe = zoo.load(checkpoints[kind].folder, device="cpu")
    reference = checkpoints[kind].reference("StableDiffusionImg2ImgPipeline")
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    latents = pipe.decoder.encode(images).data  # where diffusers would draw from the posterior, here its mean
    added = noise()
    reference.scheduler.add_noise, add = (lambda data, _, t: add(data, added, t)), reference.scheduler.add_noise
    expected = reference(
        prompts,
        image=latents,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images
    found = pipe(prompts, n=1, image=images, strength=strength, noise=noise(), steps=STEPS, progress=False).tensor
    same_pictures(found, expected)


SCHEDULERS: list[dict[str, object]] = [
    {"_class_name": "DDIMScheduler", "clip_sample": True},
    {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "EulerDiscreteScheduler"},
    {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "use_karras_sigmas": True},
    {"_class_name": "EulerAncestralDiscreteScheduler"},
    {"_class_name": "HeunDiscreteScheduler"},
    {"_class_name": "LMSDiscreteScheduler"},
    {"_class_name": "DPMSolverMultistepScheduler"},
    {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading"},
    {"_class_name": "UniPCMultistepScheduler", "solver_order": 3},
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("said", SCHEDULERS, ids=lambda said: "-".join(map(str, said.values())))
def test_pictures_by_other_schedulers(
    said: dict[str, object], prediction: str, write: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if said.get("rescale_betas_zero_snr") and prediction == "epsilon":
        prediction = "sample"  # noise says nothing of the picture where there is only noise
    checkpoint = write("sd21", {**betas, **said, "prediction_type": prediction})
    pipe, reference = zoo.load(checkpoint.folder, device="cpu"), checkpoint.reference()
    same_noise(monkeypatch, reference.scheduler)
    expected = reference(
        ENGLISH, latents=noise(), num_inference_steps=STEPS, guidance_scale=3.0, output_type="np"
    ).images
    found = pipe(ENGLISH, n=1, seed=list(SEEDS), noise=noise(), steps=STEPS, guidance=3.0, progress=False).tensor
    same_pictures(found, expected)
