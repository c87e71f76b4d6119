"""Hard negatives for a file of pairs: against sentence-transformers, by the words of the rules, and to train on."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

import mmcl
from mmcl.data.near_copies import normalised
from mmcl.data.sources import open_source
from mmcl.data.sources.tar.rows import open_rows
from mmcl.retrieval.mining import Rules
from mmcl.retrieval.similar import items
from mmcl.retrieval.similar import negatives as module
from mmcl.retrieval.similar.items import Side
from mmcl.retrieval.similar.negatives import Corpus, Options, Pairs, mine_negatives, usual_columns
from mmcl.runtime.errors import MmclError

from .conftest import TEXTS, encoder_of

ANCHORS = [f"what is {text[2:]}" for text in TEXTS]
LOOSE = Options(duplicate_score=None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """90 pairs and, of some anchors, a second one."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    anchors, positives = [*ANCHORS, *ANCHORS[:9]], [*TEXTS, *TEXTS[40:49]]
    pq.write_table(pa.table({"anchor": anchors, "positive": positives}), path)
    return open_source(path)


def pairs(rows, anchor="anchor", positive="positive"):
    return Pairs(rows, Side(anchor), Side(positive))


def read(path):
    table = pq.read_table(path) if path.suffix == ".parquet" else None
    lines = table.to_pylist() if table is not None else [json.loads(line) for line in path.read_text().splitlines()]
    names = [name for name in lines[0] if name.startswith("negative") and not name.endswith("score")]
    return lines, [[(line[name], line[f"{name}_score"]) for name in names if line[name] is not None] for line in lines]


@pytest.mark.parametrize(
    ("rules", "theirs"),
    [
        (Rules(3, depth=20), {"range_max": 20}),
        (Rules(5, depth=30, skip=10), {"range_min": 10, "range_max": 30}),
        (Rules(4, depth=80, margin=0.05), {"range_max": 80, "absolute_margin": 0.05}),
        (Rules(4, depth=80, relative_margin=0.1), {"range_max": 80, "relative_margin": 0.1}),
        (Rules(4, depth=80, max_score=0.7), {"range_max": 80, "max_score": 0.7}),
    ],
)
def test_negatives_are_those_of_sentence_transformers(rows, tmp_path, rules, theirs):
    encoder = encoder_of(3)
    encoder.save(tmp_path / "model")
    other = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    data = Dataset.from_dict({"anchor": rows.column("anchor"), "positive": rows.column("positive")})
    reference = mine_hard_negatives(data, other, num_negatives=rules.count, output_scores=True, verbose=False, **theirs)
    expected = {}
    for line in reference:
        expected.setdefault((line["anchor"], line["positive"]), []).append((line["negative"], line["scores"][1]))
    mine_negatives(encoder, pairs(rows), tmp_path / "out.parquet", rules, options=LOOSE)
    lines, found = read(tmp_path / "out.parquet")
    assert len(lines) == len(rows)
    several = set(ANCHORS[:9])  # whose margin is to the least similar positive there, and to the row's own here
    compared = 0
    for line, mine in zip(lines, found, strict=True):
        if line["anchor"] in several and (rules.margin is not None or rules.relative_margin is not None):
            continue
        wanted = expected.get((line["anchor"], line["positive"]), [])
        assert [text for text, _ in mine] == [text for text, _ in wanted]
        np.testing.assert_allclose([score for _, score in mine], [score for _, score in wanted], atol=1e-5)
        compared += len(wanted)
    assert compared > 20


def test_what_is_the_same_thing_is_never_returned(encoder, tmp_path):
    """Anchors that are positives elsewhere, written in other ways, and two rows of one anchor."""
    spelled = [TEXTS[0].upper(), f"{TEXTS[1]}!", TEXTS[2].title()]
    rows = [*zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True), (TEXTS[5], TEXTS[30]), *zip(spelled, spelled, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"a": a, "p": p}) + "\n" for a, p in rows))
    source = open_source(tmp_path / "rows.jsonl")
    report = mine_negatives(
        encoder, pairs(source, "a", "p"), tmp_path / "out.jsonl", Rules(20, depth=93), options=LOOSE
    )
    lines, found = read(tmp_path / "out.jsonl")
    partners = {}
    for one, other in rows:
        partners.setdefault(normalised(one), set()).add(normalised(other))
    assert (report.written, report.too_few, report.negatives) == (len(rows), 0, 20 * len(rows))
    for line, mine in zip(lines, found, strict=True):
        words = [normalised(text) for text, _ in mine]
        own = {normalised(line["anchor"]), normalised(line["positive"])}
        assert len(set(words)) == len(words) == 20
        assert not set(words) & (own | partners[normalised(line["anchor"])])
        assert [score for _, score in mine] == sorted((score for _, score in mine), reverse=True)


