"""Unigram models as transformers tokenizers: of SentencePiece's pieces, or of words, with pieces for all others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<s>", "</s>"
_SPECIAL = 4
BLANK = "▁"
"""What SentencePiece writes for the blank before a word."""


def pieces_tokenizer(model: bytes, max_tokens: int):  # type: ignore[no-untyped-def]
    """The serialised SentencePiece unigram model ``model`` as a fast transformers tokenizer that gives the same ids."""
    from tokenizers import pre_tokenizers

    proto = _parsed(model)
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    split = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    return _tokenizer(vocabulary, proto.normalizer_spec.precompiled_charsmap, split, max_tokens)


def words_tokenizer(frequencies: Mapping[str, float], model: bytes, max_tokens: int):  # type: ignore[no-untyped-def]
    """A tokenizer to which each word of ``frequencies`` is a token, and another word the pieces that the serialised
    SentencePiece unigram model ``model`` makes of it.

    Words are runs of letters and digits, and runs of other characters.
    """
    proto = _parsed(model)
    words = {BLANK + word: math.log(frequency) for word, frequency in frequencies.items()}
    # A piece is rarer than any word, so that a word is never cut: all of its other segmentations have a piece in them.
    rarest = min(words.values())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    others = [(piece, rarest + score) for piece, score in pieces[_SPECIAL:] if piece not in words]
    vocabulary = [*pieces[:_SPECIAL], *words.items(), *others]
    return _tokenizer(vocabulary, proto.normalizer_spec.precompiled_charsmap, _words(), max_tokens)


def count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    """How often each word occurs, as :func:`words_tokenizer` splits texts."""
    import sentencepiece
    from tokenizers import pre_tokenizers

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule_name(lowercase), escape_whitespaces=False)
    split = pre_tokenizers.Whitespace().pre_tokenize_str
    return Counter(word for text in texts for word, _ in split(normalizer.Normalize(text)))


def rule_name(lowercase: bool) -> str:
    """SentencePiece's name for how texts are normalised."""
    return "nmt_nfkc_cf" if lowercase else "nmt_nfkc"


def _words() -> Any:
    from tokenizers import pre_tokenizers

    mark = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), mark])


def _parsed(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def _tokenizer(vocabulary: list[tuple[str, float]], charsmap: bytes, split: Any, max_tokens: int):  # type: ignore[no-untyped-def]
    from tokenizers import Regex, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=1))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 2), (END, 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        cls_token=START,
        sep_token=END,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    )
