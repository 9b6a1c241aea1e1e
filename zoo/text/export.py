"""Our sentencepiece tokenizers as transformers tokenizers that give the same ids."""

from __future__ import annotations

import re
from typing import Any

from zoo.text.tokenizer import Tokenizer

BPE, NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 2, 1, 2, 3, 4  # of sentencepiece's model format
SPACE = "▁"


def as_transformers(tokenizer: Tokenizer) -> Any:
    """A `PreTrainedTokenizerFast` with the ids of `tokenizer`: markers, padding and window included.

    Raises:
        ValueError: a sentencepiece model of another kind than the zoo's own, which are BPE without byte fallback, or
            one that was taught words.
    """
    if tokenizer.words:
        raise ValueError(
            f"words that were learned have no place in transformers' tokenizers: export a pipeline that was not taught "
            f"{', '.join(tokenizer.words)}"
        )
    from sentencepiece import sentencepiece_model_pb2 as format_of
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    proto = format_of.ModelProto()
    proto.ParseFromString(tokenizer.model)
    trained, normal = proto.trainer_spec, proto.normalizer_spec
    if trained.model_type != BPE or trained.byte_fallback or not normal.add_dummy_prefix or tokenizer.begin is None:
        raise ValueError(
            "only a sentencepiece model of the zoo's own kind can be exported: BPE, without byte fallback, with a "
            "leading space and a begin marker"
        )
    pieces = [piece.piece for piece in proto.pieces]
    ids = {piece: i for i, piece in enumerate(pieces)}
    unknown = pieces[tokenizer.unknown]
    fast = FastTokenizer(models.BPE(ids, _merges(proto), unk_token=unknown, fuse_unk=True, ignore_merges=True))
    steps: list[Any] = [normalizers.Precompiled(normal.precompiled_charsmap)] if normal.precompiled_charsmap else []
    if normal.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    begin, end = pieces[tokenizer.begin], pieces[tokenizer.end]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, tokenizer.begin), (end, tokenizer.end)]
    )
    fast.decoder = decoders.Metaspace(replacement=SPACE)
    # What a user defines is cut out of the normalised text, and is a piece as it stands.
    defined = [re.escape(piece.piece) for piece in proto.pieces if piece.type == USER_DEFINED]
    if defined:
        longest = "|".join(sorted(defined, key=len, reverse=True))
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(longest), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=tokenizer.window,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        pad_token=pieces[tokenizer.padding],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # markers that stand in a prompt are words like any other
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best pieces first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]
