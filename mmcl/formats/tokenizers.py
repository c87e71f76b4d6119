"""Tokenizers of transformers in folders, opened and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcl.data.processors.tokenize import check_tokenizer, forget_limits, reading_tokenizer
from mmcl.data.processors.words import WORDS, WordTokenizer
from mmcl.runtime.errors import MmclError
from mmcl.runtime.full_disk import full_disk_is_oserror


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``: of transformers, or of words.

    Raises:
        MmclError: its files are missing or damaged, or it tells no two texts apart.
    """
    from transformers import AutoTokenizer

    if (folder / WORDS).is_file():
        return WordTokenizer.read(folder)
    with reading_tokenizer(f"{folder}: the tokenizer's files are missing or damaged", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Without them transformers makes a tokenizer that knows its special tokens alone, and says nothing.
    names = {name for key, name in type(tokenizer).vocab_files_names.items() if not key.startswith("tokenizer_")}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing and not (folder / "tokenizer.json").is_file():
        files = " and ".join(missing)
        raise MmclError(f"{folder}: the tokenizer's files are missing: neither tokenizer.json nor {files} is there")
    check_tokenizer(tokenizer, str(folder))
    return tokenizer


def read_tokenizer_file(path: Path) -> Any:
    """The transformers tokenizer of a ``tokenizer.json`` alone.

    Raises:
        MmclError: it is missing or damaged, or tells no two texts apart.
    """
    from transformers import PreTrainedTokenizerFast

    with reading_tokenizer(f"{path.parent}: the tokenizer's file is missing or damaged", path.parent):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    check_tokenizer(tokenizer, str(path.parent))
    return tokenizer


def open_tokenizer(name: str):  # type: ignore[no-untyped-def]
    """The tokenizer in a folder, such as ``mmcl tokenizer train`` writes, or any of transformers' by its hub name.

    Raises:
        MmclError: there is none, or it has no token to pad with.
    """
    from transformers import AutoTokenizer

    with reading_tokenizer(f"model.text.tokenizer.name: no tokenizer '{name}' can be opened"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_tokenizer(tokenizer, f"model.text.tokenizer.name: '{name}'")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise MmclError(f"model.text.tokenizer.name: '{name}' has no token to pad with; choose another")
        tokenizer.pad_token = tokenizer.eos_token  # as is usual for models that only generate
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's own files; open_clip's ``SimpleTokenizer`` comes with open_clip and has none."""
    if not hasattr(tokenizer, "save_pretrained"):
        return
    if isinstance(tokenizer, WordTokenizer):
        tokenizer.save_pretrained(folder)
        return
    for name in ("is_local", "local_files_only"):  # how it was loaded, noted as if it were a setting
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side  # whose default changes with transformers
    forget_limits(tokenizer)
    with full_disk_is_oserror(folder):
        tokenizer.save_pretrained(folder)
