"""Searching an index from the command line: what a query is, and whose vectors it is compared with."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.config.data import ImageConfig
from mmcl.config.model import HeadConfig, ImageTowerConfig, TextTowerConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources import open_source
from mmcl.encoding import Columns, encode_source, open_vectors
from mmcl.encoding.encoder import Encoder
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.retrieval import Index

TEXTS = ["a red dog", "a blue car", "a green tree", "dog.png"]


def tiny(seed=0):
    torch.manual_seed(seed)
    images, image = build_image_tower(
        ImageTowerConfig(name="timm:resnet10t", args={"channels": [8, 8, 8, 8], "stem_width": 8}), ImageConfig(size=32)
    )
    settings = TextTowerConfig(layers=1, width=16, heads=2)
    texts, text = build_text_tower(settings, train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20))
    embedders = {"image": ImageEmbedder(images, image, Head(HeadConfig(), image.width, 8))}
    return Encoder(Towers(embedders | {"text": TextEmbedder(texts, text, Head(HeadConfig(), 16, 8))}, 8, "tiny")).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, vectors of four texts by it, and their index."""
    folder = tmp_path_factory.mktemp("made")
    tiny().save(folder / "model")
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "text": TEXTS}), folder / "texts.parquet")
    source = open_source(folder / "texts.parquet")
    encoder = mmcl.load(folder / "model", dtype="float32")
    encode_source(encoder, source, Columns("text", modality="text"), folder / "vectors")
    Index.build(open_vectors(folder / "vectors")).save(folder / "index")
    return folder


@pytest.fixture
def moved(made, tmp_path):
    """A copy of the folder, of which the original is not to be found."""
    shutil.copytree(made, tmp_path / "copy")
    for name, key in (("index/index.json", "model"), ("vectors/manifest.json", "model")):
        path = tmp_path / "copy" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: "/gone/model"}))
    return tmp_path / "copy"


