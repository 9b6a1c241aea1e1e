"""The encoder of T5 (arXiv 1910.10683) as a text encoder, over transformers' implementation.

One class for the zoo's own and for the published ones: t5-v1_1-small ... xxl, and the copy of xxl in DeepFloyd IF.
Prompts are cut by sentencepiece, closed with </s> and padded to `length`; only what is not padding may be attended to.
The features at padding are nevertheless transformers' own, because IF's networks read them too: its encoder is made
with `masked` False, which tells them of no padding, and with `lower`, which puts prompts in small letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from zoo import published, tensors
from zoo.interface import TextFeatures, TextSpec
from zoo.text.named import NamedModel
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
USUAL = {"lower": False, "masked": True}
FIELDS = (  # of config.json, nothing else in it is listened to
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "eos_token_id", "pad_token_id"),
)


class T5TextEncoder(NamedModel):
    """Prompts to tokens [batch, length, width] and their mask; there is no pooled vector.

    `length` counts the end marker. `lower` puts prompts in small letters; with `masked` False there is no mask.
    Positions are relative, so any length will do, and what a prompt's own tokens are does not depend on it. Markers and
    sentinels (`<extra_id_0>`) that stand in a prompt are cut up like any other word.

    Raises:
        ValueError: the tokenizer is not the one that the encoder was made for.
    """

    model: T5EncoderModel

    def __init__(
        self, model: T5EncoderModel, tokenizer: Tokenizer, *, lower: bool = False, masked: bool = True
    ) -> None:
        super().__init__(model)
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
        self.tokenizer = tokenizer
        self.lower, self.masked = lower, masked

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, object] | None = None) -> Self:
        """The text encoder of a model folder: its `text_encoder/` in the transformers layout and its `tokenizer/`.

        A folder that is a T5 itself, with config.json, tensors (in one file or in shards) and spiece.model, gives its
        encoder. Arguments are `length`, 77 unless given, `lower` and `masked`.

        Raises:
            ValueError: a file is missing or damaged, tensors are missing, unexpected or misshapen, or the tokenizer
                is another model's.
        """
        length, how = _arguments(arguments)
        place = folder / FOLDER if (folder / FOLDER / CONFIG).is_file() else folder
        config, (stored, source) = _config(place / CONFIG), _stored(place)
        found = cls(_model(config, stored, source), _tokenizer(folder, length), **how)
        found.spaces = tensors.spaces(place / WEIGHTS) if (place / WEIGHTS).is_file() else {}
        return found

    @classmethod
    def of(
        cls,
        said: Mapping[str, object],
        stored: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        source: str | Path,
        *,
        lower: bool = False,
        masked: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The text encoder of a config and tensors, as published, its weights as `dtype`.

        Raises:
            ValueError: the config or the tensors are no T5's, or do not fit each other or the tokenizer.
        """
        try:
            config = _understood(said)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{source} is not the config of a T5: {error!r}") from error
        found = cls(_model(config, stored, source, dtype), tokenizer, lower=lower, masked=masked)
        found.name_by(_both(stored), dtype)
        return found.to(dtype)  # that one layer

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, object], list[Path]]:
        """Write what `load` reads, tensors as `dtype`; returns the arguments and the files, relative to `folder`."""
        write(folder / FOLDER, self.model, dtype, self.fingerprint)
        (folder / TOKENIZER).parent.mkdir(exist_ok=True)
        (folder / TOKENIZER).write_bytes(self.tokenizer.model)
        how = {"lower": self.lower, "masked": self.masked}
        said = {name: value for name, value in how.items() if value != USUAL[name]}
        return {"length": self.tokenizer.window, **said}, [FOLDER / CONFIG, FOLDER / WEIGHTS, TOKENIZER]

    @cached_property
    def produces(self) -> TextSpec:
        return TextSpec(self.model.config.d_model, f"t5-{self.fingerprint}", self.tokenizer.window)

    def _weights(self) -> Mapping[str, Tensor]:
        return _state(self.model)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of `prompts`, on the encoder's device. Warns of words that the vocabulary does not know.

        Raises:
            ValueError: a prompt is longer than `length`.
        """
        prompts = [prompt.lower().strip() for prompt in prompts] if self.lower else prompts
        ids = self.tokenizer.encode(prompts).to(self.model.shared.weight.device)
        mask = ids != self.tokenizer.padding
        tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return TextFeatures(tokens, mask if self.masked else None, None, self.produces.space)

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


def write(
    folder: Path, model: T5EncoderModel, dtype: torch.dtype | None = None, fingerprint: str | None = None
) -> None:
    """Write a T5 encoder in the transformers layout: config.json and model.safetensors, tensors as `dtype`.

    fingerprint: of the weights that these are, or are rounded from.
    """
    named = tensors.naming({"text": fingerprint or tensors.fingerprint(_state(model))})
    tensors.write(folder / WEIGHTS, _state(model), dtype, named)
    said = {"architectures": ["T5EncoderModel"], "model_type": "t5", "tie_word_embeddings": False}
    said |= {field: getattr(model.config, field) for field in FIELDS}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def _state(model: T5EncoderModel) -> dict[str, Tensor]:
    """Every tensor once."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != COPY}


def _config(path: Path) -> T5Config:
    try:
        return _understood(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the config of a T5: {error}") from error


def _understood(said: Mapping[str, object]) -> T5Config:
    if said["model_type"] != "t5":
        raise ValueError(f"its model_type is {said['model_type']!r}")
    return T5Config(**{field: said[field] for field in FIELDS if field in said})


def _model(
    config: T5Config, stored: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype = torch.float32
) -> T5EncoderModel:
    model = tensors.on_meta(lambda: T5EncoderModel(config))
    tensors.assign(model, _both(stored), source=source, ignore=LEFT_OVER, dtype=dtype)
    model.encoder.embed_tokens.weight = model.shared.weight
    return model


def _both(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is stored, its embedding under both names."""
    embedding = stored.get(EMBEDDING, stored.get(COPY))
    return {**stored, **({} if embedding is None else {EMBEDDING: embedding, COPY: embedding})}


def _stored(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of one file, or where there is none of the shards that an index names; and that file or index."""
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return tensors.read(folder / WEIGHTS), folder / WEIGHTS
    shards = published.shards(folder, SHARDS.name)
    return {name: tensor for shard in shards for name, tensor in tensors.read(shard).items()}, folder / SHARDS


def _tokenizer(folder: Path, length: int) -> Tokenizer:
    for file in TOKENIZERS:
        if (folder / file).is_file():
            return Tokenizer((folder / file).read_bytes(), length, begin=False)
    raise ValueError(f"{folder} has no tokenizer: expected one of {', '.join(map(str, TOKENIZERS))}")


def _arguments(arguments: Mapping[str, object] | None) -> tuple[int, dict[str, bool]]:
    given = dict(arguments or {})
    length = given.pop("length", LENGTH)
    how = {name: given.pop(name, usual) for name, usual in USUAL.items()}
    if given or not isinstance(length, int) or length < 1 or not all(isinstance(value, bool) for value in how.values()):
        raise ValueError(
            "a T5 text encoder takes the whole number of tokens 'length', and true or false for 'lower' and 'masked', "
            f"not {dict(arguments or {})}"
        )
    return length, {name: bool(value) for name, value in how.items()}
