"""Training of SentencePiece tokenizers on the user's own text, in the form that transformers loads."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmcl.config.model import TokenizerConfig
from mmcl.data.cache.tokens import texts_of
from mmcl.data.processors.unigram import (
    END,
    PAD,
    START,
    UNKNOWN,
    count_words,
    pieces_tokenizer,
    rule_name,
    words_tokenizer,
)
from mmcl.data.rows import Rows
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder, folder_to_write
from mmcl.runtime.full_disk import full_disk_is_oserror
from mmcl.runtime.progress import log_progress

log = logging.getLogger("mmcl")
VERY_LONG = 1_000_000  # the model sets the limit, not a tokenizer that is trained apart from it
_BLOCK = 10_000


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, max_tokens: int):  # type: ignore[no-untyped-def]
    """Train a unigram model (Kudo 2018, arXiv:1804.10959) and wrap it as a transformers tokenizer.

    With ``config.words``, so many words are tokens of their own, and the unigram model is of the words that are left.
    Every text is framed as ``<s> … </s>``. The same texts in the same order give the same tokenizer.

    Raises:
        MmclError: there is no text to learn from, or too little for any vocabulary.
        Exception: what ``texts`` raise.
    """
    if config.words is None:
        return pieces_tokenizer(_train_pieces(texts, config), max_tokens)
    counts = count_words(_clean(texts), config.lowercase)
    total = counts.total()
    known = {word: count / total for word, count in counts.most_common(config.words)}
    pieces = _train_pieces([word for word in counts if word not in known] or known, config)
    return words_tokenizer(known, pieces, max_tokens)


def _train_pieces(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """The serialised SentencePiece unigram model of ``texts``."""
    import sentencepiece

    model = io.BytesIO()
    raised: list[BaseException] = []

    def remembered() -> Iterator[str]:  # SentencePiece makes its own error of every other
        try:
            yield from _clean(texts)
        except (Exception, KeyboardInterrupt) as error:
            raised.append(error)
            raise

    try:
        with log_progress("train the tokenizer", None):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=remembered(),
                model_writer=model,
                vocab_size=config.vocab_size,
                hard_vocab_limit=False,  # a small corpus gives fewer pieces rather than an error
                character_coverage=config.character_coverage,
                normalization_rule_name=rule_name(config.lowercase),
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                pad_piece=PAD,
                unk_piece=UNKNOWN,
                bos_piece=START,
                eos_piece=END,
                max_sentence_length=1 << 20,  # bytes; longer texts would be left out without a word
                num_threads=1,  # more threads sum in another order, and so give another vocabulary
                minloglevel=2,
            )
    except RuntimeError as error:
        if raised:
            raise raised[0] from None
        cure = "give more text or another model.text.tokenizer.vocab_size"
        raise MmclError(f"the tokenizer cannot be trained on these captions; {cure} ({error})") from None
    return model.getvalue()


def save_trained(rows: Rows, column: str, config: TokenizerConfig, folder: Path):  # type: ignore[no-untyped-def]
    """Train a tokenizer on the texts of ``column``, a text or a list of them a row, and write it into ``folder``.

    Returns:
        The tokenizer, and the first text that is not empty.

    Raises:
        MmclError: there is no such column or nothing to learn from, or ``folder`` holds something.
    """
    rows.require([column])
    folder = folder.expanduser()
    if folder_to_write(folder).is_dir() and any(folder.iterdir()):
        raise MmclError(f"{folder}: holds something already, which is not replaced; choose another folder, or empty it")
    example = next((text for text in _texts(rows, column) if text.strip()), "")
    tokenizer = train_tokenizer(_texts(rows, column), config, max_tokens=VERY_LONG)
    with atomic_folder(folder) as beside, full_disk_is_oserror(beside):
        tokenizer.save_pretrained(beside)
    return tokenizer, example


def segmentation(tokenizer: Any, text: str) -> str:
    """The pieces that ``text`` is split into, such as ``▁two ▁dog s``."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def _texts(rows: Rows, column: str) -> Iterator[str]:
    for start in range(0, len(rows), _BLOCK):
        for value in rows.select(range(start, min(start + _BLOCK, len(rows)))).texts(column):
            yield from texts_of(value)


def _clean(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece reads UTF-8 lines: newlines become blanks, and what is no valid text is replaced and counted."""
    replaced = 0
    for text in texts:
        line = " ".join(text.split())
        safe = line.encode("utf-8", "replace").decode("utf-8")
        replaced += safe != line
        if safe:
            yield safe
    if replaced:
        log.warning("tokenizer: %d texts with invalid characters were read with '?' there", replaced)
