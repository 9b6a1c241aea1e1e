"""The zoo's CLIP (arXiv 2103.00020): images and texts in one space.

Its text tower is Stable Diffusion's encoder, both towers serve DALL-E 2, and the cosine between them scores
pictures. The module is transformers' CLIPModel; `from_open_clip` turns weights trained with open_clip into its layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel

from zoo import tensors
from zoo.interface import Representation, RepresentationSpec
from zoo.text.tokenizer import FILE as VOCABULARY
from zoo.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
TOWER: dict[Literal["image", "text"], tuple[str, str]] = {
    "image": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
}


class Clip(nn.Module):
    """Both towers and the tokenizer, frozen."""

    def __init__(self, model: CLIPModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.spaces: Mapping[str, str] = {}  # what the file says that it defines

    @classmethod
    def load(cls, folder: str | Path, arguments: Mapping[str, object] | None = None) -> Clip:
        """A folder in the transformers layout (config.json, model.safetensors) with tokenizer/tokenizer.model.

        Raises:
            ValueError: a file is missing or damaged, tensors are missing, unexpected or misshapen, or there are
                arguments: a CLIP takes none.
        """
        if arguments:
            raise ValueError(f"a CLIP takes no arguments, got {dict(arguments)}: its config.json says what it is")
        folder = Path(folder)
        try:
            config = CLIPConfig(**json.loads((folder / "config.json").read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'config.json'} is not the config of a CLIP: {error}") from error
        model = tensors.on_meta(lambda: CLIPModel(config))
        # Positions are not stored, so not left on meta.
        model.text_model.embeddings.position_ids = torch.arange(config.text_config.max_position_embeddings)[None]
        patches = model.vision_model.embeddings.num_positions
        model.vision_model.embeddings.position_ids = torch.arange(patches)[None]
        tensors.assign(model, tensors.read(folder / WEIGHTS), source=folder / WEIGHTS)
        found = cls(model, Tokenizer.load(folder, config.text_config.max_position_embeddings))
        found.spaces = tensors.spaces(folder / WEIGHTS)
        return found

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns no arguments, and the files, relative to `folder`."""
        files = [Path("config.json"), Path(WEIGHTS), VOCABULARY]
        (folder / VOCABULARY).parent.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.model.config.to_json_string(), "utf-8")
        (folder / VOCABULARY).write_bytes(self.tokenizer.model)
        named = tensors.naming({kind: self.fingerprint(kind) for kind in TOWER})
        tensors.write(folder / WEIGHTS, self.model.state_dict(), dtype, named)
        return {}, files

    @cached_property
    def image_space(self) -> str:
        """Names the space of `embed_images` by the weights that define it: a prior makes what a decoder reads there."""
        return f"clip-image-{self.fingerprint('image')}"

    def fingerprint(self, kind: Literal["image", "text"]) -> str:
        """Names the weights of a tower: see `zoo.tensors.fingerprint`."""
        state = {name: tensor for name, tensor in self.model.state_dict().items() if name.startswith(TOWER[kind])}
        return self.spaces.get(kind) or tensors.fingerprint(state)

    @property
    def produces(self) -> RepresentationSpec:
        """What `encode` makes."""
        return RepresentationSpec("clip_image", (self.model.config.projection_dim,), self.image_space)

    def encode(self, images: Tensor) -> Representation:
        """Images [batch, 3, height, width] in [0, 1] as what a prior makes and DALL-E 2's decoder reads."""
        return Representation(self.embed_images(images), "clip_image", self.image_space)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Images [batch, 3, height, width] in [0, 1], resized if need be, to unit vectors [batch, width]."""
        size, scale = self.model.config.vision_config.image_size, self.model.logit_scale
        images = images.to(scale.device, torch.float32)  # not all devices resize in half precision
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        features = self.model.vision_model(pixel_values=(images * 2 - 1).to(scale.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(features), dim=-1)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to unit vectors [batch, width]. Raises ValueError for a prompt longer than the window."""
        ids = self.tokenizer.encode(prompts).to(self.model.logit_scale.device)
        features = self.model.text_model(input_ids=ids).pooler_output
        return F.normalize(self.model.text_projection(features), dim=-1)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The CLIP score of each image and its prompt: 100 x cosine, at least 0, [batch] (arXiv 2104.08718)."""
        return 100 * (self.embed_images(images) * self.embed_texts(prompts)).sum(-1).clamp(min=0)


PLAIN = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
FUSED = "attn.in_proj_"  # weight or bias: queries, keys and values in one tensor
APART = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an open_clip ViT CLIP in the transformers layout: names changed, fused q, k and v taken apart."""
    out = {theirs: state[ours] for ours, theirs in PLAIN.items()}
    out |= {theirs: state[ours].T for ours, theirs in TRANSPOSED.items()}
    for ours, theirs in TOWERS.items():
        for name in (n for n in state if n.startswith(ours)):
            block, rest = name.removeprefix(ours).split(".", 1)
            module, kind = rest.rpartition(".")[::2]
            if rest.startswith(FUSED):
                kind = rest.removeprefix(FUSED)
                parts = zip(APART, state[name].chunk(3), strict=True)
                out |= {f"{theirs}{block}.{part}.{kind}": piece for part, piece in parts}
            else:
                out[f"{theirs}{block}.{BLOCK[module]}.{kind}"] = state[name]
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_open_clip`: weights of a transformers CLIP in open_clip's layout."""
    out = {ours: state[theirs] for ours, theirs in PLAIN.items()}
    out |= {ours: state[theirs].T for ours, theirs in TRANSPOSED.items()}
    back = {theirs: ours for ours, theirs in BLOCK.items()}
    for ours, theirs in TOWERS.items():
        for name in (n for n in state if n.startswith(theirs)):
            block, rest = name.removeprefix(theirs).split(".", 1)
            module, _, kind = rest.rpartition(".")
            if module == APART[0]:
                parts = [state[f"{theirs}{block}.{part}.{kind}"] for part in APART]
                out[f"{ours}{block}.{FUSED}{kind}"] = torch.cat(parts)
            elif module not in APART:
                out[f"{ours}{block}.{back[module]}.{kind}"] = state[name]
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
