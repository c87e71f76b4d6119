"""Images kept on a device: the same batches, of which none is copied from the host."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.data.batches.columns import PixelColumn
from mmcl.data.cache.pixels import Pixels, open_originals, open_pixels
from mmcl.data.cache.resident import ResidentPixels, fits
from mmcl.data.sources import open_source

CPU = torch.device("cpu")


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Two sources; of the first, one image is unreadable."""
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    sources = []
    for source, count in (("a", 5), ("b", 3)):
        for number in range(count):
            pixels = random.integers(0, 256, (16 + 3 * number, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{source}{number}.png")
        lines = [json.dumps({"image": f"{source}{number}.png"}) + "\n" for number in range(count)]
        (tmp_path / f"{source}.jsonl").write_text("".join(lines))
        sources.append(tmp_path / f"{source}.jsonl")
    (tmp_path / "a2.png").write_bytes(b"no image")
    return [open_source(str(source)) for source in sources]


@pytest.fixture
def open_column(rows):
    def make(originals: bool) -> PixelColumn:
        def squares():
            return [open_pixels(of, "image", size=16) for of in rows]

        if not originals:
            return PixelColumn(squares())
        return PixelColumn([open_originals(of, "image", size=16, stored=20) for of in rows], squares)

    return make


@pytest.mark.parametrize("originals", [False, True])
def test_inputs_are_those_of_the_host_and_no_image_is_read_again(open_column, originals, monkeypatch):
    host, column = open_column(originals), open_column(originals)
    assert column.move_to(CPU) == sum(3 * int(part.sizes.prod(axis=1).sum()) for part in column._parts)
    items, seeds = np.array([7, 0, 4, 4, 5, 3]), torch.zeros(6, dtype=torch.int64)
    expected, as_judged = host.inputs(items, seeds), host.inputs(items)
    taken = []
    take = Pixels.take
    monkeypatch.setattr(Pixels, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    ours = column.inputs(items, seeds)
    assert taken == []
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert torch.equal(column.inputs(items)["pixels"], as_judged["pixels"])


def test_images_are_kept_where_they_are_stored_and_take_a_quarter_of_a_cuda_device(rows, monkeypatch):
    parts = [open_originals(of, "image", size=16, stored=20) for of in rows]
    wanted = ResidentPixels(parts, CPU).bytes
    cuda = torch.device("cuda")
    for free, kept in ((4 * wanted, True), (4 * wanted - 4, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 100 * free))
        assert fits(parts, cuda) == kept
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    assert not fits(parts, CPU)
    again = [open_originals(of, "image", size=16, stored=18, cache_gb=0) for of in rows]
    assert not fits(again, cuda)