def test_near_duplicates_and_what_a_guide_finds_closer_are_left_out_and_counted(encoder, rows, tmp_path):
    guide = encoder_of(9)
    report = mine_negatives(
        encoder,
        pairs(rows),
        tmp_path / "out.parquet",
        Rules(30, depth=90),
        options=Options(duplicate_score=0.9, guide=guide),
    )
    lines, found = read(tmp_path / "out.parquet")
    texts = dict(zip(TEXTS, encoder.encode(TEXTS), strict=True))
    guided = dict(zip(TEXTS, guide.encode(TEXTS), strict=True))
    anchors = encoder.encode(rows.column("anchor"))
    for row, (line, mine) in enumerate(zip(lines, found, strict=True)):
        of_guide = guide.encode(line["anchor"])
        partners = {other["positive"] for other in lines if other["anchor"] == line["anchor"]}
        passing = [
            text
            for text in TEXTS
            if text not in partners
            and max(anchors[row] @ texts[text], texts[text] @ texts[line["positive"]]) < 0.9
            and guided[text] @ of_guide <= guided[line["positive"]] @ of_guide
        ]
        passing.sort(key=lambda text: -anchors[row] @ texts[text])
        assert [text for text, _ in mine] == passing[:30]
    assert report.refused["near-duplicates"] > 0
    assert report.refused["guide"] > 0
    assert report.too_few == sum(len(mine) < 30 for mine in found) > 0
    few = mine_negatives(
        encoder,
        pairs(rows),
        tmp_path / "few.parquet",
        Rules(30, depth=90),
        options=Options(duplicate_score=0.9, guide=guide, too_few="drop"),
    )
    assert (few.written, few.too_few) == (len(rows) - report.too_few, report.too_few)
    assert all(len(mine) == 30 for mine in read(tmp_path / "few.parquet")[1])


def test_drawn_ones_follow_from_the_seed_and_are_of_the_window(encoder, rows, tmp_path, monkeypatch):
    rules = Rules(4, depth=30, skip=5, choice="random")

    def mined(name, seed, rules=rules):
        mine_negatives(encoder, pairs(rows), tmp_path / name, rules, options=replace(LOOSE, seed=seed))
        return [{text for text, _ in mine} for mine in read(tmp_path / name)[1]]

    first = mined("a.parquet", 0)
    assert mined("b.parquet", 1) != first
    monkeypatch.setattr(module, "ROWS", 40)  # whatever is mined together
    monkeypatch.setattr(module, "_FOUND", 1000)
    assert mined("c.parquet", 0) == first
    window = mined("d.parquet", 0, Rules(25, depth=30, skip=5))
    assert all(drawn <= some for drawn, some in zip(first, window, strict=True))


def test_negatives_of_another_corpus_without_what_it_shares_with_the_pairs(encoder, rows, tmp_path):
    others = [text.replace("a ", "the ", 1) for text in TEXTS] + TEXTS[:30]
    (tmp_path / "corpus.txt").write_text("\n".join(others))
    corpus = Corpus(open_source(tmp_path / "corpus.txt"), Side("text"))
    mine_negatives(encoder, pairs(rows), tmp_path / "out.parquet", Rules(100, depth=120), corpus=corpus, options=LOOSE)
    lines, found = read(tmp_path / "out.parquet")
    for line, mine in zip(lines, found, strict=True):
        own = {other["positive"] for other in lines if other["anchor"] == line["anchor"]}
        assert len(mine) == 100
        assert {text for text, _ in mine} <= set(others) - own


def test_simcse_trains_on_the_file(encoder, rows, tmp_path):
    mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl", Rules(2, depth=60, margin=0.01), options=LOOSE)
    assert any(len(mine) < 2 for mine in read(tmp_path / "out.jsonl")[1]), "rows without are trained on as well"
    run = mmcl.train(
        {
            "name": "hard",
            "method": {"name": "simcse"},
            "data": {
                "train": {"source": str(tmp_path / "out.jsonl")},
                "columns": {name: name for name in ("anchor", "positive", "negative", "negative_2")},
            },
            "model": {"dim": 16, "text": {"name": "scratch", "layers": 1, "width": 16, "heads": 2}},
            "training": {"epochs": 1, "batch_size": 49, "device": "cpu", "precision": "float32"},
            "evaluation": {"sources": {}},
        },
        out=tmp_path / "run",
        show_progress=False,
    )
    assert run.model.encode("a red dog").shape == (16,)


