"""Safety checkers: what looks at every picture before a pipeline hands it out.

A checker is called as published ones are, `images, has_nsfw = checker(images=..., clip_input=...)`: images
[batch, 3, height, width] in [0, 1], and the same pictures as CLIP's vision tower takes them [batch, 3, 224, 224]. It
gives the pictures to hand out, and whether each was found unsafe: one bool for all, a list, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import published, tensors

Verdict: TypeAlias = bool | Sequence[bool] | None
FOLDER = "safety_checker"
CLIP_SIZE = 224
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LEFT_OVER = (r".*position_ids",)
TOWER = "vision_model."
SPECIAL_MARGIN = 0.01  # how much nearer every concept comes where a special one was found


class SafetyChecker(Protocol):
    """Pictures in, pictures to hand out and the verdict on them back."""

    def __call__(self, *, images: Tensor, clip_input: Tensor) -> tuple[object, Verdict]: ...


class ConceptChecker(nn.Module):
    """The published checker: pictures too near to one of its concepts, as CLIP sees them, are blackened.

    After arXiv 2210.04610, which describes it: the cosine to each concept's embedding is held against that concept's
    own threshold, and where one of a few special concepts is near, all thresholds are lowered.
    """

    def __init__(self, vision: nn.Module, width: int, projected: int, concepts: int, special: int) -> None:
        super().__init__()
        self.vision_model = vision
        self.visual_projection = nn.Linear(width, projected, bias=False)
        self.concept_embeds = nn.Parameter(torch.empty(concepts, projected))
        self.special_care_embeds = nn.Parameter(torch.empty(special, projected))
        self.concept_embeds_weights = nn.Parameter(torch.empty(concepts))
        self.special_care_embeds_weights = nn.Parameter(torch.empty(special))

    @classmethod
    def load(cls, folder: Path, variant: str | None = None) -> ConceptChecker:
        """The checker of a published folder `safety_checker/`.

        Raises:
            ValueError: a file is missing or damaged, or the tensors do not fit.
        """
        from transformers.models.clip.configuration_clip import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModel

        said = published.options(folder, "config.json")
        inner = said.get("vision_config")
        fields = [*("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")]
        fields += ["patch_size", "hidden_act", "layer_norm_eps"]
        stored = published.weights(folder, variant)
        try:
            assert isinstance(inner, dict)
            config = CLIPVisionConfig(**{field: inner[field] for field in fields if field in inner})
            projected, special = stored["concept_embeds"].shape[1], len(stored["special_care_embeds"])
            checker = tensors.on_meta(
                lambda: cls(
                    CLIPVisionModel(config), config.hidden_size, projected, len(stored["concept_embeds"]), special
                )
            )
        except Exception as error:  # the library checks with many kinds of error
            raise ValueError(f"{folder} is not the published safety checker: {error!r}") from error
        embeddings = next(m for n, m in checker.vision_model.named_modules() if n.endswith("embeddings"))
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
        # transformers 5 calls what is inside the tower without the tower's own name, which published files repeat.
        wanted = checker.state_dict()
        named = {n if n in wanted else n.replace(TOWER * 2, TOWER, 1): tensor for n, tensor in stored.items()}
        tensors.assign(checker, named, source=folder, ignore=LEFT_OVER)
        return checker.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, *, images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
        """Images [batch, ...], those that are unsafe all 0, and whether each is."""
        weight = self.visual_projection.weight
        seen = self.visual_projection(self.vision_model(clip_input.to(weight)).pooler_output).float()
        special = _near(seen, self.special_care_embeds, self.special_care_embeds_weights)
        margin = SPECIAL_MARGIN * (special.round(decimals=3) > 0).any(1, keepdim=True)
        near = _near(seen, self.concept_embeds, self.concept_embeds_weights) + margin
        unsafe = (near.round(decimals=3) > 0).any(1)
        return torch.where(unsafe.to(images.device).view(-1, 1, 1, 1), 0.0, images), unsafe.tolist()


def _near(seen: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    return F.normalize(seen, dim=-1) @ F.normalize(concepts.float(), dim=-1).T - thresholds.float()


def find_checker(
    asked: SafetyChecker | str, place: Path, *, device: torch.device, variant: str | None = None
) -> SafetyChecker:
    """The checker that was asked for: "published", the one in the model's folder, or the callable itself.

    Raises:
        ValueError: another word, a thing that cannot be called, or a folder without a checker.
    """
    if isinstance(asked, str):
        folder = place / FOLDER
        if asked != "published":
            raise ValueError(f"safety_checker={asked!r} is not known: give 'published', a callable, or None")
        if not folder.is_dir():
            raise ValueError(f"{place} has no {FOLDER}/ to load: leave out safety_checker=, or give a callable")
        return ConceptChecker.load(published.inside(place, FOLDER), variant).to(device)
    if not callable(asked):
        raise ValueError(f"a safety checker is called with images= and clip_input=, which {asked!r} cannot be")
    return asked


def check(checker: SafetyChecker, images: Tensor) -> tuple[Tensor, tuple[bool, ...]]:
    """The pictures to hand out, [batch, 3, height, width] in [0, 1], and whether each was found unsafe.

    Raises:
        ValueError: the checker gives something else than its two values.
    """
    try:
        made = checker(images=images, clip_input=clip_input(images))
    except TypeError as error:
        raise ValueError(f"the safety checker must take images= and clip_input=: {error}") from error
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise ValueError(f"the safety checker must give (images, has_nsfw), not {type(made).__name__}")
    out, verdict = made
    one = verdict is None or isinstance(verdict, (bool, np.bool_))
    flags = [bool(verdict)] * len(images) if one else [bool(found) for found in cast(Sequence[bool], verdict)]
    pictures = _pictures(out, images)
    if pictures.shape != images.shape or len(flags) != len(images):
        raise ValueError(
            f"the safety checker was given pictures of shape {list(images.shape)} and gave {list(pictures.shape)} with "
            f"{len(flags)} verdicts"
        )
    return pictures, tuple(flags)


def clip_input(images: Tensor) -> Tensor:
    """Pictures [batch, 3, height, width] in [0, 1] as CLIP was trained on them: [batch, 3, 224, 224], standardised."""
    scaled = []
    for image in images.detach().cpu():
        pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        scale = CLIP_SIZE / min(picture.size)
        sides = [max(CLIP_SIZE, int(side * scale)) for side in picture.size]
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        left, top = ((side - CLIP_SIZE) // 2 for side in picture.size)
        cut = picture.crop((left, top, left + CLIP_SIZE, top + CLIP_SIZE))
        scaled.append(torch.from_numpy(np.array(cut, dtype=np.float32) / 255).movedim(2, 0))
    mean, deviation = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_DEVIATION).view(3, 1, 1)
    return (torch.stack(scaled) - mean) / deviation


def _pictures(out: object, images: Tensor) -> Tensor:
    if isinstance(out, np.ndarray):
        out = torch.from_numpy(out)
    elif isinstance(out, Sequence) and out:
        out = torch.stack([torch.as_tensor(image) for image in out])
    if not isinstance(out, Tensor):
        raise ValueError(f"the safety checker gave {type(out).__name__} instead of pictures")
    last = out.ndim == 4 and out.shape[1:] != images.shape[1:] and out.shape[-1] == images.shape[1]
    return (out.movedim(-1, 1) if last else out).to(images).clamp(0, 1)
