"""BERT (arXiv 1810.04805) as a text encoder, over transformers' implementation: what Taiyi Stable Diffusion reads.

Prompts are padded to the window, and every position is attended to (mask None), padding included, as Taiyi was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from zoo import tensors
from zoo.interface import TextFeatures, TextSpec
from zoo.text.named import NamedModel
from zoo.text.pretrained import PublishedTokenizer

CONFIG = Path("text_encoder") / "config.json"
WEIGHTS = Path("text_encoder") / "model.safetensors"
TOKENIZER = Path("tokenizer")
LEFT_OVER = (r"embeddings\.position_ids", r"embeddings\.token_type_ids", r"cls\..*")
PREFIX = "bert."  # of a BERT that was trained with a head
FIELDS = (  # of config.json, nothing else in it is listened to
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
)


class BertTextEncoder(NamedModel):
    """Prompts to tokens [batch, window, width], the last hidden layer; there is no pooled vector.

    Raises:
        ValueError: the tokenizer is not the one that the encoder was made for.
    """

    model: BertModel

    def __init__(self, model: BertModel, tokenizer: PublishedTokenizer) -> None:
        super().__init__(model)
        config = model.config
        if len(tokenizer) > config.vocab_size or tokenizer.window > config.max_position_embeddings:
            raise ValueError(
                f"the tokenizer ({len(tokenizer)} pieces, window {tokenizer.window}) is not the one this BERT was made "
                f"for ({config.vocab_size} pieces, window {config.max_position_embeddings})"
            )
        self.tokenizer = tokenizer

    @classmethod
    def of(
        cls,
        said: Mapping[str, object],
        stored: Mapping[str, Tensor],
        tokenizer: PublishedTokenizer,
        source: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> BertTextEncoder:
        """The encoder of a config and tensors, as published, its weights as `dtype`.

        Raises:
            ValueError: the config or the tensors are no BERT's, or do not fit each other or the tokenizer.
        """
        if said.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(f"position_embedding_type={said['position_embedding_type']!r}: supported is 'absolute'")
        try:
            config = BertConfig(**{field: said[field] for field in FIELDS if field in said})
            model = tensors.on_meta(lambda: BertModel(config, add_pooling_layer="pooler.dense.weight" in stored))
        except Exception as error:  # the library checks with many kinds of error
            raise ValueError(f"{source} is not the config of a BERT: {error}") from error
        # Not stored, so not on meta: see `tensors.on_meta`.
        model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
        model.embeddings.token_type_ids = torch.zeros(1, config.max_position_embeddings, dtype=torch.long)
        plain = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
        tensors.assign(model, plain, source=source, ignore=LEFT_OVER, dtype=dtype)
        found = cls(model, tokenizer)
        found.name_by(plain, dtype)
        return found

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object] | None = None) -> BertTextEncoder:
        """The text encoder of a model folder; its one argument is `window`, by default all that there is room for.

        Raises:
            ValueError: a file is missing or damaged, or tensors are missing, unexpected or misshapen.
        """
        given = dict(arguments or {})
        window = given.pop("window", None)
        if given or not (window is None or isinstance(window, int)):
            raise ValueError(
                f"a BERT text encoder takes one argument, the integer 'window', not {dict(arguments or {})}"
            )
        try:
            said = json.loads((folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG} is not the config of a BERT: {error}") from error
        longest = window or int(said.get("max_position_embeddings", 512))
        tokenizer = PublishedTokenizer.load(folder / TOKENIZER, "BertTokenizer", longest)
        found = cls.of(said, tensors.read(folder / WEIGHTS), tokenizer, folder / WEIGHTS)
        found.spaces = tensors.spaces(folder / WEIGHTS)
        return found

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        named = tensors.naming({"text": self.fingerprint})
        tensors.write(folder / WEIGHTS, self.model.state_dict(), dtype, named)
        said = {"architectures": ["BertModel"], "model_type": "bert"}
        said |= {field: getattr(self.model.config, field) for field in FIELDS}
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")
        files = [TOKENIZER / name for name in self.tokenizer.save(folder / TOKENIZER)]
        return {"window": self.tokenizer.window}, [CONFIG, WEIGHTS, *files]

    @cached_property
    def produces(self) -> TextSpec:
        return TextSpec(self.model.config.hidden_size, f"bert-{self.fingerprint}", self.tokenizer.window)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of `prompts`, on the encoder's device. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than the window.
        """
        ids = self.tokenizer.encode(prompts).to(self.model.embeddings.word_embeddings.weight.device)
        return TextFeatures(self.model(ids).last_hidden_state, None, None, self.produces.space)

    def null(self, n: int) -> TextFeatures:
        """Features of `n` empty prompts: this encoder's "no text"."""
        return self.encode([""] * n)