def test_a_search_imports_none_of_the_libraries_that_train_read_tables_and_plot(made):
    code = (
        "import atexit, sys; sys.argv[0] = 'mmcl'; from mmcl.cli import main\n"
        "unused = {'datasets', 'matplotlib', 'scipy.stats', 'mmcl.training'}\n"
        "atexit.register(lambda: print('imported:', unused & set(sys.modules)))\n"
        "main()"
    )
    given = ["search", str(made / "index"), "a red dog", "-k", "1"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: set()\n")


def ids(mmcl_, tmp_path, *arguments):
    code, _, err = mmcl_("search", *arguments, "--json", tmp_path / "answers.json")
    assert code == 0, err
    answers = json.loads((tmp_path / "answers.json").read_text())
    return {query: [hit["id"] for hit in hits] for query, hits in answers.items()}


def test_a_model_that_moved_with_its_index_is_found(mmcl_, moved, tmp_path):
    assert ids(mmcl_, tmp_path, moved / "index", "a blue car", "-k", 1) == {"a blue car": ["b"]}
    (moved / "model").rename(moved / "elsewhere")
    code, _, err = mmcl_("search", moved / "index", "a blue car")
    assert code == 2
    assert "/gone/model" in err
    assert "--model" in err
    named = ("--model", moved / "elsewhere")
    assert ids(mmcl_, tmp_path, moved / "index", "a blue car", "-k", 1, *named) == {"a blue car": ["b"]}


@pytest.mark.parametrize("change", ["seed", "weight", "prompt"])
def test_a_model_replaced_under_the_same_path_is_refused(mmcl_, moved, change):
    encoder = tiny(seed=change == "seed")
    if change == "weight":
        next(encoder.embedder("text").parameters()).data[-1, -1] += 1e-3
    if change == "prompt":
        encoder.embedder("text").processor.set_prompts({"query": "a "}, "query")
    encoder.save(moved / "model")
    code, out, err = mmcl_("search", moved / "index", "a blue car")
    assert (code, out) == (2, "")
    assert ("now puts 'a '" if change == "prompt" else "other weights") in err
    assert len(err.splitlines()) == 1


def test_an_index_without_a_fingerprint_opens_with_a_line(mmcl_, moved, tmp_path):
    path = moved / "index" / "index.json"
    about = json.loads(path.read_text())
    del about["encoder"], about["near"]
    path.write_text(json.dumps(about | {"model": str(moved / "model")}))
    code, out, err = mmcl_("search", moved / "index", "a blue car", "-k", 1)
    assert code == 0
    assert "b" in out
    assert "not known whether" in err


def test_vectors_cut_to_fewer_dimensions_are_searched_in_these(mmcl_, made, tmp_path):
    encoder = mmcl.load(made / "model", dtype="float32")
    source = open_source(made / "texts.parquet")
    stored = encode_source(encoder, source, Columns("text", modality="text"), tmp_path / "vectors", truncate_dim=5)
    Index.build(stored).save(tmp_path / "index")
    assert ids(mmcl_, tmp_path, tmp_path / "index", "a blue car", "-k", 1) == {"a blue car": ["b"]}


def test_what_a_query_is(mmcl_, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save("dog.png")
    shutil.copy("dog.png", "extensionless")
    (tmp_path / "a red dog").write_text("a file that is no image")
    encoder = mmcl.load(made / "model", dtype="float32")
    index = Index.load(made / "index")
    long = "a red dog " * 300
    as_image = index.search(encoder.encode(tmp_path / "dog.png"), 4)[0][0].tolist()
    expected = {"dog.png": as_image, "extensionless": as_image}
    expected |= {text: index.search(encoder.encode(text), 4)[0][0].tolist() for text in ("a red dog", long)}
    assert ids(mmcl_, tmp_path, made / "index", *expected) == expected
    assert ids(mmcl_, tmp_path, made / "index", "dog.png", "-k", 1, "--text") == {"dog.png": ["d"]}


@pytest.mark.parametrize("lines", ["a blue car\n\n  dog\n", "a blue car\ndog"])
def test_queries_are_read_from_standard_input(mmcl_, made, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    found = ids(mmcl_, tmp_path, made / "index", "-k", 1)
    assert found["a blue car"] == ["b"]
    assert set(found) == {"a blue car", "dog"}


def test_on_a_terminal_queries_are_asked_for_and_a_mistake_does_not_end_it(mmcl_, made, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no image")
    typed = iter([str(tmp_path / "broken.png"), "a blue car"])

    def typing():
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", typing)
    code, out, err = mmcl_("search", made / "index", "-k", 1)
    assert code == 0
    assert "a blue car" in out
    assert "broken.png" in err
    assert err.count("query> ") == 3  # stdout, which is no terminal, gets the answers alone
    assert "query> " not in out


@pytest.mark.parametrize("query", ["", "  "])
def test_an_empty_query_is_refused(mmcl_, made, query):
    code, out, err = mmcl_("search", made / "index", query)
    assert (code, out, err) == (2, "", "error: a query is empty; name words, or an image file\n")


def test_a_query_that_is_to_be_text_is_not_said_to_be_the_name_of_a_file(mmcl_, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("dog.png")
    code, _, err = mmcl_("search", made / "index", "dog.png", "--text")
    assert (code, err) == (0, "")


def test_more_like_an_id_and_a_mix_stand_beside_queries(mmcl_, made, tmp_path):
    index = Index.load(made / "index")
    arguments = ("a blue car", "--like", "a", "--mix", "a red dog", "--mix", "id=b:0.5", "--mix=a green tree:-0.5")
    found = ids(mmcl_, tmp_path, made / "index", *arguments, "-k", 2)
    assert list(found) == ["a blue car", "id=a", "a red dog + 0.5 × id=b - 0.5 × a green tree"]
    assert "a" not in found["id=a"]
    encoder = mmcl.load(made / "model")
    mixed = encoder.encode("a red dog") + 0.5 * index.vectors(["b"])[0] - 0.5 * encoder.encode("a green tree")
    assert list(found.values())[2] == [name for name in index.search(mixed, 4)[0][0].tolist() if name != "b"][:2]


def test_results_as_lines_of_json_and_csv(mmcl_, made):
    arguments = ("search", made / "index", "a blue car", "dog.png", "--text", "-k", 2, "--format")
    code, out, _ = mmcl_(*arguments, "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["query"], line["rank"]) for line in lines] == [
        ("a blue car", 1), ("a blue car", 2), ("dog.png", 1), ("dog.png", 2),
    ]  # fmt: skip
    assert (lines[0]["id"], lines[0]["label"]) == ("b", "a blue car")
    _, out, _ = mmcl_(*arguments, "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["query"], row["id"], row["label"]) for row in rows] == [
        (line["query"], line["id"], line["label"]) for line in lines
    ]
    assert [float(row["score"]) for row in rows] == [line["score"] for line in lines]


def test_a_page_shows_the_images_of_the_results(mmcl_, made, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    pq.write_table(
        pa.table({"id": ["a", "b", "c", "d"], "image": [(tmp_path / "a.png").read_bytes()] * 4}),
        tmp_path / "images.parquet",
    )
    page = tmp_path / "page.html"
    code, _, err = mmcl_(
        "search",
        made / "index",
        "a blue car",
        tmp_path / "a.png",
        "--html",
        page,
        "--images",
        tmp_path / "images.parquet",
    )
    assert code == 0, err
    assert page.read_text(encoding="utf-8").count('<img src="data:image/webp;base64,') == 4 + 4 + 1


def test_words_are_added_and_searched_with_the_vectors(mmcl_, made, moved, tmp_path):
    shutil.copytree(made / "model", tmp_path / "here")
    index, named = moved / "index", ("--model", tmp_path / "here")
    code, _, err = mmcl_("search", index, "car", "--hybrid", *named)
    assert code == 2
    assert "mmcl index lexical" in err
    code, out, err = mmcl_("index", "lexical", index, moved / "texts.parquet")
    assert code == 0, err
    assert out.startswith("7 words of 4 texts beside")
    words = ("--hybrid", "--fusion", "0,1")
    assert ids(mmcl_, tmp_path, index, "cars", "-k", 1, *words, *named) == {"cars": ["b"]}
    code, _, err = mmcl_("search", index, "car", "--fusion", "some", *named)
    assert code == 2
    assert "--fusion some" in err
    code, _, err = mmcl_("index", "lexical", index, moved / "texts.parquet", "--language", "klingon")
    assert code == 2
    assert "klingon" in err


def test_vectors_and_words_are_judged_and_learned_weights_kept(mmcl_, made, moved, tmp_path):
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    queries = {"q1": ("red dog", "a"), "q2": ("blue car", "b"), "q3": ("a tree", "c"), "q4": ("green", "c")}
    for name, items in (
        ("corpus", dict(zip("abcd", TEXTS, strict=True))),
        ("queries", {key: text for key, (text, _) in queries.items()}),
    ):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in items.items()]
        (task / f"{name}.jsonl").write_text("\n".join(lines))
    judged = "".join(f"{key}\t{document}\t1\n" for key, (_, document) in queries.items())
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    shutil.copytree(made / "model", tmp_path / "here")
    index, named = moved / "index", ("--model", tmp_path / "here")
    assert mmcl_("index", "lexical", index, task / "corpus.jsonl")[0] == 0
    code, out, err = mmcl_(
        "eval", "hybrid", index, task, *named, "--folds", 2, "--keep", "--json", tmp_path / "found.json"
    )
    assert code == 0, err
    for shown in (
        "vectors",
        "words",
        "rrf",
        "learned",
        "ndcg@10",
        "learned weights: vectors",
        "4 queries, corpus of 4",
    ):
        assert shown in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["scores"]["words"]["metrics"]["mrr"] == 1.0
    assert found["learned"]["weights"][1] > 0
    kept = json.loads((index / "fusion.json").read_text())
    assert kept["weights"] == found["learned"]["weights"]
    assert ids(mmcl_, tmp_path, index, "blue cars", "-k", 1, "--hybrid", *named) == {"blue cars": ["b"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--like", "zz"), "zz"),
        (("a red dog", "--match", "often"), "--match often"),
        (("a red dog", "--match", "best"), "mmcl eval threshold"),
        (("--mix", "a red dog:0"), "weight"),
        (("--mix", "a red dog", "--mix", "a red dog:-1"), "comes to nothing"),
        (("a red dog", "--where", "weight > 2"), "weight"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(mmcl_, made, arguments, message):
    code, out, err = mmcl_("search", made / "index", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--id", "user"], "are of --rows"),
        (["--without", "history"], "are of --rows"),
        (["--rows", "users.csv", "--hybrid"], "searched by alone"),
        (["--rows", "users.csv", "--match", "best"], "searched by alone"),
        (["--images", "shop.csv"], "give --html too"),
    ],
)
def test_options_that_would_change_nothing_are_refused(mmcl_, made, options, message):
    code, out, err = mmcl_("search", made / "index", "a red dog", *options)
    assert (code, out) == (2, "")
    assert message in err
