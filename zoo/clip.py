"""The zoo's CLIP (arXiv 2103.00020): images and texts in one space.

Its text tower is Stable Diffusion's encoder, both towers serve DALL-E 2, and the cosine between them scores
pictures. The module is transformers' CLIPModel; `from_open_clip` turns weights trained with open_clip into its layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel

from zoo import tensors
from zoo.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"


class Clip(nn.Module):
    """Both towers and the tokenizer, frozen."""

    def __init__(self, model: CLIPModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> Clip:
        """A folder in the transformers layout (config.json, model.safetensors) with tokenizer/tokenizer.model.

        Raises:
            ValueError: a file is missing or damaged, or tensors are missing, unexpected or misshapen.
        """
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
        return cls(model, Tokenizer.load(folder, config.text_config.max_position_embeddings))

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Images [batch, 3, height, width] in [0, 1], resized if need be, to unit vectors [batch, width]."""
        size = self.model.config.vision_config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        features = self.model.vision_model(pixel_values=images * 2 - 1).pooler_output
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


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an open_clip ViT CLIP in the transformers layout: names changed, fused q, k and v taken apart."""
    out: dict[str, Tensor] = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for ours, theirs in norms.items():
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    for tower, prefix in (("vision_model", "visual.transformer.resblocks."), ("text_model", "transformer.resblocks.")):
        for name, tensor in state.items():
            if name.startswith(prefix):
                block, rest = name.removeprefix(prefix).split(".", 1)
                for suffix, part in _block(rest, tensor):
                    out[f"{tower}.encoder.layers.{block}.{suffix}"] = part
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def _block(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor of a residual block under its new name, or names."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return [(f"self_attn.{part}.{kind}", piece) for part, piece in parts]
    module, kind = name.rsplit(".", 1)
    return [(f"{BLOCK[module]}.{kind}", tensor)]
