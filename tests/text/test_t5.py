"""The T5 text encoder against transformers, tokenizer included, in the layouts in which T5 is published."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from zoo import tensors
from zoo.config import PartConfig
from zoo.data.captions import caption
from zoo.data.scenes import random_scene
from zoo.finite import checked_later
from zoo.interface import TextEncoder
from zoo.text import t5
from zoo.text.t5 import T5TextEncoder
from zoo.text.tokenizer import Tokenizer, UnknownWords
from zoo.weights import load_part, save_part

PROMPTS = ["a large pink butterfly on a mint background", "a star", "", "  A  red　circle. ", "粉色的蝴蝶,卡通"]
pytestmark = pytest.mark.filterwarnings("ignore::zoo.text.tokenizer.UnknownWords")
DATA = Path(__file__).parent.parent / "data" / "published"
PUBLISHED_SIZES = {  # of v1.1, encoders alone
    **{"small": 35_332_800, "base": 109_628_544, "large": 341_231_104, "xl": 1_223_527_424, "xxl": 4_762_310_656}
}
SHAPES = {
    "gated": {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_heads": 2, "d_kv": 8},
    "relu": {"feed_forward_proj": "relu", "num_layers": 1, "num_heads": 4, "d_kv": 4},
    "near": {  # heads that are together wider than the model, and buckets that saturate within a prompt
        **{"feed_forward_proj": "gated-gelu", "num_layers": 2, "num_heads": 3, "d_kv": 12},
        **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    },
}


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A sentencepiece model with T5's own markers: padding 0, </s> 1, unknown 2, and no <s>."""
    model, rng = io.BytesIO(), np.random.default_rng(0)
    said = [caption(random_scene(rng), language, rng) for _ in range(400) for language in ("en", "zh")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*said, *(text + "." for text in said[::9])]),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def published(folder: Path, spiece: bytes, seed: int = 0, decoder: bool = False, **shape: object) -> Path:
    """A T5 with random weights as transformers saves it, sentinels and unused rows after the vocabulary."""
    torch.manual_seed(seed)
    config = T5Config(vocab_size=512, d_model=32, d_ff=48, tie_word_embeddings=False, **{**SHAPES["gated"], **shape})
    model = (T5ForConditionalGeneration if decoder else T5EncoderModel)(config)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name or "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter, mean=float("layer_norm" in name), std=0.5)
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(spiece)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, spiece: bytes) -> Path:
    return published(tmp_path_factory.mktemp("t5"), spiece)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> T5TextEncoder:
    return T5TextEncoder.load(folder, {"length": 21})


def test_is_a_text_encoder(encoder: T5TextEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    text = encoder.encode(["a star", "a red star"])
    spec = encoder.produces
    assert text.tokens.shape == (2, spec.length, spec.width) == (2, 21, 32)
    assert text.pooled is None
    assert spec.pooled is None
    assert text.mask is not None
    assert text.mask.dtype == torch.bool
    assert text.mask.sum(1).tolist() == [len(encoder.tokenizer.pieces.encode(t)) + 1 for t in ("a star", "a red star")]
    assert text.space == spec.space
    assert not text.tokens.requires_grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [17, 33, 77])
