"""An encoder whose vectors are hashes, and tables for it; as a program, an encode that kills itself."""

import hashlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmcl.data.sources import open_source
from mmcl.encoding import Layout, encode_source

TEXTS = [f"sentence number {n}" for n in range(33)]


class HashEncoder:
    """Its vectors are a hash of the input; it can kill its process."""

    dim, name = 16, "hash"

    def __init__(self, modalities=("text", "image"), seed=0, die_at=None):
        self.modalities, self.seed, self.die_at = set(modalities), seed, die_at
        self.calls = []

    def encode(self, inputs, modality=None, *, normalize=True, show_progress=None):
        if len(self.calls) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append((len(inputs), modality))
        return np.stack([self.vector(item) for item in inputs])

    def vector(self, item):
        content = item.encode() if isinstance(item, str) else np.asarray(item).tobytes()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")
        vector = np.random.default_rng([seed, self.seed]).normal(size=self.dim).astype("float32")
        return vector / np.linalg.norm(vector)


def rows(path: Path, **columns):
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return open_source(path.with_suffix(".parquet"))


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(inputs) -> np.ndarray:
    return np.stack([HashEncoder().vector(item) for item in inputs])


if __name__ == "__main__":  # the process that is killed
    table, out, settings, die_at = sys.argv[1:]
    encode_source(
        HashEncoder(die_at=int(die_at)), open_source(table), "text", out, layout=Layout(**json.loads(settings))
    )
