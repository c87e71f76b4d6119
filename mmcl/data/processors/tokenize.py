"""From texts to token ids by a transformers tokenizer: whatever the texts hold, whatever its last call left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.identity import stable_hash
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.files import require_model_file

_FILES = ("*token*.json", "vocab.*", "merges.txt", "*.model")
_PROBED = 200
"""Entries of a vocabulary that are looked at: many may be unused or bytes that are no text alone."""
_OWN = 0.05
"""The least part of these that their own texts give."""


@contextmanager
def reading_tokenizer(what: str, folder: Path | None = None) -> Iterator[None]:
    """Whatever a tokenizer's library raises for a file of somebody's becomes one line.

    Args:
        what: how the line begins.
        folder: with the tokenizer's files; one that is plainly something else is what the line is about.

    Raises:
        MmclError: the block raised something.
    """
    try:
        yield
    except MmclError:
        raise
    except BaseException as error:
        # The tokenizers library raises nothing narrower than Exception, and its Rust code panics outside of that.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if folder is not None:
            for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
                require_model_file(path)
        raise MmclError(f"{what} ({first_line(error)})") from None


def check_tokenizer(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer that gives the same for all texts, as then any model behind it does, or that cannot put its
    own vocabulary together.

    It is asked with entries of the vocabulary, whatever language or alphabet that is for.

    Raises:
        MmclError: it is such a one.
    """
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    entries = np.unique(np.linspace(0, len(tokenizer) - 1, min(len(tokenizer), _PROBED)).astype(int)).tolist()
    texts = {entry: tokenizer.decode([entry]) for entry in entries if entry not in special}
    texts = {entry: text for entry, text in texts.items() if text.strip()}
    rows, _ = token_ids(tokenizer, list(texts.values()), _PROBED)
    given = {tuple(entry for entry in row.tolist() if entry not in special) for row in rows}
    if len(given - {()}) < 2:
        raise MmclError(
            f"{where}: the tokenizer gives the same for all texts; its vocabulary is missing or empty, take a fresh "
            "copy of its files"
        )
    # About half of a vocabulary are beginnings of words, whose texts give them; without its merges, letters alone are.
    own = sum(entry in row for entry, row in zip(texts, rows, strict=True))
    if len(texts) > _PROBED // 2 and own < _OWN * len(texts):
        raise MmclError(
            f"{where}: the tokenizer does not give the entries of its own vocabulary; a file of it is missing or of "
            "another model (merges.txt?), take a fresh copy"
        )


def forget_limits(tokenizer: Any) -> None:
    """Fast tokenizers keep the last call's truncation and padding, and would save them as if they were settings."""
    backend = _backend(tokenizer)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def pads_left(tokenizer: Any) -> bool:
    """Whether texts are filled up before their first token, as several tokenizers of transformers do."""
    return getattr(tokenizer, "padding_side", "right") == "left"


def fold_case(tokenizer: Any) -> bool:
    """Let the tokenizer lower-case its texts first, as sentence-transformers does for ``do_lower_case``.

    Returns:
        Whether it does now; False for one without a Rust backend, whose texts are to be lower-cased beforehand.
    """
    from tokenizers.normalizers import Lowercase, Sequence

    backend = _backend(tokenizer)
    if backend is None:
        return False
    own = backend.normalizer
    if own is None or b'"Lowercase"' not in own.__getstate__():
        backend.normalizer = Sequence([Lowercase(), *([] if own is None else [own])])
    return True


def drop_special_tokens(tokenizer: Any) -> None:
    """Let the tokenizer put none around a text from now on.

    Raises:
        MmclError: it has no Rust backend, of which this is known.
    """
    from tokenizers.processors import TemplateProcessing

    backend = _backend(tokenizer)
    if backend is None:
        raise MmclError(f"a {type(tokenizer).__name__} has no Rust backend, which static embeddings need")
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])


def unknown_id(tokenizer: Any) -> int | None:
    """The token that a Rust tokenizer gives for what its vocabulary lacks; None if it has none."""
    backend = _backend(tokenizer)
    model = json.loads(backend.to_str())["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else backend.token_to_id(token)


def content_key(tokenizer: Any) -> str:
    """Changes whenever the tokenizer would give something else."""
    backend = _backend(tokenizer)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return f"{stable_hash(content):x}"


def valid_texts(texts: Sequence[str], prompt: str = "") -> list[str]:
    """Each text behind ``prompt``. A lone surrogate is no Unicode text, and the tokenizers refuse it: it reads as '?'.

    Raises:
        MmclError: one of them is no text.
    """
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise MmclError(f"text {position} is a {type(text).__name__}, not a str; leave it out or give its text")
    return [(prompt + text).encode("utf-8", "replace").decode("utf-8") for text in texts]


def token_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Token ids of each text, int32, special tokens included, cut at ``limit``; and (N,) bool, which were cut."""
    if not texts:
        return [], np.zeros(0, dtype=bool)
    backend = _backend(tokenizer)
    with reading_tokenizer("the tokenizer's files are damaged"):
        if backend is None:
            encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        else:
            forget_limits(tokenizer)
            encoded = [each.ids for each in backend.encode_batch_fast(list(texts))]
        cut = np.array([len(ids) > limit for ids in encoded])
        for place in np.flatnonzero(cut).tolist():
            encoded[place] = _cut(tokenizer, backend, texts[place], limit)
    return [np.array(ids, dtype=np.int32) for ids in encoded], cut


def _cut(tokenizer: Any, backend: Any, text: str, limit: int) -> list[int]:
    """Cut between the special tokens, without a setting of the tokenizer that another thread would meet."""
    if backend is None:
        cut: list[int] = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return cut
    encoding = backend.encode(text, add_special_tokens=False)
    encoding.truncate(max(0, limit - backend.num_special_tokens_to_add(False)), direction=tokenizer.truncation_side)
    ids: list[int] = backend.post_process(encoding).ids
    return ids


def _backend(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None)
