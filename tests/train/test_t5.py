"""Cutting captions up, and a tiny T5 through the whole of training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import T5EncoderModel

from tests.train.ends import check_resumed
from zoo.data.captions import caption, plural
from zoo.data.scenes import COLOURS, SHAPES, Description, Item, heldout
from zoo.interface import TextFeatures, TextSpec
from zoo.text.t5 import T5TextEncoder
from zoo.train import RecipeError, TrainingError, gates, run, t5
from zoo.train.facets import CLASSES, CrossAttentionProbe
from zoo.train.recipe import read_toml, validate

RECIPE = """
part = "t5"
steps = 4
batch = 4
threads = 1
log_every = 1
model = {width = 32, heads = 2, head_width = 16, feed_forward = 48, encoder_layers = 2, decoder_layers = 1}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, scene_words: Path) -> Path:
    """A folder with a tiny trained T5."""
    home = tmp_path_factory.mktemp("home")
    (home / "t5.toml").write_text(f"tokenizer = '{scene_words}'\n{RECIPE}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t5, "FRESH", 8)
        run(home / "t5.toml", [f"out={home / 't5'}"], device="cpu")
    return home


@pytest.fixture(autouse=True)
def _few_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5, "FRESH", 8)


def task(home: Path, *overrides: str) -> t5.T5Task:
    return t5.T5Task(validate(t5.T5Recipe, read_toml(home / "t5.toml", overrides)), torch.device("cpu"))


@pytest.mark.parametrize("length", [1, 2, 5, 24, 400])
@pytest.mark.parametrize("rate", [0.15, 0.5, 0.99])
def test_holes_are_as_many_and_as_long_as_asked(length: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [t5.holes(length, rate, 3.0, 200, rng) for _ in range(200)]
    assert {len(lost) for lost in drawn} == {length}
    wanted = max(1, min(round(length * rate), length - 1))
    assert {sum(lost) for lost in drawn} == {wanted}
    spans = [len(re.findall("1+", "".join(map(str, map(int, lost))))) for lost in drawn]
    assert set(spans) == {min(max(1, round(wanted / 3)), length - wanted + 1)}
    if length == 24 and rate < 0.9:
        assert np.abs(np.mean(drawn, axis=0) - rate).max() < 0.2, "every place is cut out about as often"


def test_holes_keep_to_the_sentinels_there_are() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lost = "".join(map(str, map(int, t5.holes(60, 0.5, 1.0, 4, rng))))
        assert len(re.findall("1+", lost)) == 4
        assert lost.count("1") == 30


def test_a_hole_for_each_span_and_none_across_two_captions() -> None:
    lost = [False, True, True, True, False, True]
    source, target = t5.corrupted([[11, 12, 13], [14, 15, 16]], lost, first=99, end=1)
    assert source == [11, 99, 1, 98, 15, 97, 1]
    assert target == [99, 12, 13, 98, 14, 97, 16, 1]


def test_source_and_target_together_are_the_captions(home: Path) -> None:
    """Putting back what was cut out gives one caption or two, mostly in two languages."""
    trained = task(home)
    tokenizer, size = trained.tokenizer, len(trained.tokenizer)
    seen = set()
    for seed in range(60):
        source, target = trained._example(np.random.default_rng(seed), 0.3)
        sentinels = [i for i in source if i >= size]
        assert sentinels == list(range(size + 31, size + 31 - len(sentinels), -1))
        assert [i for i in target if i >= size] == sentinels
        assert target[-1] == tokenizer.end
        starts = [target.index(sentinel) for sentinel in sentinels] + [len(target) - 1]
        inside = {i: target[a + 1 : b] for i, a, b in zip(sentinels, starts[:-1], starts[1:], strict=True)}
        whole = [piece for i in source for piece in inside.get(i, [i])]
        assert whole[-1] == tokenizer.end
        assert whole.count(tokenizer.end) in (1, 2)
        texts = [tokenizer.pieces.decode(whole[: whole.index(tokenizer.end)])]
        texts += [tokenizer.pieces.decode(whole[whole.index(tokenizer.end) + 1 : -1])] * (
            whole.count(tokenizer.end) - 1
        )
        seen.add(" ".join("zh" if re.search("[\u4e00-\u9fff]", text) else "en" for text in texts))
    assert seen == {"en", "zh", "en zh", "zh en", "en en", "zh zh"}


def test_what_tells_is_cut_out_of_one_text_and_stays_in_the_other(home: Path) -> None:
    trained = task(home, "salient=1")
    tokenizer, size, hits = trained.tokenizer, len(trained.tokenizer), set[int]()
    rng = np.random.default_rng(0)
    texts = [
        tokenizer.pieces.encode(text) for text in ("a red star left of a blue heart", "红色的星星在蓝色的心形左边")
    ]
    for _ in range(200):
        lost = trained._telling(texts, rng)
        parts = lost[: len(texts[0])], lost[len(texts[0]) :]
        assert not (any(parts[0]) and any(parts[1]))
        hits |= {which for which, part in enumerate(parts) if any(part)}
        gone = [piece for piece, hole in zip(texts[0] + texts[1], lost, strict=True) if hole]
        assert set(gone) <= set(trained.telling)
        assert all(piece < size for piece in gone)
    assert hits == {0, 1}
    rows = [trained._telling(texts, rng) for _ in range(400)]
    shares = np.mean([row[: len(texts[0])] for row in rows if any(row[: len(texts[0])])], axis=0)
    for piece, share in zip(texts[0], shares, strict=True):
        assert share == pytest.approx(trained.telling.get(piece, 0.0), abs=0.12), tokenizer.pieces.id_to_piece(piece)
    mark = tokenizer.pieces.piece_to_id("▁")
    for word in ("red", "stars", "红色", "left", "左边"):
        assert set(tokenizer.pieces.encode(word)) - {mark} <= set(trained.telling), word
    assert mark not in trained.telling


def test_no_held_out_combination_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Description] = []

    def noted(said: Description, language: str, rng: np.random.Generator) -> str:
        told.append(said)
        return caption(said, language, rng)

    trained = task(home)
    monkeypatch.setattr(t5, "caption", noted)
    trained._batch(600, np.random.default_rng(0), single=0.2)
    pairs, together = heldout()
    assert len(told) > 600
    assert not any((item.colour, item.shape) in pairs for said in told for item in said.items)
    assert not any(frozenset(item.shape for item in said.items) in together for said in told)
    assert sum(said.relation is not None for said in told) > 200
    assert any(said == Description((Item(said.items[0].shape),), said.count) for said in told), "some say little"