@pytest.fixture
def pictures(tmp_path):
    """Images of colours with a list of captions each, as a table of paths; and their shard."""
    (tmp_path / "images").mkdir()
    lines = []
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for number in range(20):
            path = tmp_path / "images" / f"{number:02}.png"
            rng = np.random.default_rng(number)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
            captions = [TEXTS[number], f"{TEXTS[number]} at night"]
            lines.append({"image": f"images/{path.name}", "text": captions})
            for name, content in ((f"{number:02}.png", path.read_bytes()), (f"{number:02}.txt", captions[0].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    lines.append({"image": "images/none.png", "text": ["nothing"]})
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_captions_are_negatives_of_images_and_clip_trains_on_them(pictures, caplog):
    encoder = encoder_of(images=True)
    rows = open_source(pictures / "pictures.jsonl")
    report = mine_negatives(
        encoder, pairs(rows, *usual_columns(rows)), pictures / "out.parquet", Rules(3, depth=30), options=LOOSE
    )
    assert (report.rows, report.left_out, report.written) == (41, 1, 40)
    assert "1 images in column 'image' cannot be read" in caplog.text
    lines, found = read(pictures / "out.parquet")
    captions = [text for line in rows.column("text")[:20] for text in line]
    images = encoder.encode(list(map(pictures.joinpath, rows.column("image")[:20])))
    vectors = encoder.encode(captions)
    for line, mine in zip(lines, found, strict=True):
        image = captions.index(line["text"]) // 2
        order = np.argsort(-(vectors @ images[image]))
        wanted = [captions[place] for place in order if place // 2 != image and captions[place] != "nothing"]
        assert [text for text, _ in mine] == wanted[:3]
    run = mmcl.train(
        {
            "name": "hard",
            "data": {
                "train": {"source": str(pictures / "out.parquet")},
                "columns": {"negative": "negative", "negative_2": "negative_2"},
                "image": {"size": 32},
            },
            "model": {
                "dim": 16,
                "image": {"name": "timm:resnet10t", "args": {"channels": [8, 8, 8, 8], "stem_width": 8}},
                "text": {"name": "scratch", "layers": 1, "width": 16, "heads": 2},
            },
            "training": {"epochs": 1, "batch_size": 20, "device": "cpu", "precision": "float32"},
            "evaluation": {"sources": {}},
        },
        out=pictures / "run",
        show_progress=False,
    )
    assert run.model.encode("a red dog").shape == (16,)


def test_of_tar_shards_a_copy_is_mined(pictures):
    encoder = encoder_of(images=True)
    rows = open_rows(pictures / "shard-0.tar")
    report = mine_negatives(encoder, pairs(rows, "image", "text"), pictures / "out.parquet", options=LOOSE)
    assert (report.rows, report.written) == (20, 20)
    table = pq.read_table(pictures / "out.parquet")
    assert pa.types.is_binary(table.schema.field("image").type)
    assert table["id"].to_pylist()[3].endswith("03[0]")
    with pytest.raises(MmclError, match=r"column 'image' holds images as bytes; name a \.parquet file"):
        mine_negatives(encoder, pairs(rows, "image", "text"), pictures / "out.jsonl", options=LOOSE)
    assert not (pictures / "out.jsonl").exists()
    # Texts for which images are sought
    mine_negatives(encoder, pairs(rows, "text", "image"), pictures / "turned.parquet", options=LOOSE)
    assert pq.read_table(pictures / "turned.parquet").column_names[:3] == ["id", "text", "image"]


def test_mistakes_are_said_before_anything_is_written(encoder, rows, tmp_path):
    with pytest.raises(MmclError, match=r"what is written is Parquet or JSON lines"):
        mine_negatives(encoder, pairs(rows), tmp_path / "out.csv")
    with pytest.raises(MmclError, match="5 negatives of the ranks 8 to 10"):
        mine_negatives(encoder, pairs(rows), tmp_path / "out.parquet", Rules(5, depth=10, skip=8))
    with pytest.raises(MmclError, match="no column 'answer'"):
        mine_negatives(encoder, pairs(rows, positive="answer"), tmp_path / "out.parquet")
    (tmp_path / "odd.csv").write_text("question,answer\na,b\n")
    with pytest.raises(
        MmclError, match=r"no columns image and text, or anchor and positive; .* it has question, answer"
    ):
        usual_columns(open_source(tmp_path / "odd.csv"))
    with pytest.raises(MmclError, match="no column 'foo'"):
        usual_columns(open_source(tmp_path / "odd.csv"), anchor="foo")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.csv"]


def test_what_a_killed_process_kept_on_disk_is_removed_by_the_next(rows, tmp_path):
    encoder = encoder_of()
    mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    process = os.fork()
    if not process:
        encoder.encode = lambda *arguments, **options: os._exit(9)
        mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f".out.jsonl.{process}-1.part"]
    mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_full_disk_leaves_the_old_file_and_nothing_else(rows, tmp_path, monkeypatch):
    encoder, calls = encoder_of(), []
    mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    encode = encoder.encode

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(*arguments, **options)

    monkeypatch.setattr(encoder, "encode", full)
    monkeypatch.setitem(items._BLOCK, "text", 40)
    with pytest.raises(OSError, match="No space left"):
        mine_negatives(encoder, pairs(rows), tmp_path / "out.jsonl", Rules(3))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_bytes() == before
