"""Pretraining T5 (arXiv 1910.10683) on captions alone: spans are cut out of them, and a decoder says what was there.

The facets of a scene are independent, so what is cut out of one caption could only be guessed. Most examples are
therefore a caption and its paraphrase in the other language: what is cut out of one can be read in the other, by a
model that knows which colour belongs to which object and which of two lies on the left. Random spans mostly hit words
that anyone could guess, so in part of the examples it is the telling words that go, out of one of the two texts
("salient spans", arXiv 2002.08909): the two sides word things differently, and only who has understood the other can
say them. And in part of them one text goes whole, so that every word of it teaches.

Which of two objects is which a text pair tells only him who already reads it, and spans alone never got there. So one
supervised task is mixed in, as T5's own authors did: heads read what a text says of each object off the encoder's
tokens. They, and the decoder, are dropped after training. No picture is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention, T5EncoderModel, T5ForConditionalGeneration

from zoo.data.captions import LANGUAGES, ZH_COLOUR, ZH_OBJECT, ZH_SIDES, caption, partial, plural
from zoo.data.scenes import COLOURS, SHAPES, Description, random_scene
from zoo.text import t5
from zoo.text.tokenizer import FILE
from zoo.train import TrainingError
from zoo.train.facets import ABSENT, CLASSES, CrossAttentionProbe, labels, misread
from zoo.train.recipe import Recipe, RecipeError, Table
from zoo.train.task import Batch, Image, Metrics, Task
from zoo.train.tokenizer import trained

# What a caption says of its objects, and of where they lie: the words that only its meaning tells.
NAMES = (*COLOURS, *SHAPES, *map(plural, SHAPES), *ZH_COLOUR.values(), *(word for word, _ in ZH_OBJECT.values()))
SIDES = (
    *(word for words in ZH_SIDES.values() for word in words),
    *["left", "right", "above", "below", "over", "under", "top", "bottom"],
)
SIDES_SEEN = (-1, 1, 0, None)  # of a head at first: before, after, both, and no matter where
FAR = 8.0  # the least that a head sees is exp(-8) of the most
FRESH = 256  # examples of each kind that `inspect` restores


class T5Model(Table):
    """The `[model]` table. Sentinels, which stand for what was cut out, are the last pieces of the vocabulary."""

    width: int = Field(192, ge=1)
    heads: int = Field(4, ge=1)
    head_width: int = Field(48, ge=1)
    feed_forward: int = Field(512, ge=1)  # of each of the two halves, one of which gates the other
    encoder_layers: int = Field(4, ge=1)
    decoder_layers: int = Field(2, ge=1)
    sentinels: int = Field(32, ge=2)


class T5Recipe(Recipe):
    """The recipe of a T5."""

    model: T5Model = T5Model()
    tokenizer: Path = Path("runs/tokenizer/final/tokenizer.model")
    corruption: float = Field(0.15, gt=0, lt=1)  # share of pieces that are cut out
    higher: float = Field(0.5, ge=0, le=1)  # share of examples of which more is cut out, up to `highest`
    highest: float = Field(0.5, gt=0, lt=1)
    span: float = Field(3.0, ge=1)  # mean length of what is cut out at one place
    single: float = Field(0.2, ge=0, le=1)  # share of examples that are one caption without its paraphrase
    alike: float = Field(0.4, ge=0, le=1)  # share of pairs that say it twice in one language, which is easier to learn
    whole: float = Field(0.3, ge=0, le=1)  # share of pairs of which one text is cut out whole
    salient: float = Field(
        0.6, ge=0, le=1
    )  # share of the other pairs of which one text loses what it says of its objects
    full: float = Field(0.7, ge=0, le=1)  # share of captions that say everything
    read: float = Field(0.2, ge=0)  # weight of each reading head, summed over facets
    readings: int = Field(2, ge=1)  # texts that are read for each example that is restored
    relations: float = Field(0.5, ge=0, le=1)  # share of scenes with a relation, beyond those drawn by chance


class T5Task(Task[T5Recipe]):
    """Batches of captions with holes, and of what was in them."""

    recipe_type = T5Recipe

    def __init__(self, recipe: T5Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        if recipe.highest < recipe.corruption:
            raise RecipeError(f"highest = {recipe.highest} is below corruption = {recipe.corruption}: raise it")
        self.tokenizer = trained(recipe.tokenizer, t5.LENGTH, begin=False)
        pieces = self.tokenizer.pieces
        spoken = [(word, 0.8) for word in NAMES] + [(word, 0.3) for word in SIDES]
        start = {pieces.piece_to_id("▁")}  # the mark of a word's beginning, which stands before any Chinese text
        self.telling = {piece: chance for word, chance in spoken for piece in set(pieces.encode(word)) - start}
        rng = np.random.default_rng([recipe.seed, 2**40])
        self.fresh = {"pair": self._batch(FRESH, rng, single=0.0), "single": self._batch(FRESH, rng, single=1.0)}

    def build(self) -> nn.Module:
        shape = self.recipe.model
        config = T5Config(
            vocab_size=len(self.tokenizer) + shape.sentinels,
            d_model=shape.width,
            d_kv=shape.head_width,
            d_ff=shape.feed_forward,
            num_layers=shape.encoder_layers,
            num_decoder_layers=shape.decoder_layers,
            num_heads=shape.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=self.tokenizer.padding,
            eos_token_id=self.tokenizer.end,
            decoder_start_token_id=self.tokenizer.padding,
            attn_implementation="eager",  # the fused kernel's backward pass is slow on a CPU
        )
        model = T5ForConditionalGeneration(config)
        for module in cast(nn.Module, model).modules():
            if hasattr(module, "act"):  # the same function as transformers' "gelu_new", in one pass over memory
                module.act = nn.GELU(approximate="tanh")
            if getattr(module, "has_relative_attention_bias", False):
                _see_near(cast(T5Attention, module))
        return nn.ModuleDict({"t5": cast(nn.Module, model), "reader": CrossAttentionProbe(shape.width)})

    def start(self, model: nn.Module, folder: Path) -> None:
        """The encoder, which is all that an export holds; the decoder and the reading heads are learned anew."""
        found = t5.T5TextEncoder.load(folder)
        if found.tokenizer.model != self.tokenizer.model:
            raise ValueError(f"{folder} was trained with another tokenizer than {self.recipe.tokenizer}")
        try:  # copied into place: the decoder shares the encoder's embedding
            _t5(model).encoder.load_state_dict(found.model.encoder.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} does not fit [model]: {error}") from None
        print(f"{folder} holds an encoder alone: the decoder and the reading heads begin anew", flush=True)

    def batch(self, step: int, rng: np.random.Generator) -> Batch:
        return self._batch(self.recipe.batch, rng, self.recipe.single)

    def _batch(self, count: int, rng: np.random.Generator, single: float) -> Batch:
        examples = [self._example(rng, single) for _ in range(count)]
        sources, targets = zip(*examples, strict=True)
        read = [self._description(rng) for _ in range(count * self.recipe.readings)]
        texts = [
            [*self.tokenizer.pieces.encode(caption(said, LANGUAGES[i % 2], rng)), self.tokenizer.end]
            for i, said in enumerate(read)
        ]
        columns = {"source": sources, "target": targets, "text": texts}
        batch = {name: _padded(rows, self.tokenizer.padding) for name, rows in columns.items()}
        return batch | {"facets": torch.tensor([labels(said) for said in read])}

    def _description(self, rng: np.random.Generator) -> Description:
        said = random_scene(rng, kind="relation" if rng.random() < self.recipe.relations else None).describe()
        return said if rng.random() < self.recipe.full else partial(said, rng)

    def _example(self, rng: np.random.Generator, single: float) -> tuple[list[int], list[int]]:
        recipe, said = self.recipe, self._description(rng)
        order = LANGUAGES if rng.random() < 0.5 else LANGUAGES[::-1]
        order = (order[0], order[0]) if rng.random() < recipe.alike else order
        spoken = order[:1] if rng.random() < single else order
        texts = [self.tokenizer.pieces.encode(caption(said, language, rng)) for language in spoken]
        first = len(self.tokenizer) + recipe.model.sentinels - 1
        if len(texts) > 1 and rng.random() < recipe.whole:
            gone = int(rng.integers(len(texts)))
            lost = [which == gone for which, text in enumerate(texts) for _ in text]
            return corrupted(texts, lost, first, self.tokenizer.end)
        if len(texts) > 1 and rng.random() < recipe.salient:
            lost = self._telling(texts, rng)
            if any(lost):
                return corrupted(texts, lost, first, self.tokenizer.end)
        more = rng.random() < recipe.higher
        rate = float(rng.uniform(recipe.corruption, recipe.highest)) if more else recipe.corruption
        # A span that reaches from one caption into the next takes two sentinels.
        lost = holes(sum(map(len, texts)), rate, recipe.span, recipe.model.sentinels - 1, rng)
        return corrupted(texts, lost, first, self.tokenizer.end)

    def _telling(self, texts: Sequence[Sequence[int]], rng: np.random.Generator) -> list[bool]:
        """Holes where one of the texts names its objects, their colours or, more rarely, their sides."""
        hit = int(rng.integers(len(texts)))
        chances = [
            self.telling.get(piece, 0.0) if which == hit else 0.0 for which, text in enumerate(texts) for piece in text
        ]
        return [bool(rng.random() < chance) for chance in chances]

    def share(self, batch: Batch, rank: int, ranks: int) -> Batch:
        raise TrainingError(
            "T5 averages over pieces, of which shares hold unequally many: train it in one process, with accumulate = 1"
        )

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        guessed, target = self._guess(model, batch), batch["target"]
        span = F.cross_entropy(guessed.flatten(0, 1).float(), target.flatten(), ignore_index=self.tokenizer.padding)
        read = misread(self._read(model, batch), batch["facets"])
        metrics = {"span": span.detach(), "read": read.detach(), "restored": self._restored(guessed.detach(), target)}
        return span + self.recipe.read * read, metrics

    def _read(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Logits [texts, classes] of each facet, from the encoder's tokens."""
        there = batch["text"] != self.tokenizer.padding
        tokens = _t5(model).encoder(input_ids=batch["text"], attention_mask=there).last_hidden_state
        return cast(CrossAttentionProbe, model.get_submodule("reader"))(tokens, there)

    def _guess(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [batch, length, vocabulary] of each target piece, from the source and the target pieces before it."""
        source, padding = batch["source"], self.tokenizer.padding
        before = F.pad(batch["target"][:, :-1], (1, 0), value=padding)
        out = _t5(model)(input_ids=source, attention_mask=source != padding, decoder_input_ids=before, use_cache=False)
        return cast(Tensor, out.logits)

    def _restored(self, guessed: Tensor, target: Tensor) -> Tensor:
        """The share of pieces that were cut out and are guessed right; markers and sentinels do not count."""
        counted = (target != self.tokenizer.padding) & (target != self.tokenizer.end) & (target < len(self.tokenizer))
        return (guessed.argmax(-1) == target)[counted].float().mean()

    def inspect(self, model: nn.Module) -> tuple[Image | None, dict[str, float]]:
        figures = {}
        for name, batch in self.fresh.items():
            there = {key: tensor.to(self.device) for key, tensor in batch.items()}
            figures[f"restored_{name}"] = float(self._restored(self._guess(model, there), there["target"]))
        guesses, truths = self._read(model, there), there["facets"].unbind(1)
        for facet, guess, truth in zip(CLASSES, guesses, truths, strict=True):
            if "shape" in facet or "colour" in facet:  # of the first and the second object: what binding is about
                told = truth != ABSENT
                figures[f"read_{facet.replace(' ', '_')}"] = float((guess.argmax(-1) == truth)[told].float().mean())
        return None, figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """A folder that `T5TextEncoder` and transformers read: config.json, model.safetensors, tokenizer/."""
        whole = _t5(model)
        encoder = T5EncoderModel(whole.encoder.config)
        encoder.encoder.load_state_dict(whole.encoder.state_dict())
        encoder.shared = encoder.encoder.embed_tokens
        t5.write(folder, encoder, torch.float16)
        # Not as spiece.model, which transformers would take for a vocabulary of T5's own kind and cut otherwise.
        (folder / FILE).parent.mkdir()
        (folder / FILE).write_bytes(self.tokenizer.model)


def _t5(model: nn.Module) -> T5ForConditionalGeneration:
    return cast(T5ForConditionalGeneration, model.get_submodule("t5"))


@torch.no_grad()
def _see_near(attention: T5Attention) -> None:
    """Begin with heads that see what stands before, what stands after, both, or all alike, sharper and softer ones.

    T5 begins with no sense of place, and biases that are learned from nothing reach the size at which a head sees its
    neighbour, without which no colour belongs to an object, only after some thousand steps.
    """
    reach = attention.relative_attention_max_distance
    steps = torch.arange(-reach, reach + 1)  # from a token to those it looks at
    buckets = attention._relative_position_bucket(
        steps,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=reach,
    )
    bias = attention.relative_attention_bias.weight  # [buckets, heads]
    for head in range(bias.shape[1]):
        side, slope = SIDES_SEEN[head % len(SIDES_SEEN)], 0.5 ** (head // len(SIDES_SEEN))
        away = torch.where(steps * side < 0, FAR, steps.abs().float()) if side is not None else torch.zeros(len(steps))
        wanted = -slope * away.clamp(max=FAR)
        for bucket in buckets.unique():
            bias[bucket, head] = wanted[buckets == bucket].mean()


def holes(length: int, rate: float, span: float, most: int, rng: np.random.Generator) -> list[bool]:
    """Which of `length` pieces are cut out: a share `rate` of them, in at most `most` spans of mean length `span`.

    Spans lie anywhere, the first and the last piece included, and never touch.
    """
    lost = max(1, min(round(length * rate), length - 1))
    count = min(max(1, round(lost / span)), length - lost + 1, most)
    inside = _parts(lost, count, rng)
    outside = _parts(length - lost + 2, count + 1, rng)  # one too many at either end, where there may be none
    outside[0] -= 1
    outside[-1] -= 1
    runs = [run for k in range(count) for run in ([False] * outside[k], [True] * inside[k])]
    return [gone for run in [*runs, [False] * outside[-1]] for gone in run]


def corrupted(
    texts: Sequence[Sequence[int]], lost: Sequence[bool], first: int, end: int
) -> tuple[list[int], list[int]]:
    """Texts with a sentinel for each hole, each closed by `end`; and the sentinels, each followed by what was there.

    Sentinels count down from `first`. The end marker closes the last hole.
    """
    source: list[int] = []
    target: list[int] = []
    sentinel, flags = first, iter(lost)
    for text in texts:
        inside = False
        for piece, gone in zip(text, flags, strict=False):
            if gone and not inside:
                source.append(sentinel)
                target.append(sentinel)
                sentinel -= 1
            (target if gone else source).append(piece)
            inside = gone
        source.append(end)
    return source, [*target, end]


def _parts(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`total` as a sum of `count` numbers of at least one, all such sums being equally likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return [int(part) for part in np.diff([0, *cuts, total])]


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of ids as int64 [rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