def test_the_trained_t5_is_read_back(home: Path) -> None:
    final = home / "t5" / "final"
    encoder = T5TextEncoder.load(final, {"length": 32})
    text = encoder.encode(["a red star", "红色的星星"])
    assert text.tokens.shape == (2, 32, 32)
    assert text.tokens.isfinite().all()
    stored = load_file(final / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert stored["shared.weight"].shape == (len(encoder.tokenizer) + 32, 32)
    theirs = T5EncoderModel.from_pretrained(final, dtype=torch.float32).eval()
    ids = encoder.tokenizer.encode(["a red star", "红色的星星"])
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=text.mask)
    torch.testing.assert_close(text.tokens, out.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_what_is_exported_is_the_encoder_that_was_trained(home: Path, tmp_path: Path) -> None:
    trained = task(home)
    torch.manual_seed(0)
    model = trained.build().eval()
    trained.export(model, tmp_path)
    encoder = T5TextEncoder.load(tmp_path, {"length": 32})
    ids = encoder.tokenizer.encode(["a red star"])
    with torch.no_grad():
        expected = model["t5"].encoder(input_ids=ids, attention_mask=ids != encoder.tokenizer.padding).last_hidden_state
    torch.testing.assert_close(encoder.encode(["a red star"]).tokens, expected, atol=2e-2, rtol=2e-2)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(home: Path) -> None:
    check_resumed(home / "t5.toml", home / "parts", "checkpoint_every=2")


def test_an_encoder_that_was_exported_can_learn_on(
    home: Path, tmp_path: Path, vocabulary: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that shipped in eight bits. The decoder goes on reading the embedding that it shares."""
    shipped, out = tmp_path / "shipped", tmp_path / "more"
    T5TextEncoder.load(home / "t5" / "final").save(shipped, torch.int8)
    for init in (home / "t5" / "final", shipped):
        trained = task(home)
        model = trained.build()
        trained.start(model, init)
        assert model["t5"].encoder.embed_tokens.weight is model["t5"].decoder.embed_tokens.weight
        run(home / "t5.toml", [f"out={out / init.name}", f"init={init}", "optimiser.lr=1e-12"], device="cpu")
        assert f"{init} holds an encoder alone" in capsys.readouterr().out
        before, after = (T5TextEncoder.load(folder).model.state_dict() for folder in (init, out / init.name / "final"))
        assert all(torch.allclose(before[name], after[name], atol=2e-3) for name in before)
    with pytest.raises(TrainingError, match=r"does not fit \[model\]"):
        run(home / "t5.toml", [f"out={tmp_path / 'wide'}", f"init={shipped}", "model.feed_forward=64"], device="cpu")
    other = tmp_path / "other.model"
    other.write_bytes(vocabulary)
    with pytest.raises(TrainingError, match="was trained with another tokenizer than"):
        run(home / "t5.toml", [f"out={tmp_path / 'wide'}", f"init={shipped}", f"tokenizer={other}"], device="cpu")


def test_it_learns_to_restore(home: Path) -> None:
    """One batch learnt by heart: the decoder sees the pieces before the one it guesses, and not that one."""
    trained = task(home)
    torch.manual_seed(0)
    model, batch = trained.build(), trained.batch(0, np.random.default_rng(0))
    guessed = trained._guess(model, batch)
    other = batch | {"target": batch["target"].clone()}
    other["target"][:, 2:] = 7
    torch.testing.assert_close(trained._guess(model, other)[:, :3], guessed[:, :3])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss, metrics = trained.loss(model, batch, 0.0)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 4
    assert float(metrics["restored"]) > 0.5
    assert float(metrics["read"]) < 1.0


def test_one_text_goes_whole_and_is_told_by_the_other(home: Path) -> None:
    trained = task(home, "whole=1")
    end, size = trained.tokenizer.end, len(trained.tokenizer)
    for seed in range(20):
        source, target = trained._example(np.random.default_rng(seed), 0.0)
        assert (source[0] >= size) != (source[-2] >= size)
        assert sum(i >= size for i in source) == sum(i >= size for i in target) == 1
        assert source.count(end) == 2
        assert len(target) > 3


def test_heads_read_what_the_texts_say(home: Path) -> None:
    """Each text's facets stand beside it, in both languages, and the tokens that fill up the batch are not read."""
    trained = task(home, "readings=3")
    batch = trained.batch(0, np.random.default_rng(0))
    assert len(batch["text"]) == len(batch["facets"]) == 3 * len(batch["source"])
    words = [trained.tokenizer.pieces.decode([i for i in row if i > 3]) for row in batch["text"].tolist()]
    assert [bool(re.search("[\u4e00-\u9fff]", text)) for text in words] == [bool(i % 2) for i in range(len(words))]
    for text, facets in zip(words[::2], batch["facets"][::2].tolist(), strict=True):
        said = dict(zip(CLASSES, facets, strict=True))
        if said["colour"] >= 0:
            assert COLOURS[said["colour"]] in text
        if said["shape"] >= 0:
            assert SHAPES[said["shape"]] in text or plural(SHAPES[said["shape"]]) in text
    model = trained.build().eval()
    longer = batch | {"text": F.pad(batch["text"], (0, 5), value=trained.tokenizer.padding)}
    with torch.no_grad():
        for one, two in zip(trained._read(model, batch), trained._read(model, longer), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("override", "said"), [("corruption=0.6", "below corruption"), ("tokenizer=nowhere", "cannot be read")]
)
def test_recipes_that_cannot_be_used(home: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(home / "t5.toml", [f"out={home / 'wrong'}", override], device="cpu")


def test_the_probe_reads_nothing_that_is_masked() -> None:
    torch.manual_seed(0)
    probe, tokens, mask = CrossAttentionProbe(16), torch.randn(2, 6, 16), torch.arange(6) < torch.tensor([[4], [6]])
    noisy = torch.where(mask[..., None], tokens, torch.randn(2, 6, 16))
    for one, two, short in zip(probe(tokens, mask), probe(noisy, mask), probe(tokens[:1, :4]), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one[:1], short)
    assert not torch.allclose(probe(tokens)[0], probe(tokens, mask)[0])


class Reader:
    """A text encoder that tells only at its masked place which facet was said, and at the other place nothing."""

    produces = TextSpec(16, "reader", 2)

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask

    def encode(self, prompts: list[str]) -> TextFeatures:
        face = torch.tensor([any(w in p for w in ("face", "smil", "sprite", "笑", "精灵")) for p in prompts])
        tokens = torch.zeros(len(prompts), 2, 16)
        tokens[:, 1] = torch.where(face[:, None], 1.0, -1.0)
        return TextFeatures(tokens, None if self.mask is None else self.mask.expand(len(prompts), 2), None, "reader")

    def null(self, n: int) -> TextFeatures:
        return self.encode([""] * n)


def test_the_text_gate_respects_the_mask() -> None:
    seen = gates.text_gate(Reader(None), train=800, test=200)
    hidden = gates.text_gate(Reader(torch.tensor([True, False])), train=800, test=200)
    assert set(seen) == set(CLASSES)
    assert seen["face"] == 1.0
    assert hidden["face"] < 0.8


def test_the_gate_of_a_t5_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[T5TextEncoder] = []

    def gate(encoder: T5TextEncoder) -> dict[str, float]:
        given.append(encoder)
        return {"count": 1.0, "relation": 0.985}

    monkeypatch.setattr(gates, "text_gate", gate)
    missed = {"features": "text", "facet": "relation", "read": 0.985, "asked": gates.TEXT_GATE}
    read = {"count": 1.0, "relation": 0.985}
    assert gates.report(str(home / "t5" / "final")) == {"text": read, "missed": [missed], "passed": False}
    assert given[0].produces == T5TextEncoder.load(home / "t5" / "final", {"length": 32}).produces
    with pytest.raises(ValueError, match="does not say what model it is of"):
        gates.report(str(tmp_path))
