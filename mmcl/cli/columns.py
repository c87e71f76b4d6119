"""Options that name columns, in the errors about columns that are missing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., None])

_OPTIONS = ("image", "text", "label", "query", "document", "column", "score", "id")


def names_columns(command: C) -> C:
    """A command whose errors about a missing column say which of its options names that column."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        from mmcl.data.rows import columns_named_by

        # An option that is not given stands for the column of its own name.
        named = {f"--{name}": options[name] or name for name in _OPTIONS if name in options}
        if "pairs" in options:
            named["--pairs"] = (options["pairs"] or "sentence1,sentence2").split(",")
        with columns_named_by(named):
            command(**options)

    return run  # type: ignore[return-value]
