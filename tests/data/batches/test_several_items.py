"""Rows with lists of images or texts: every draw another item, or every item a row of its own."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmcl.config.load import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.data.batches.sampler import Draw
from mmcl.data.sources import open_source
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method

COUNTS = (1, 4, 2, 3, 5, 1)  # drawings of each concept
NAMES = [[f"concept {n}", f"thing {n}"] for n in range(len(COUNTS))]
VIT = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": 16}
TEXT = {"name": "scratch", "layers": 1, "width": 8, "heads": 1, "tokenizer": {"vocab_size": 60}}


def colour(concept, item):
    return (40 * concept, 40 * item, 7)


@pytest.fixture
def folder(tmp_path):
    """Plain images, each of its own colour."""
    for concept, count in enumerate(COUNTS):
        for item in range(count):
            Image.new("RGB", (16, 16), colour(concept, item)).save(tmp_path / f"{concept}-{item}.png")
    return tmp_path


def rows_of(**changes):
    rows = [
        {"id": f"c{n}", "image": [f"{n}-{item}.png" for item in range(count)], "text": NAMES[n]}
        for n, count in enumerate(COUNTS)
    ]
    return [row | {key: of(row) for key, of in changes.items()} for row in rows]


def feed_of(folder, rows, method, *overrides, batch_size=4):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = {"kind": "none"}
    towers = {"image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "head": head}}
    if method == "clip":
        towers["text"] = TEXT | {"head": head}
    config = load_config(
        {
            "method": {"name": method},
            "data": {"train": {"source": str(path)}, "image": {"size": 16}},
            "model": {"dim": 8, **towers},
            "augmentation": {"flip": 0.5},
            "training": {"batch_size": batch_size, "device": "cpu"},
        },
        overrides,
    )
    built = build_method(config, folder / "run")
    cpu = torch.device("cpu")
    return open_feed([config.data.train], built.train().reading, config, None, augmented=True, device=cpu), built


def drawn(*rows, turn=0):
    return Draw(0, np.array(rows), np.full(len(rows), turn))


def items_of(pixels):
    """The concept and number of each plain image."""
    first = pixels[:, 0, 0].long()
    return [(int(red) // 40, int(green) // 40) for red, green, _ in first]


def test_both_views_of_a_row_are_of_two_drawings_where_it_has_two(folder):
    feed, method = feed_of(folder, rows_of(), "simclr")
    assert feed.samples == len(COUNTS)
    met = [set() for _ in COUNTS]
    for turn in range(30):
        batch = feed.batch(drawn(*range(6), turn=turn))
        part = feed.batch(drawn(4, 1, turn=turn))
        assert torch.equal(part.draws["image"][0]["pixels"], batch.draws["image"][0]["pixels"][[4, 1]])
        first, second = (items_of(of["pixels"]) for of in (batch.inputs["image"], batch.draws["image"][0]))
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            assert one[0] == other[0] == row
            assert (one == other) == (COUNTS[row] == 1)
            met[row].add(one[1])
        views = method.view_inputs(batch)["image"]["pixels"]  # nothing but flipped: of plain colour as they were
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[2], views[3])
    assert met == [set(range(count)) for count in COUNTS]


def test_columns_of_images_are_views_of_a_row_as_the_items_of_a_list_are(folder, caplog):
    rows = [
        {"id": f"c{n}", "front": f"{n}-0.png", "back": f"{n}-1.png" if count > 1 else None, "rest": row["image"][2:]}
        for n, (row, count) in enumerate(zip(rows_of(), COUNTS, strict=True))
    ]
    columns = ["data.columns={image: front, image_2: back, image_10: rest}"]
    feed, _ = feed_of(folder, rows, "simclr", *columns)
    listed, _ = feed_of(folder, rows_of(), "simclr")
    assert len(feed.positions) == len(COUNTS)
    # Cells without any: two of c0 and c5 each, and one of c2.
    assert "5 images in column 'front', 'back', 'rest' cannot be used, of rows that have others" in caplog.text
    for turn in range(20):
        batches = [of.batch(drawn(*range(6), turn=turn)) for of in (feed, listed)]
        for one, other in zip(
            *([batch.drawn("image", n)["pixels"] for n in range(2)] for batch in batches), strict=True
        ):
            assert items_of(one) == items_of(other)
    plain, _ = feed_of(folder, rows, "simclr", "data.columns={image: front}")
    assert not plain.columns["image"].several


def test_columns_of_images_are_named_where_there_are_none(folder):
    rows = rows_of(image=lambda row: row["image"][0])
    with pytest.raises(MmclError, match=r"no column 'back'.*; name another with data\.columns\.image_2"):
        feed_of(folder, rows, "sup_con", "data.columns={image_2: back, label: id}")
    with pytest.raises(MmclError, match=r"data\.columns\.image_2: method 'clip' has no such role"):
        feed_of(folder, rows, "clip", "data.columns={image_2: back}")
    with pytest.raises(MmclError, match=r"data\.columns\.image_1: method 'simclr' has no such role"):
        feed_of(folder, rows, "simclr", "data.columns={image_1: back}")


def test_items_become_rows_whose_label_is_their_cell_and_which_stand_together(folder):
    feed, _ = feed_of(folder, rows_of(), "clip", "data.explode=image")
    assert feed.samples == sum(COUNTS)
    (epoch,) = [list(feed.batches(0, len(feed)))]
    concepts, labels = [], []
    for batch in epoch:
        concepts += [concept for concept, _ in items_of(batch.inputs["image"]["pixels"])]
        labels += batch.inputs["label"]["labels"].tolist()
    assert len(set(concepts)) == len(set(labels)) == len(set(zip(concepts, labels, strict=True)))
    assert 1 + int((np.diff(concepts) != 0).sum()) == len(set(concepts)), "each concept stands in one run"
    assert feed.names(epoch[0])[0].startswith(f"c{concepts[0]}[")


def test_captions_become_rows_that_share_the_pixels_of_their_image(folder):
    one = rows_of(image=lambda row: row["image"][0])
    feed, _ = feed_of(folder, one, "clip", "data.explode=text")
    assert feed.samples == 12
    batch = feed.batch(drawn(*range(12)))
    assert [concept for concept, _ in items_of(batch.inputs["image"]["pixels"])] == [n // 2 for n in range(12)]
    assert len(feed.columns["image"].hashes) == 6
    assert len(set(batch.ids[:, 1].tolist())) == 12
    lists, _ = feed_of(folder, rows_of(), "clip", "data.explode=text")
    met = {item for turn in range(40) for item in items_of(lists.batch(drawn(8, turn=turn)).inputs["image"]["pixels"])}
    assert met == {(4, item) for item in range(5)}, "of drawings one is drawn in every epoch"


def test_what_cannot_be_read_is_left_out_and_counted(folder, caplog):
    (folder / "1-2.png").write_bytes(b"no image")
    (folder / "5-0.png").write_bytes(b"no image")
    rows = rows_of()
    rows[0]["image"] = []
    feed, _ = feed_of(folder, rows, "simclr")
    problems = [(problem["id"], problem["role"]) for problem in feed.problems()]
    assert problems == [("c0", "image"), ("c5", "image")]
    assert "1 images in column 'image' cannot be used, of rows that have others" in caplog.text
    met = {item for turn in range(40) for item in items_of(feed.batch(drawn(1, turn=turn)).inputs["image"]["pixels"])}
    assert met == {(1, 0), (1, 1), (1, 3)}
    feed, _ = feed_of(folder, rows, "clip", "data.explode=image")
    assert [problem["id"] for problem in feed.problems()] == ["c0[0]", "c1[2]", "c5[0]"]
    with pytest.raises(MmclError, match=r"row c0\[0\]: "):
        feed_of(folder, rows, "clip", "data.explode=image", "data.on_error=fail")


def test_a_named_label_goes_before_the_cell_and_mistakes_are_one_line(folder):
    rows = rows_of(kind=lambda row: "even" if int(row["id"][1]) % 2 == 0 else "odd")
    feed, _ = feed_of(folder, rows, "clip", "data.explode=image", "data.columns.label=kind", "data.per_label=4")
    assert len(np.unique(feed.columns["label"].values)) == 2
    for method, options, message in [
        ("simclr", ["data.explode=text"], "data.explode: 'text' is no role of images or texts here; these are image$"),
        ("simclr", ["data.per_label=3"], "data.per_label: method 'simclr' reads no labels here"),
        ("clip", ["data.explode=image", "data.distinct=true"], "data.distinct keeps rows apart that data.explode"),
    ]:
        with pytest.raises(MmclError, match=message):
            len(feed_of(folder, rows, method, *options)[0])


def test_lists_of_encoded_images_and_selections_of_them(tmp_path):
    encoded = [[bytes([n, item]) for item in range(count)] for n, count in enumerate(COUNTS)]
    pq.write_table(pa.table({"image": encoded, "text": [str(n) for n in range(6)]}), tmp_path / "rows.parquet")
    rows = open_source(str(tmp_path / "rows.parquet"))
    assert rows.holds_lists("image")
    assert not rows.holds_lists("text")
    for selected, chosen in ((rows, range(6)), (rows.select([4, 0, 2]), [4, 0, 2])):
        exploded, owner = selected.exploded("image")
        flat = [image for n in chosen for image in encoded[n]]
        assert exploded.images("image", range(len(exploded))) == flat
        assert exploded.column("image") == flat
        assert exploded.texts("text") == [str(chosen[place]) for place in owner]
        part = exploded.select([3, 1])
        assert part.images("image", [0, 1]) == [flat[3], flat[1]]
        assert part.ids() == [f"{chosen[owner[n]]}[{flat[n][1]}]" for n in (3, 1)]
        assert len({rows.fingerprint, exploded.fingerprint, part.fingerprint}) == 3
