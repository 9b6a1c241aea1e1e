"""The text tower of CLIP (arXiv 2103.00020) as a text encoder, over transformers' implementation.

As in Stable Diffusion 2, the tokens may be taken one layer before the last (`layer=-2`) and then normalised by the
final LayerNorm: a contrastive loss shapes only the last layer's end marker, so the one before tells more of each word.
Prompts are padded to the window and every position may be attended to (mask None), padding included; DALL-E 2's
networks, as published, are told what is padding (`masked=True`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

from zoo import tensors
from zoo.interface import Adaptable, TextFeatures, TextSpec
from zoo.text.named import NamedModel
from zoo.text.pretrained import PublishedTokenizer
from zoo.text.tokenizer import FILE, Tokenizer

CONFIG = Path("text_encoder") / "config.json"
WEIGHTS = Path("text_encoder") / "model.safetensors"
PROJECTION = "text_projection.weight"
PREFIX = "text_model."
LEFT_OVER = (r".*position_ids", r"logit_scale", r"vision_model\..*", r"visual_projection\..*")
FIELDS = (  # of config.json, nothing else in it is listened to
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id"),
)


class ClipTextEncoder(NamedModel):
    """Prompts to tokens [batch, window, width] and, where the tower has a projection, pooled [batch, projected width].

    `layer` counts hidden layers from the end: -1 is the last, -2 the one before. `masked` gives a mask, which is False
    behind the end marker.
    """

    model: CLIPTextModelWithProjection

    def __init__(
        self,
        model: CLIPTextModelWithProjection,
        tokenizer: Tokenizer | PublishedTokenizer,
        *,
        layer: int = -2,
        masked: bool = False,
    ) -> None:
        super().__init__(model)
        config = model.config
        if not -config.num_hidden_layers <= layer <= -1:
            raise ValueError(f"layer must be from {-config.num_hidden_layers} to -1, not {layer}")
        room, window = config.max_position_embeddings, tokenizer.window
        fits = window <= room if isinstance(tokenizer, PublishedTokenizer) else window == room
        if len(tokenizer) > config.vocab_size or not fits:
            raise ValueError(
                f"the tokenizer ({len(tokenizer)} pieces, window {tokenizer.window}) is not the one this text tower "
                f"was made for ({config.vocab_size} pieces, window {config.max_position_embeddings})"
            )
        self.tokenizer = tokenizer
        self.layer, self.masked = layer, masked

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object] | None = None) -> ClipTextEncoder:
        """The text encoder of a model folder: its `text_encoder/` in the transformers layout and its `tokenizer/`.

        A folder that is a whole CLIP, with its config.json and model.safetensors, gives its text tower.

        Raises:
            ValueError: a file is missing or damaged, or tensors are missing, unexpected or misshapen.
        """
        whole = not (folder / CONFIG).is_file() and (folder / CONFIG.name).is_file()
        source, weights = (folder / file.name if whole else folder / file for file in (CONFIG, WEIGHTS))
        try:
            said = json.loads(source.read_text("utf-8"))
            said = said["text_config"] if whole else said
            config = CLIPTextConfig(**{field: said[field] for field in FIELDS if field in said})
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{source} is not the config of a CLIP text tower: {error}") from error
        found = cls._of(config, tensors.read(weights), _tokenizer(folder, config), weights, *_arguments(arguments))
        found.spaces = tensors.spaces(weights)
        return found

    @classmethod
    def of(
        cls,
        said: Mapping[str, object],
        stored: Mapping[str, Tensor],
        tokenizer: Tokenizer | PublishedTokenizer,
        source: str | Path,
        *,
        layer: int = -1,
        masked: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> ClipTextEncoder:
        """The text encoder of a config and tensors, as published: with transformers' prefix `text_model.` or without.

        Its weights are taken as `dtype`.

        Raises:
            ValueError: the config or the tensors are no CLIP's, or do not fit each other or the tokenizer.
        """
        if said.get("use_attention_mask"):
            raise ValueError(
                f"use_attention_mask={said['use_attention_mask']!r} of {source}: supported is to leave it out"
            )
        try:
            config = CLIPTextConfig(**{field: said[field] for field in FIELDS if field in said})
        except Exception as error:  # the library checks with many kinds of error
            raise ValueError(f"{source} is not the config of a CLIP text tower: {error}") from error
        plain = not any(name.startswith(PREFIX) for name in stored)
        named = {PREFIX + n if plain and n != PROJECTION else n: tensor for n, tensor in stored.items()}
        return cls._of(config, named, tokenizer, source, layer, masked, dtype)

    @classmethod
    def _of(
        cls,
        config: CLIPTextConfig,
        stored: Mapping[str, Tensor],
        tokenizer: Tokenizer | PublishedTokenizer,
        source: str | Path,
        layer: int,
        masked: bool,
        dtype: torch.dtype = torch.float32,
    ) -> ClipTextEncoder:
        try:
            model = tensors.on_meta(lambda: CLIPTextModelWithProjection(config))
        except Exception as error:  # the library checks with many kinds of error
            raise ValueError(f"{source} is not the config of a CLIP text tower: {error!r}") from error
        if PROJECTION not in stored:
            model.text_projection = nn.Identity()
        # Not stored, so not on meta: see `tensors.on_meta`.
        model.text_model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
        tensors.assign(model, stored, source=source, ignore=LEFT_OVER, dtype=dtype)
        found = cls(model, tokenizer, layer=layer, masked=masked)
        found.name_by(stored, dtype)
        return found

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        named = tensors.naming({"text": self.fingerprint})
        tensors.write(folder / WEIGHTS, self.model.state_dict(), dtype, named)
        kind = "CLIPTextModel" if self.produces.pooled is None else "CLIPTextModelWithProjection"
        said = {"architectures": [kind], "model_type": "clip_text_model"}
        said |= {field: getattr(self.model.config, field) for field in FIELDS}
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")
        arguments: dict[str, object] = {"layer": self.layer, **({"masked": True} if self.masked else {})}
        if isinstance(self.tokenizer, PublishedTokenizer):
            files = [FILE.parent / name for name in self.tokenizer.save(folder / FILE.parent)]
            return arguments, [CONFIG, WEIGHTS, *files]
        (folder / FILE).parent.mkdir(exist_ok=True)
        (folder / FILE).write_bytes(self.tokenizer.model)
        return arguments, [CONFIG, WEIGHTS, FILE]

    @property
    def adaptable(self) -> dict[str, Adaptable]:
        """The text tower; transformers 5 calls its modules without the `text_model` that older files have."""
        names = [name for name, _ in self.model.named_modules()]
        return {"text_encoder": Adaptable(self.model, {n: (n, n.removeprefix("text_model.")) for n in names})}

    @cached_property
    def produces(self) -> TextSpec:
        config = self.model.config
        pooled = None if isinstance(self.model.text_projection, nn.Identity) else config.projection_dim
        space = f"clip-{self.fingerprint}{self.layer}"
        return TextSpec(config.hidden_size, space, self.tokenizer.window, pooled)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of `prompts`, on the encoder's device. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than the window.
        """
        ids = self.tokenizer.encode(prompts).to(self.model.text_model.embeddings.token_embedding.weight.device)
        out = self.model.text_model(ids, output_hidden_states=self.layer != -1)
        last = out.last_hidden_state
        chosen = last if self.layer == -1 else self.model.text_model.final_layer_norm(out.hidden_states[self.layer])
        mask = torch.arange(ids.shape[1], device=ids.device) <= self._ends(ids)[:, None] if self.masked else None
        return TextFeatures(chosen, mask, self._pool(ids, last), self.produces.space)

    def null(self, n: int) -> TextFeatures:
        """Features of `n` empty prompts: this encoder's "no text"."""
        return self.encode([""] * n)

    def _pool(self, ids: Tensor, last: Tensor) -> Tensor | None:
        if self.produces.pooled is None:
            return None
        return self.model.text_projection(last[torch.arange(len(ids), device=ids.device), self._ends(ids)])

    def _ends(self, ids: Tensor) -> Tensor:
        """The place of each prompt's end marker, the first of which counts where they are padding too."""
        return (ids == self.tokenizer.end).int().argmax(1)


def _tokenizer(folder: Path, config: CLIPTextConfig) -> Tokenizer | PublishedTokenizer:
    """Our own tokenizer, or the published one that a converted model keeps."""
    if (folder / FILE).is_file():
        return Tokenizer.load(folder, config.max_position_embeddings)
    if (folder / FILE.parent / "tokenizer_config.json").is_file():
        return PublishedTokenizer.load(folder / FILE.parent, "CLIPTokenizer", config.max_position_embeddings)
    return Tokenizer.load(folder, config.max_position_embeddings)  # which says what is missing


def _arguments(arguments: Mapping[str, object] | None) -> tuple[int, bool]:
    given = dict(arguments or {})
    layer, masked = given.pop("layer", -2), given.pop("masked", False)
    if given or not isinstance(layer, int) or not isinstance(masked, bool):
        raise ValueError(
            f"a CLIP text encoder takes the integer 'layer' and true or false for 'masked', not {dict(arguments or {})}"
        )
    return layer, masked
