"""Training the bilingual tokenizer: a sentencepiece BPE model (arXiv 1508.07909) over captions of seen scenes.

Text is folded before it is cut: upper case, full-width and traditional Chinese forms become lower case, half-width and
simplified ones, by a table inside the model file, so every reader of the file sees the same ids.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
from pydantic import Field

from zoo.data.captions import ZH_BACKGROUND, ZH_COLOUR, ZH_OBJECT, ZH_SIDES, ZH_STYLE, caption, swapped
from zoo.data.scenes import random_scene
from zoo.text.tokenizer import Tokenizer
from zoo.train.checkpoint import replacing
from zoo.train.recipe import RecipeError, Table

TRADITIONAL = dict(
    zip(
        "靈圖車輛紅黃綠藍圓環貓魚樹個邊隻條兩畫風側帶臉間顆這裡張貝馬鳥麼紙線點",
        "灵图车辆红黄绿蓝圆环猫鱼树个边只条两画风侧带脸间颗这里张贝马鸟么纸线点",
        strict=True,
    )
)
PUNCTUATION = {"、": ",", "。": ".", "；": ",", "：": ",", "・": ",", "\u3000": " ", "\n": " ", "\t": " "}
DELIMITER = "\u241f"  # between Chinese words in the training text, so that no piece spans two words


class TokenizerRecipe(Table):
    """The recipe of a tokenizer."""

    part: Literal["tokenizer"]
    captions: int = Field(50_000, ge=1000)
    pieces: int = Field(444, ge=128)  # enough for every word of the captions to be one piece
    reserved: int = Field(64, ge=0)  # pieces <new0>, <new1> ... kept free for words that a user adds
    seed: int = 0
    out: Path = Path("runs/tokenizer")


def trained(path: Path, window: int, *, begin: bool = True) -> Tokenizer:
    """The tokenizer that a recipe names by its file.

    Raises:
        RecipeError: it is missing or damaged.
    """
    try:
        return Tokenizer(path.read_bytes(), window, begin=begin)
    except (OSError, ValueError) as error:
        raise RecipeError(f"tokenizer = {path} cannot be read: train recipes/tokenizer.toml") from error


def train(recipe: TokenizerRecipe) -> Path:
    """Train it and write `<out>/final/tokenizer.model`; returns the file."""
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:  # Windows opens no file twice
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{_code(a)}\t{_code(b)}\n" for a, b in folding().items()), "utf-8", newline="\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts(recipe),
            model_writer=model,
            model_type="bpe",
            vocab_size=recipe.pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_tsv=str(rules),
            pretokenization_delimiter=DELIMITER,
            split_digits=True,
            user_defined_symbols=[f"<new{i}>" for i in range(recipe.reserved)],
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            num_threads=1,
            minloglevel=1,
        )
    path = recipe.out / "final" / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return path


def texts(recipe: TokenizerRecipe) -> Iterator[str]:
    """Captions of seen scenes in both languages, true and with one facet changed; Chinese ones cut at their words."""
    words = {word for table in (ZH_COLOUR, ZH_BACKGROUND, ZH_STYLE) for word in table.values()}
    words |= {word for word, _ in ZH_OBJECT.values()} | {side for sides in ZH_SIDES.values() for side in sides}
    words |= {"小精灵", "笑脸", "背景", "风格"}
    cut = re.compile("|".join(sorted(words, key=len, reverse=True)) + "|[一两三四]|.")
    rng = np.random.default_rng([recipe.seed, 1])
    for i in range(recipe.captions // 2):
        scene = random_scene(rng)
        said = scene if i % 4 else swapped(scene.describe(), rng)
        yield caption(said, "en", rng)
        yield DELIMITER + DELIMITER.join(cut.findall(caption(said, "zh", rng)))


def folding() -> dict[str, str]:
    """Characters that are read as others."""
    upper = {chr(c): chr(c).lower() for c in range(ord("A"), ord("Z") + 1)}
    wide = {chr(c): chr(c - 0xFEE0).lower() for c in range(0xFF01, 0xFF5F)}
    return upper | wide | TRADITIONAL | PUNCTUATION


def _code(character: str) -> str:
    return f"{ord(character):X}"
