"""Training CLIP (arXiv 2103.00020) on scenes, with open_clip's model and loss.

Every picture is seen with an English and a Chinese caption, and each caption with a copy in which one facet is changed
(colours exchanged, the relation turned round, one more of them ...): hard negatives as in NegCLIP (arXiv 2210.01936),
without which a contrastive model reads a caption as a bag of words. Two reading heads, dropped after training, ask the
tokens and the image embedding for every facet: a generator will look for them there, one layer before the last, where
the contrastive loss alone reaches only the end marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo import tensors
from zoo.clip import from_open_clip, to_open_clip
from zoo.data.captions import LANGUAGES, caption, partial, swapped
from zoo.data.draw import render
from zoo.data.scenes import Description, random_scene
from zoo.train import TrainingError
from zoo.train.cache import Array, SceneData, picked, scenes
from zoo.train.facets import CrossAttentionProbe, LinearProbe, labels, misread
from zoo.train.recipe import Recipe, Table
from zoo.train.task import Batch, Image, Metrics, Task, to_float, write_config
from zoo.train.tokenizer import trained

FILE = "model.safetensors"
WINDOW = 32  # the longest full caption has 27 pieces and two markers
FRESH = 512


class ClipModel(Table):
    """The `[model]` table: both towers have `width` channels and heads of 32 or more."""

    width: int = 192
    heads: int = 4
    vision_layers: int = 5
    text_layers: int = 4
    patch: int = 8
    embedding: int = 256


class ClipRecipe(Recipe):
    """The recipe of a CLIP."""

    model: ClipModel = ClipModel()
    data: SceneData = SceneData()
    tokenizer: Path = Path("runs/tokenizer/final/tokenizer.model")
    full: float = Field(0.7, ge=0, le=1)  # share of captions that say everything
    hard: float = Field(1.0, ge=0)  # weight of choosing the true caption among changed ones
    pictures_every: int = Field(1, ge=1)  # steps; the others train on texts alone, of which the text tower needs more
    relations: float = Field(
        0.5, ge=0, le=1
    )  # share of rows drawn from scenes with a relation alone: binding comes last
    read: float = Field(0.2, ge=0)  # weight of each reading head, summed over facets
    train: Literal["both", "vision"] = "both"  # the image tower alone: the text tower of `init` stays, with its readers

    @model_validator(mode="after")
    def _vision_for_some_text(self) -> Self:
        if self.train == "vision" and self.init is None:
            raise ValueError("train = 'vision' needs init = ..., the folder of the CLIP whose text tower is kept")
        if self.train == "vision" and self.pictures_every != 1:
            raise ValueError("train = 'vision' leaves nothing to train without pictures: pictures_every = 1")
        return self


class ClipTask(Task[ClipRecipe]):
    """Batches of pictures with two captions and their changed copies."""

    recipe_type = ClipRecipe

    def __init__(self, recipe: ClipRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.tokenizer = trained(recipe.tokenizer, WINDOW)
        self.scenes = scenes(recipe.data)
        self.descriptions = [scene.describe() for scene in self.scenes.scenes]
        self.contrast = ClipLoss(cache_labels=True)
        self.locked = recipe.train == "vision"
        rng = np.random.default_rng([recipe.seed, 2**40])
        unseen = [random_scene(rng) for _ in range(FRESH)]
        drawn = np.stack([render(scene, recipe.data.size) for scene in unseen])
        self.fresh = self._batch([scene.describe() for scene in unseen], drawn, rng)

    def build(self) -> nn.Module:
        shape = self.recipe.model
        heads = {"width": shape.width, "heads": shape.heads, "layers": shape.text_layers}
        text = CLIPTextCfg(
            context_length=WINDOW,
            vocab_size=len(self.tokenizer),
            pool_type="eos",
            eos_id=self.tokenizer.end,
            pad_id=self.tokenizer.padding,
            **heads,
        )
        vision = CLIPVisionCfg(
            layers=shape.vision_layers,
            width=shape.width,
            head_width=shape.width // shape.heads,
            patch_size=shape.patch,
            image_size=self.recipe.data.size,
        )
        clip = CLIP(shape.embedding, vision, text)
        parts: dict[str, nn.Module] = {"clip": clip, "image_reader": LinearProbe(shape.embedding)}
        if self.locked:  # as in locked-image tuning (arXiv 2111.07991), the other way round
            clip.requires_grad_(False)
            clip.visual.requires_grad_(True)
            clip.logit_scale.requires_grad_(True)
        else:
            parts["text_reader"] = CrossAttentionProbe(shape.width)
        return nn.ModuleDict(parts)

    def start(self, model: nn.Module, folder: Path) -> None:
        tensors.assign(_clip(model), to_open_clip(tensors.read(folder / FILE)), source=folder / FILE)

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        rows = self.scenes.draw(self.recipe.batch, self.recipe.relations, rng)
        batch = self._batch([self.descriptions[row] for row in rows], picked(self.scenes.images, rows), rng)
        if step % self.recipe.pictures_every:
            del batch["images"]
        return batch

    @property
    def kept(self) -> dict[str, str]:
        """The name of the text tower's space, where that tower stays as it was: what reads its tokens still can."""
        if not self.locked or self.recipe.init is None:
            return {}
        return {kind: name for kind, name in tensors.spaces(self.recipe.init / FILE).items() if kind == "text"}

    def recompute(self, model: nn.Module) -> int:
        return 0  # its attention is computed by a kernel that is chosen for the forward pass alone

    def share(self, batch: Batch, rank: int, ranks: int) -> Batch:
        raise TrainingError(
            "CLIP compares every caption of a batch with every picture: train it in one process, with accumulate = 1"
        )

    def _batch(self, shown: Sequence[Description], pictures: Array, rng: np.random.Generator) -> Batch:
        texts: list[list[str]] = [[], [], [], []]  # en, zh, changed en, changed zh
        facets: list[list[list[int]]] = [[], []]  # of the true captions, of the changed ones
        for whole in shown:
            said = whole if rng.random() < self.recipe.full else partial(whole, rng)
            wrong: Description = swapped(said, rng)
            facets[0].append(labels(said))
            facets[1].append(labels(wrong))
            for language, true, false in zip(LANGUAGES, texts[:2], texts[2:], strict=True):
                true.append(caption(said, language, rng))
                false.append(caption(wrong, language, rng))
        tokens = self.tokenizer.encode([text for column in texts for text in column])
        tokens = tokens.unflatten(0, (4, len(shown)))
        return {"images": torch.from_numpy(pictures), "tokens": tokens, "facets": torch.tensor(facets)}

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        image, texts, scale, hidden = self._embed(model, batch)
        true, false = texts[:2], texts[2:]
        en, zh = zip(true, false, strict=True)
        facets = batch["facets"]
        metrics, loss = {"scale": scale}, torch.zeros((), device=scale.device)
        if not self.locked:
            # The languages also choose each other, so the text tower need not wait until the image tower sees.
            with self._exact():
                contrast = self.contrast(en[0], zh[0], scale)
                hard = (_choose(zh[0], *en, scale) + _choose(en[0], *zh, scale)) / 2
            read = misread(model.get_submodule("text_reader")(hidden), facets[[0, 0, 1, 1]].flatten(0, 1))
            metrics |= {"contrast_text": contrast, "hard_text": hard, "read_text": read}
            loss = contrast + self.recipe.hard * hard + self.recipe.read * read
        if image is not None:
            with self._exact():
                contrast = (self.contrast(image, en[0], scale) + self.contrast(image, zh[0], scale)) / 2
                hard = (_choose(image, *en, scale) + _choose(image, *zh, scale)) / 2
            read = misread(model.get_submodule("image_reader")(image), facets[0])
            metrics |= {"contrast": contrast, "hard": hard, "read_image": read}
            loss = loss + contrast + self.recipe.hard * hard + self.recipe.read * read
        with torch.no_grad():
            _clip(model).logit_scale.clamp_(max=float(np.log(100)))
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _exact(self) -> torch.autocast:
        """float32: in bfloat16, what a changed caption differs by is as small as rounding."""
        return torch.autocast(self.device.type, enabled=False)

    def _embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor | None, list[Tensor], Tensor, Tensor]:
        """Unit vectors of images and of each column of texts, the temperature, and the texts' last but one layer."""
        clip, tokens = _clip(model), batch["tokens"]
        longest = int((tokens != self.tokenizer.padding).sum(-1).max())
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass is slow on a CPU
            seen = clip.encode_image(to_float(batch["images"])) if "images" in batch else None
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked):
                text, hidden = _encode_text(clip, tokens[..., :longest].flatten(0, 1))
        text = F.normalize(text.float(), dim=-1)
        image = None if seen is None else F.normalize(seen.float(), dim=-1)
        return image, list(text.chunk(len(tokens))), clip.logit_scale.exp(), hidden

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        image, texts, _, _ = self._embed(model, {name: tensor.to(self.device) for name, tensor in self.fresh.items()})
        assert image is not None
        figures = {}
        for k, language in enumerate(LANGUAGES):
            with self._exact():
                likeness = image @ texts[k].T
            found = likeness.argmax(-1) == torch.arange(len(image), device=self.device)
            figures[f"retrieval_{language}"] = float(found.float().mean())
            right = (image * texts[k]).sum(-1) > (image * texts[k + 2]).sum(-1)
            figures[f"swap_{language}"] = float(right.float().mean())
        return None, figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """A folder that `zoo.clip.Clip` and transformers read: config.json, model.safetensors, tokenizer/."""
        shape, ids = self.recipe.model, self.tokenizer
        common = {"hidden_size": shape.width, "intermediate_size": 4 * shape.width, "hidden_act": "gelu"}
        common |= {"num_attention_heads": shape.heads, "layer_norm_eps": 1e-5, "projection_dim": shape.embedding}
        text = common | {"num_hidden_layers": shape.text_layers, "vocab_size": len(ids)}
        text |= {"max_position_embeddings": WINDOW, "pad_token_id": ids.padding}
        text |= {"bos_token_id": ids.begin, "eos_token_id": ids.end}
        vision = common | {"num_hidden_layers": shape.vision_layers, "patch_size": shape.patch}
        vision |= {"image_size": self.recipe.data.size}
        config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": shape.embedding}
        config |= {"text_config": text, "vision_config": vision}
        write_config(folder, config)
        state = from_open_clip(_clip(model).state_dict())
        tensors.write(folder / FILE, state, torch.float16, tensors.naming(self.kept))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.model").write_bytes(ids.model)


def _clip(model: nn.Module) -> CLIP:
    return cast(CLIP, model.get_submodule("clip"))


def _encode_text(clip: CLIP, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's `encode_text`, with the layer before the last, on a window as short as the batch allows.

    The tower is causal, so what follows the longest text adds nothing.
    """
    length = tokens.shape[1]
    mask = clip.attn_mask[:length, :length]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        x = block(x, attn_mask=mask)
    hidden, x = clip.ln_final(x), clip.ln_final(last(x, attn_mask=mask))
    end = (tokens == clip.text_eos_id).int().argmax(-1)
    return x[torch.arange(len(x), device=x.device), end] @ clip.text_projection, hidden


def _choose(query: Tensor, true: Tensor, false: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of the true caption among all true and changed captions of the batch."""
    logits = scale * (query @ torch.cat([true, false]).T)
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))