def test_as_transformers_computes_it(tmp_path: Path, spiece: bytes, shape: str, length: int) -> None:
    """Tokens and mask, at padding too: text to ids by T5's tokenizer, ids to features by its encoder."""
    published(tmp_path, spiece, **SHAPES[shape])
    prompts = [*PROMPTS, "a 龘 zeppelin"]
    theirs = T5EncoderModel.from_pretrained(tmp_path).eval()
    ids = T5Tokenizer.from_pretrained(tmp_path)(
        prompts, padding="max_length", max_length=length, return_tensors="pt", truncation=True
    )
    with torch.no_grad():
        expected = theirs(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
    text = T5TextEncoder.load(tmp_path, {"length": length}).encode(prompts)
    assert torch.equal(text.mask, ids.attention_mask.bool())
    torch.testing.assert_close(text.tokens, expected, atol=1e-5, rtol=1e-5)


def test_a_prompt_depends_neither_on_its_batch_nor_on_the_length(folder: Path, encoder: T5TextEncoder) -> None:
    together, longer = encoder.encode(PROMPTS), T5TextEncoder.load(folder).encode(PROMPTS)
    assert longer.tokens.shape[1] == 77
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(encoder.encode([prompt]).tokens[0], together.tokens[i], atol=1e-5, rtol=1e-5)
    own = together.mask
    torch.testing.assert_close(longer.tokens[:, :21][own], together.tokens[own], atol=1e-5, rtol=1e-5)
    assert longer.space == together.space


def test_null_is_the_end_marker_alone(encoder: T5TextEncoder) -> None:
    null = encoder.null(2)
    assert torch.equal(null.tokens, encoder.encode(["", ""]).tokens)
    assert null.mask.tolist() == [[True] + [False] * 20] * 2
    assert encoder.tokenizer.encode([""]).tolist() == [[1] + [0] * 20]


def test_nothing_is_dropped_silently(encoder: T5TextEncoder) -> None:
    (word,) = (piece for piece in ("的", "▁a") if encoder.tokenizer.pieces.encode(piece, out_type=str) == [piece])
    assert encoder.encode([word * 20]).mask.all()
    with pytest.raises(ValueError, match=f"21 tokens long and the text encoder reads at most 20: shorten '{word * 2}"):
        encoder.encode(["a star", word * 21])
    with pytest.warns(UnknownWords, match="does not know '龘'"):
        encoder.encode(["a 龘"])


def test_markers_in_a_prompt_are_words(encoder: T5TextEncoder) -> None:
    ids = encoder.tokenizer.encode(["<pad></s><extra_id_0>"])[0]
    spoken = ids[: ids.tolist().index(encoder.tokenizer.end)]
    assert not (spoken == encoder.tokenizer.padding).any()
    assert (spoken < len(encoder.tokenizer)).all()


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded(tmp_path: Path, encoder: T5TextEncoder, dtype: torch.dtype | None) -> None:
    config = save_part(tmp_path, encoder, dtype=dtype)
    assert config.kind == "t5-text"
    again = load_part(tmp_path, config)
    assert isinstance(again, T5TextEncoder)
    assert again.produces == encoder.produces
    torch.testing.assert_close(
        again.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens, atol=2e-2 if dtype else 0, rtol=0
    )
    assert len(load_file(tmp_path / "text_encoder/model.safetensors")) == len(encoder.model.state_dict()) - 1
    theirs = T5EncoderModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).eval()
    text = again.encode(PROMPTS)
    with torch.no_grad():
        out = theirs(input_ids=again.tokenizer.encode(PROMPTS), attention_mask=text.mask)
    torch.testing.assert_close(text.tokens, out.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert T5Tokenizer.from_pretrained(tmp_path / "tokenizer")("a red star").input_ids == [
        *encoder.tokenizer.pieces.encode("a red star"),
        encoder.tokenizer.end,
    ]


def test_space_tells_weights_apart(tmp_path: Path, spiece: bytes, encoder: T5TextEncoder) -> None:
    assert T5TextEncoder.load(published(tmp_path, spiece, seed=1)).produces.space != encoder.produces.space


def test_the_encoder_of_a_whole_t5(tmp_path: Path, spiece: bytes) -> None:
    whole = published(tmp_path, spiece, decoder=True)
    theirs = T5ForConditionalGeneration.from_pretrained(whole).eval()
    found = T5TextEncoder.load(whole)
    text = found.encode(PROMPTS)
    with torch.no_grad():
        expected = theirs.encoder(input_ids=found.tokenizer.encode(PROMPTS), attention_mask=text.mask)
    torch.testing.assert_close(text.tokens, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_layout_of_deepfloyd_if(tmp_path: Path, folder: Path, encoder: T5TextEncoder) -> None:
    """text_encoder/ in shards, tokenizer/ beside it; the embedding under both of its names, or under the second."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder").mkdir()
    shutil.copy(folder / "spiece.model", tmp_path / "tokenizer/spiece.model")
    shutil.copy(folder / "config.json", tmp_path / "text_encoder/config.json")
    stored = load_file(folder / "model.safetensors")
    stored["encoder.embed_tokens.weight"] = stored["shared.weight"].clone()
    for names in (sorted(stored), sorted(stored.keys() - {"shared.weight"})):
        files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({n: stored[n] for n in names if files[n] == file}, tmp_path / "text_encoder" / file)
        index = tmp_path / "text_encoder/model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
        found = T5TextEncoder.load(tmp_path, {"length": 21})
        assert found.produces == encoder.produces
        assert found.model.encoder.embed_tokens.weight is found.model.shared.weight
        assert torch.equal(found.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens)


def in_shards(folder: Path, source: Path) -> set[str]:
    """Put the tensors of a T5 into two files and an index there; returns the names of all three."""
    stored = load_file(source / "model.safetensors")
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(stored))}
    for file in set(files.values()):
        save_file({n: stored[n] for n in stored if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return {*files.values(), "model.safetensors.index.json"}


def test_shards_are_listed_like_other_files(tmp_path: Path, folder: Path, encoder: T5TextEncoder) -> None:
    place = tmp_path / "text_encoder"
    said = save_part(tmp_path, encoder).model_dump()
    names = in_shards(place, folder)
    sums = {f"text_encoder/{name}": tensors.sha256(place / name) for name in names}
    with checked_later():
        load_part(tmp_path, PartConfig.model_validate(said))  # one file is there, so that the shards are not looked at
        (place / "model.safetensors").unlink()
        del said["files"]["text_encoder/model.safetensors"]
        kept = dict(said["files"])
        for missing in names:
            files = kept | {name: sum for name, sum in sums.items() if name != f"text_encoder/{missing}"}
            with pytest.raises(ValueError, match=f"{missing} cannot be checked"):
                load_part(tmp_path, PartConfig.model_validate(said | {"files": files}))
        again = load_part(tmp_path, PartConfig.model_validate(said | {"files": kept | sums}))
    assert torch.equal(again.encode(PROMPTS).tokens, encoder.encode(PROMPTS).tokens)  # type: ignore[union-attr]


def test_shards_lie_in_the_folder(tmp_path: Path, folder: Path) -> None:
    inner = tmp_path / "inner"
    shutil.copytree(folder, inner, ignore=shutil.ignore_patterns("model.safetensors"))
    shutil.copy(folder / "model.safetensors", tmp_path / "model.safetensors")
    for name, message in (("../model.safetensors", "is not a path inside"), (3, "has no valid weight_map")):
        (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": name}}))
        with pytest.raises(ValueError, match=message):
            T5TextEncoder.load(inner)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_taken_in_another_type_and_named_as_they_are_stored(
    folder: Path, encoder: T5TextEncoder, dtype: torch.dtype
) -> None:
    said, stored = json.loads((folder / "config.json").read_text("utf-8")), load_file(folder / "model.safetensors")
    made = T5TextEncoder.of(said, stored, Tokenizer(encoder.tokenizer.model, 21, begin=False), folder, dtype=dtype)
    assert made.produces == encoder.produces
    cast = T5TextEncoder.load(folder, {"length": 21}).to(dtype)
    expected = cast.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.state_dict().items())
    assert {n: t.dtype for n, t in made.state_dict().items()} == {n: t.dtype for n, t in expected.items()}


@pytest.mark.parametrize(("size", "parameters"), PUBLISHED_SIZES.items())
def test_published_shapes(tmp_path: Path, size: str, parameters: int) -> None:
    """Every tensor of the published v1.1 encoders has a place of its shape; the largest is DeepFloyd IF's."""
    published = json.loads(gzip.decompress((DATA / "t5.json.gz").read_bytes()))
    (tmp_path / "config.json").write_text(json.dumps(published["configs"][f"t5-v1_1-{size}"]))
    config = t5._config(tmp_path / "config.json")
    model = tensors.on_meta(lambda: T5EncoderModel(config))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(tensor.numel() for tensor in t5._state(model).values()) == parameters
    assert shapes == published["keys"].get(f"t5-v1_1-{size}", shapes)
    assert (config.feed_forward_proj, config.pad_token_id, config.eos_token_id) == ("gated-gelu", 0, 1)


def test_half_precision_does_not_overflow(folder: Path) -> None:
    """Published T5s overflow in float16 in one layer, which therefore stays as it is."""
    encoder = T5TextEncoder.load(folder, {"length": 21})
    for block in encoder.model.encoder.block:
        block.layer[-1].DenseReluDense.wo.weight.mul_(1e5)
    expected = encoder.encode(PROMPTS)
    text = encoder.to(torch.float16).encode(PROMPTS)
    assert encoder.model.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float16
    assert text.tokens.isfinite().all()
    torch.testing.assert_close(text.tokens.float(), expected.tokens, atol=0.05, rtol=0.05)


def test_errors(encoder: T5TextEncoder, folder: Path, tmp_path: Path, vocabulary: bytes) -> None:
    for arguments in ({"depth": 3}, {"length": "long"}, {"length": 0}):
        with pytest.raises(ValueError, match="takes the whole number of tokens"):
            T5TextEncoder.load(folder, arguments)
    with pytest.raises(ValueError, match="not the config of a T5"):
        T5TextEncoder.load(tmp_path)
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    shutil.copy(folder / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has no tokenizer: expected one of tokenizer/spiece.model"):
        T5TextEncoder.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(vocabulary)  # with other markers
    with pytest.raises(ValueError, match="is not the one this T5 was made for"):
        T5TextEncoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="its model_type is 'clip'"):
        T5TextEncoder.load(tmp_path)
    with pytest.raises(ValueError, match="must have unknown, begin, end and padding"):
        Tokenizer(encoder.tokenizer.model, 21)  # T5's has no <s>
