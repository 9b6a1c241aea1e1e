"""The safety checker: the published one against the reference, and callables in the two-value form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig

import zoo
from zoo import safety
from zoo.pipeline import Pipeline

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

SETTINGS: dict[str, Any] = {"n": 3, "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def reference() -> Any:
    """diffusers' own class at reduced width, with thresholds that some pictures pass and others do not."""
    vision = {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 224, "patch_size": 56, "projection_dim": 24},
    }
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=24)).eval()
    for parameter in (checker.concept_embeds, checker.special_care_embeds):
        parameter.data = torch.randn(parameter.shape)
    checker.concept_embeds_weights.data = torch.full((17,), 0.36)
    checker.special_care_embeds_weights.data = torch.full((3,), 0.2)
    return checker


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Checkpoint], reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(checkpoints["sd15"].folder, tmp_path_factory.mktemp("checked") / "model"))
    reference.save_pretrained(copy / "safety_checker")
    return copy


def test_the_published_checker_equals_the_reference(folder: Path, reference: Any) -> None:
    checker = safety.ConceptChecker.load(folder / "safety_checker")
    source = torch.Generator().manual_seed(1)
    pictures, seen = torch.rand(40, 3, 8, 8, generator=source), torch.randn(40, 3, 224, 224, generator=source) * 2
    seen += torch.randn(40, 3, 1, 1, generator=source) * 3
    _, expected = reference(images=[image.clone() for image in pictures], clip_input=seen)
    images, unsafe = checker(images=pictures, clip_input=seen)
    assert unsafe == [bool(found) for found in expected]
    assert 0 < sum(unsafe) < 40
    for i, found in enumerate(unsafe):
        assert torch.equal(images[i], torch.zeros_like(pictures[i]) if found else pictures[i])


def test_it_is_loaded_when_asked_for(folder: Path, checkpoints: dict[str, Checkpoint]) -> None:
    pipe = zoo.load(folder, device="cpu", safety_checker="published")
    assert isinstance(pipe.safety_checker, safety.ConceptChecker)
    result = pipe("a cat", **SETTINGS)
    assert len(result.unsafe) == 3
    assert zoo.load(folder, device="cpu").safety_checker is None
    with pytest.raises(ValueError, match="has no safety_checker/ to load"):
        zoo.load(checkpoints["sd15"].folder, device="cpu", safety_checker="published")
    with pytest.raises(ValueError, match="safety_checker='strict' is not known"):
        zoo.load(folder, device="cpu", safety_checker="strict")
    with pytest.raises(ValueError, match="which 3 cannot be"):
        zoo.load(folder, device="cpu", safety_checker=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdict", "unsafe"),
    [
        (None, (False,) * 3),
        (False, (False,) * 3),
        (True, (True,) * 3),
        ([False, True, False], (False, True, False)),
        (np.array([True, False, False]), (True, False, False)),
    ],
    ids=["none", "no", "yes", "list", "array"],
)
@pytest.mark.parametrize("form", ["tensor", "list", "array"])
def test_callables_give_two_values(tiny: Pipeline, verdict: Any, unsafe: tuple[bool, ...], form: str) -> None:
    seen: dict[str, Tensor] = {}

    def checker(images: Tensor, clip_input: Tensor) -> tuple[Any, Any]:
        seen.update(images=images, clip_input=clip_input)
        given = images / 2
        out = {"tensor": given, "list": list(given), "array": given.movedim(1, -1).numpy()}[form]
        return out, verdict

    plain = tiny("a red circle", **SETTINGS)
    pipe = Pipeline(tiny.text_encoder, tiny.generator, tiny.decoder, defaults=tiny.defaults, size=tiny.size)
    pipe.safety_checker = checker
    result = pipe("a red circle", **SETTINGS)
    assert result.unsafe == unsafe
    assert plain.unsafe == ()
    assert torch.equal(seen["images"], plain.tensor)
    assert seen["clip_input"].shape == (3, 3, 224, 224)
    torch.testing.assert_close(result.tensor, plain.tensor / 2)
    again = tiny("a red circle", n=1, seed=result.seeds[1], **dict(result.settings), progress=False)
    torch.testing.assert_close(again.tensor[0], plain.tensor[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("checker", "message"),
    [
        (lambda images: (images, None), "must take images= and clip_input="),
        (lambda images, clip_input: images, "give"),
        (lambda images, clip_input: (None, None), "gave NoneType instead of pictures"),
        (lambda images, clip_input: (images[:1], None), r"gave \[1, 3, 32, 32\]"),
        (lambda images, clip_input: (images, [True]), "with 1 verdicts"),
    ],
)
def test_checkers_that_do_not_keep_to_it(tiny: Pipeline, checker: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        safety.check(checker, torch.rand(3, 3, 32, 32))


def test_what_clip_sees_is_what_its_processor_makes() -> None:
    from transformers import CLIPImageProcessor

    image = torch.rand(3, 300, 400, generator=torch.Generator().manual_seed(0))
    picture = (image * 255).round().byte().movedim(0, -1).numpy()
    expected = CLIPImageProcessor()(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(safety.clip_input(image[None]), expected, atol=0.05, rtol=0)
