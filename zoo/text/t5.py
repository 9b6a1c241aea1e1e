"""The encoder of T5 (arXiv 1910.10683) as a text encoder, over transformers' implementation.

One class for the zoo's own and for the published ones: t5-v1_1-small ... xxl, and the copy of xxl in DeepFloyd IF.
Prompts are cut by sentencepiece, closed with </s> and padded to `length`; only what is not padding may be attended to.
The features at padding are nevertheless transformers' own, because IF's networks read them too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from zoo import tensors
from zoo.interface import TextFeatures, TextSpec
from zoo.text.tokenizer import Tokenizer

FOLDER = Path("text_encoder")
CONFIG = Path("config.json")
WEIGHTS = Path("model.safetensors")
SHARDS = Path("model.safetensors.index.json")
TOKENIZER = Path("tokenizer") / "spiece.model"
TOKENIZERS = (TOKENIZER, Path("spiece.model"), Path("tokenizer") / "tokenizer.model")  # first in a pipeline, then alone
EMBEDDING, COPY = "shared.weight", "encoder.embed_tokens.weight"  # one tensor, of which a file has either name or both
LEFT_OVER = (r"decoder\..*", r"lm_head\..*")
LENGTH = 77  # of DeepFloyd IF
FIELDS = (  # of config.json, nothing else in it is listened to
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "eos_token_id", "pad_token_id"),
)


class T5TextEncoder(nn.Module):
    """Prompts to tokens [batch, length, width] and their mask; there is no pooled vector.

    `length` counts the end marker. Positions are relative, so any length will do, and what a prompt's own tokens are
    does not depend on it. Markers and sentinels (`<extra_id_0>`) that stand in a prompt are cut up like any other word.

    Raises:
        ValueError: the tokenizer is not the one that the encoder was made for.
    """

    def __init__(self, model: T5EncoderModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = model.config
        theirs, made_for = (
            (tokenizer.begin, tokenizer.end, tokenizer.padding),
            (None, config.eos_token_id, config.pad_token_id),
        )
        if len(tokenizer) > config.vocab_size or theirs != made_for:
            raise ValueError(
                f"the tokenizer ({len(tokenizer)} pieces; begin, end and padding {theirs}) is not the one this T5 was "
                f"made for (at most {config.vocab_size} pieces; {made_for})"
            )
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object] | None = None) -> Self:
        """The text encoder of a model folder: its `text_encoder/` in the transformers layout and its `tokenizer/`.

        A folder that is a T5 itself, with config.json, tensors (in one file or in shards) and spiece.model, gives its
        encoder. The one argument is `length`, 77 unless given.

        Raises:
            ValueError: a file is missing or damaged, tensors are missing, unexpected or misshapen, or the tokenizer
                is another model's.
        """
        length = _length(arguments)
        place = folder / FOLDER if (folder / FOLDER / CONFIG).is_file() else folder
        config = _config(place / CONFIG)
        stored = _stored(place)
        model = tensors.on_meta(lambda: T5EncoderModel(config))
        embedding = stored.get(EMBEDDING, stored.get(COPY))
        if embedding is not None:
            stored[EMBEDDING] = stored[COPY] = embedding
        tensors.assign(model, stored, source=place, ignore=LEFT_OVER)
        model.encoder.embed_tokens.weight = model.shared.weight
        return cls(model, _tokenizer(folder, length))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        write(folder / FOLDER, self.model, dtype)
        (folder / TOKENIZER).parent.mkdir(exist_ok=True)
        (folder / TOKENIZER).write_bytes(self.tokenizer.model)
        return {"length": self.tokenizer.window}, [FOLDER / CONFIG, FOLDER / WEIGHTS, TOKENIZER]

    @cached_property
    def produces(self) -> TextSpec:
        space = f"t5-{tensors.fingerprint(_state(self.model))}"
        return TextSpec(self.model.config.d_model, space, self.tokenizer.window)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of `prompts`, on the encoder's device. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than `length`.
        """
        ids = self.tokenizer.encode(prompts).to(self.model.shared.weight.device)
        mask = ids != self.tokenizer.padding
        tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return TextFeatures(tokens, mask, None, self.produces.space)

    def null(self, n: int) -> TextFeatures:
        """Features of `n` empty prompts, </s> alone: this encoder's "no text"."""
        return self.encode([""] * n)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved and cast like any module, but for one layer: what `wo` puts out overflows in float16."""
        super()._apply(fn, recurse)
        for name, module in self.model.named_modules():
            if name.endswith(".wo") and module.weight.dtype == torch.float16:
                module.float()
        return self


def write(folder: Path, model: T5EncoderModel, dtype: torch.dtype | None = None) -> None:
    """Write a T5 encoder in the transformers layout: config.json and model.safetensors, tensors as `dtype`."""
    tensors.write(folder / WEIGHTS, _state(model), dtype)
    said = {"architectures": ["T5EncoderModel"], "model_type": "t5", "tie_word_embeddings": False}
    said |= {field: getattr(model.config, field) for field in FIELDS}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def _state(model: T5EncoderModel) -> dict[str, Tensor]:
    """Every tensor once."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != COPY}


def _config(path: Path) -> T5Config:
    try:
        said = json.loads(path.read_text("utf-8"))
        if said["model_type"] != "t5":
            raise ValueError(f"its model_type is {said['model_type']!r}")
        return T5Config(**{field: said[field] for field in FIELDS if field in said})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the config of a T5: {error}") from error


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of the shards that an index names."""
    if not (folder / SHARDS).is_file():
        return tensors.read(folder / WEIGHTS)
    try:
        shards = sorted(set(json.loads((folder / SHARDS).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / SHARDS} is not an index of shards: {error}") from error
    return {name: tensor for shard in shards for name, tensor in tensors.read(folder / shard).items()}


def _tokenizer(folder: Path, length: int) -> Tokenizer:
    for file in TOKENIZERS:
        if (folder / file).is_file():
            return Tokenizer((folder / file).read_bytes(), length, begin=False)
    raise ValueError(f"{folder} has no tokenizer: expected one of {', '.join(map(str, TOKENIZERS))}")


def _length(arguments: Mapping[str, object] | None) -> int:
    given = dict(arguments or {})
    length = given.pop("length", LENGTH)
    if given or not isinstance(length, int) or length < 1:
        raise ValueError(
            f"a T5 text encoder takes one argument, the whole number of tokens 'length', not {dict(arguments or {})}"
        )
    return length
