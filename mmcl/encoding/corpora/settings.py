"""What is asked of an encode: of the encoder, of the rows, and of what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from mmcl.encoding.corpora.manifest import Dtype
from mmcl.encoding.corpora.reader import BLOCK_ROWS, Modality
from mmcl.runtime.device import Devices
from mmcl.runtime.errors import MmclError

SHARD_ROWS = {"text": (4_096, 32_768), "image": (256, 4_096), "table": (4_096, 32_768)}
"""Rows of a range, at least and at most: what a killed process can cost."""
SHARDS = 256
"""As many as this a corpus has, between the two."""
LONG_BLOCK_ROWS = 256
"""Texts at a time where each may have many windows."""

Engine = Callable[[Any, bool | None], None]
"""Called with a :class:`~mmcl.encoding.corpora.job.Job`, and whether to show its progress."""


class Encodes(Protocol):
    """What is asked of an encoder.

    ``prompt`` and ``truncate_dim`` are only passed where they are asked for, so that an encoder without them will do
    for all else. More is used where it is there: ``encode_blocks``, ``windows``, ``prepare_image``, ``exact_decoding``,
    ``path``, ``prompt_text(prompt)`` and ``fingerprint()``, as of :class:`mmcl.encoding.encoder.Encoder`.
    """

    @property
    def dim(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def modalities(self) -> Any: ...
    def encode(
        self,
        inputs: Any,
        modality: str | None = None,
        *,
        normalize: bool = True,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        show_progress: bool | None = None,
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Columns:
    """What is read of every row.

    Attributes:
        inputs: the column to encode: texts, lists of texts (each text gets a vector, under its row's id), or images;
            "" for those that a table tower reads.
        modality: ``image``, ``text`` or ``table``; by default what the column holds: encoded bytes or paths of
            files are images.
        labels: the column that tables of results show; by default the text, cut at 200 characters, or the image's path.
        ids: the column that searches return for a vector; by default ``id`` or ``_id``, else the number of the row. Of
            tar shards, the shard and key of the sample.
    """

    inputs: str
    modality: Modality | None = None
    labels: str | None = None
    ids: str | None = None


@dataclass(frozen=True)
class Layout:
    """How vectors are computed and written, part by part.

    Attributes:
        dtype: ``float32``, ``float16`` or ``int8`` on disk. int8 takes a quarter of the space and turns a vector by
            some 0.5°; reading gives float32 back.
        shard_rows: rows of the source that a shard owns, and so what a killed process can cost; by default a 256th of
            them, from 4,096 to 32,768, or 256 to 4,096 images. A folder keeps the number that it was begun with.
        batch_rows: rows read, decoded and handed to the encoder at a time; by default 4,096 texts or 64 images.
        long: what becomes of texts that are longer than the model reads. ``truncate`` cuts them and says how many;
            ``chunk`` embeds overlapping windows and takes their mean; ``windows`` gives each window a row of its own,
            with the characters of the text that it has in the columns ``start`` and ``end``.
        overlap: tokens that a window shares with the one before it; by default an eighth of it.
        devices: compute in other processes, as of :meth:`mmcl.Encoder.encode`.
        engine: what encodes the missing ranges of a job, as :class:`mmcl.encoding.ray_engine.RayEngine` does on a
            cluster; what it leaves, and everything if None, this process encodes.
    """

    dtype: Dtype = "float32"
    shard_rows: int | None = None
    batch_rows: int | None = None
    long: Literal["truncate", "chunk", "windows"] = "truncate"
    overlap: int | None = None
    devices: Devices | None = None
    engine: Engine | None = None

    def rows(self, modality: Modality, total: int) -> tuple[int, int]:
        """Rows of a shard of a corpus of so many, and rows that are encoded at a time. Raises ``MmclError`` for less
        than 1, or for a modality that is none."""
        if modality not in SHARD_ROWS:
            raise MmclError(
                f"modality is '{modality}', where a corpus is of image, text or table; of several towers of a "
                "kind take one, with encoder.select(name)"
            )
        for name, asked in (("shard_rows", self.shard_rows), ("batch_rows", self.batch_rows)):
            if asked is not None and asked < 1:
                raise MmclError(f"{name} is {asked}; it must be 1 or more")
        usual = BLOCK_ROWS[modality] if self.long == "truncate" else LONG_BLOCK_ROWS
        least, most = SHARD_ROWS[modality]
        return self.shard_rows or min(max(-(-total // SHARDS), least), most), self.batch_rows or usual


USUAL = Layout()
"""What is done unless something else is asked for."""


class Wanted(NamedTuple):
    """What else is asked of the encoder's ``encode``: only what is not as usual is passed on and recorded."""

    prompt: str | None = None
    truncate_dim: int | None = None

    def named(self) -> dict[str, Any]:
        """The settings that are given."""
        return {name: value for name, value in self._asdict().items() if value is not None}
