"""Text of unknown origin, made safe for a terminal, a log or a message."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

LONGEST_VALUE = 200
"""Characters of a value in a message."""

# C0 and C1 but for tab and line feed, DEL, bidirectional embeddings, overrides and isolates, lone surrogates.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with control characters escaped as in a Python literal, ``\\x1b``, ``\\u202e``, except tabs and line
    breaks.

    Captions, column names and model names come from files of others, whose control characters would move the cursor,
    set the window's title or hide the text after them.
    """
    return _ACTIVE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def fitted(text: str, stream: TextIO) -> str:
    """``text`` with its lines broken between words where ``stream`` is a terminal, which would break them in words.

    Words that are longer than a line, such as paths, stay whole. What goes into a file or a pipe is left as it is.
    """
    width = _columns(stream)
    if not width:
        return text
    fit = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    return "\n".join(line if len(line) <= width else fit.fill(line) for line in text.split("\n"))


def _columns(stream: TextIO) -> int:
    """The width of the terminal that ``stream`` is; 0 if it is none, or does not know its width."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no file of the system, or no terminal
        return 0


def shortened(text: str, limit: int = LONGEST_VALUE) -> str:
    """``text``, or its beginning and its end with the number of characters left out between them."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit * 3 // 4], text[-(limit // 4) :]
    return f"{head}… ({len(text) - len(head) - len(tail):,} characters) …{tail}"


def short_repr(value: object, limit: int = LONGEST_VALUE) -> str:
    """``repr`` of plain data in about ``limit`` characters, in time that does not depend on its size."""
    if isinstance(value, str):
        return repr(shortened(value, limit))
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        parts = [short_repr(item, limit // 4) for item in value[:4]] if limit >= 4 else ["…"]
        if len(value) > len(parts):
            parts.append(f"… ({len(value):,} values)")
        return f"[{', '.join(parts)}]"
    if isinstance(value, int) and value.bit_length() > 4 * limit:  # Python makes digits slowly, or not at all
        return f"a number of about {int(value.bit_length() * 0.30103):,} digits"
    return shortened(repr(value), limit)
