"""mmcl eval, as a user meets it, with a model that needs no training."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import mmcl

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


class Untrained:
    """Average colour as the image's vector; a text's is random, or near that of the colour it names."""

    modalities = frozenset({"image", "text"})
    compute, device = "float32", torch.device("cpu")

    def __init__(self, blind: bool) -> None:
        self._blind = blind

    def encode(self, inputs):
        return np.stack([self._text(item) if isinstance(item, str) else self._image(item) for item in inputs])

    def _image(self, image):
        return np.asarray(image, dtype=np.float32).mean((0, 1)) / 255 - 0.4

    def _text(self, text):
        noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(3).astype(np.float32)
        named = [rgb for name, rgb in COLOURS.items() if name in text]
        if self._blind or not named:
            return noise
        return np.array(named[0], dtype=np.float32) / 255 - 0.4 + noise * (0.2 if "number" in text else 0)


@pytest.fixture
def evaluate(monkeypatch, mmcl_):
    """Run ``mmcl eval``; gives (exit code, stdout, stderr). The models are called good and blind."""
    monkeypatch.setattr(mmcl, "load", lambda name, **options: Untrained(blind=name == "blind"), raising=False)
    return lambda *arguments: mmcl_("eval", *arguments)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Forty images of four colours, with two captions each in a JSON lines file."""
    folder, rng, lines = tmp_path_factory.mktemp("colours"), np.random.default_rng(0), []
    for row in range(40):
        name, colour = list(COLOURS.items())[row % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 12, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        captions = [f"a {name} image", f"something {name}, number {row}"]
        lines.append(json.dumps({"image": f"{row}.png", "text": captions, "colour": name, "number": row % 4}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("red\ngreen\nblue\nwhite\n")
    (folder / "prompts.txt").write_text("a {} image\nsomething {}\n")
    return folder


def test_retrieval_shows_clip_benchmarks_names_and_numbers(evaluate, table, tmp_path):
    code, out, _ = evaluate("retrieval", "good", table / "rows.jsonl", "-k", "1,10", "--json", tmp_path / "r.json")
    assert code == 0
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["image_to_text"]["metrics"]["hit@1"] == 1.0
    names = {f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 10)}
    assert set(saved["clip_benchmark"]) == names
    assert saved["clip_benchmark"]["image_retrieval_recall@1"] < 0.5  # equal captions are wrong answers there
    assert "per_query" not in saved["image_to_text"]
    assert f"text_retrieval_recall@1 {saved['clip_benchmark']['text_retrieval_recall@1']:.4f}" in out


def test_zero_shot_by_numbers_and_templates_from_a_file(evaluate, table, tmp_path):
    options = ["--label", "number", "--classes", table / "classes.txt", "--template", table / "prompts.txt"]
    code, out, _ = evaluate(
        "zero-shot", "good", table / "rows.jsonl", *options, "--template", "{}", "--json", tmp_path / "z"
    )
    assert code == 0
    saved = json.loads((tmp_path / "z").read_text())
    assert saved["metrics"]["top@1"] == saved["clip_benchmark"]["acc1"] == 1.0
    assert saved["per_class"] == {"red": 1.0, "green": 1.0, "blue": 1.0, "white": 1.0}
    assert "mean_per_class_recall" in out
    assert "40 images, 4 classes" in out
    assert "always answering the largest class, red, would score top@1 0.2500" in out
    assert saved["largest_class"] == {"name": "red", "share": 0.25}
    assert saved["class_images"] == {"red": 10, "green": 10, "blue": 10, "white": 10}
    assert [line.split() for line in out.splitlines() if line.lstrip().startswith("green")] == [
        ["green", "10", "1.0000"]
    ]


def test_diagnostics_of_one_column_or_two(evaluate, table, tmp_path):
    code, out, _ = evaluate("diagnostics", "good", table / "rows.jsonl", "--json", tmp_path / "d.json")
    assert code == 0
    saved = json.loads((tmp_path / "d.json").read_text())
    assert (saved["image"]["rows"], saved["text"]["rows"], saved["collapsed"]) == (40, 80, [])
    assert "modality_gap" in out
    assert "no sign of collapse" in out
    code, out, _ = evaluate("diagnostics", "good", table / "rows.jsonl", "--image", "image")
    assert code == 0
    assert "modality_gap" not in out


def test_two_models_are_compared_directly_or_from_files(evaluate, table, tmp_path):
    rows = table / "rows.jsonl"
    code, out, _ = evaluate(
        "compare", "blind", "good", rows, "-k", 1, "--json", tmp_path / "c.json", "--resamples", 2000
    )
    assert code == 0
    assert "B is ahead beyond the interval on " in out
    assert "text_to_image/mrr" in out
    assert "80 queries of 40 images" in out
    direct = json.loads((tmp_path / "c.json").read_text())
    for model in ("blind", "good"):
        assert evaluate("retrieval", model, rows, "-k", 1, "--json", tmp_path / f"{model}.json", "--per-query")[0] == 0
    files = [tmp_path / "blind.json", tmp_path / "good.json"]
    assert evaluate("compare", *files, "--json", tmp_path / "f.json", "--resamples", 2000)[0] == 0
    assert json.loads((tmp_path / "f.json").read_text())["metrics"] == direct["metrics"]
    code, out, _ = evaluate("compare", "blind", "good", rows, "--label", "colour")
    assert code == 0
    assert "B is ahead beyond the interval on zero_shot/top@1, zero_shot/mean_per_class" in out
    assert "hit@1" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retrieval", "good", "{rows}", "--per-query"], "--per-query needs --json FILE"),
        (["retrieval", "good", "{rows}", "-k", "one"], "expected cut-offs like 1,5,10"),
        (["zero-shot", "good", "{rows}", "--label", "number", "--classes", "imagnet"], "'imagnet': no such file"),
        (["zero-shot", "good", "{rows}", "--label", "colour", "--template", "opnai"], "did you mean 'openai'?"),
        (["compare", "good", "blind"], "name a source to judge both models on, or give two .json files"),
        (["compare", "{rows}/a.json", "b.json"], "no such file"),
        (
            ["compare", "good", "blind", "{rows}", "--metric", "hit@2"],
            "no metric 'hit@2' was measured; did you mean 'hit@",
        ),
        (["diagnostics", "good", "{rows}", "--text", "colours"], "did you mean 'colour'?"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(evaluate, arguments, said, table):
    code, out, err = evaluate(*(argument.format(rows=table / "rows.jsonl") for argument in arguments))
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert out == ""


def test_karpathys_json_is_judged_as_it_is(evaluate, table, tmp_path):
    """Five captions an image, of which any is a right answer; only the images of the split are searched."""
    images = [
        {
            "filename": f"{row}.png",
            "imgid": row,
            "split": "test" if row < 12 else "train",
            "sentences": [{"raw": f"{list(COLOURS)[row % 4]} number {row}, {what}"} for what in "vwxyz"],
        }
        for row in range(40)
    ]
    dataset = table / "dataset_colours.json"
    dataset.write_text(json.dumps({"dataset": "colours", "images": images}))
    code, _, _ = evaluate("retrieval", "good", dataset, "--split", "test", "--json", tmp_path / "k.json", "-k", "1,5")
    assert code == 0
    saved = json.loads((tmp_path / "k.json").read_text())
    assert (saved["image_to_text"]["queries"], saved["image_to_text"]["corpus"]) == (12, 60)
    assert (saved["text_to_image"]["queries"], saved["text_to_image"]["corpus"]) == (60, 12)
    assert saved["image_to_text"]["chance"]["recall@5"] == pytest.approx(5 / 60)
    for way, what in (("image_to_text", "text"), ("text_to_image", "image")):  # no caption stands twice
        for k in (1, 5):
            assert saved["clip_benchmark"][f"{what}_retrieval_recall@{k}"] == saved[way]["metrics"][f"hit@{k}"]


class Words:
    """Counts words into a few places (coarse) or many; texts that share words are alike."""

    modalities = frozenset({"text"})
    compute, device = "float32", torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def encode(self, texts, **options):
        vectors = np.full((len(texts), self._dim), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, zlib.crc32(word.encode()) % self._dim] += 1
        return vectors


@pytest.fixture
def of_texts(monkeypatch, mmcl_):
    """Run ``mmcl eval`` with models of text, called fine and coarse."""
    asked = []

    def load(name, **options):
        asked.append(options)
        return Words(4 if name == "coarse" else 1000)

    monkeypatch.setattr(mmcl, "load", load, raising=False)
    run = lambda *arguments: mmcl_("eval", *arguments)  # noqa: E731
    run.asked = asked
    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The seven STS tasks as a TSV file, questions with answers as a CSV, and a folder in BEIR's layout."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    lines, faq, corpus, queries = ["task\tsplit\tscore\tsentence1\tsentence2"], ["question,answer"], [], []
    for number, task in enumerate(["STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR"] * 40):
        first, common = rng.choice(words, 6, replace=False), int(rng.integers(0, 7))
        second = [*first[:common], *rng.choice(words, 6 - common)]
        lines.append("\t".join([task, "test", f"{common * 5 / 6:.1f}", " ".join(first), " ".join(second)]))
        if number < 50:
            faq.append(f"{' '.join(first[:4])},{' '.join(first[1:])}")
            corpus.append(json.dumps({"_id": f"d{number}", "title": first[0], "text": " ".join(first[1:])}))
            queries.append(json.dumps({"_id": f"q{number}", "text": " ".join(first[2:4])}))
    judgements = [f"q{n}\td{n}\t3\nq{n}\td{(n + 1) % 50}\t1" for n in range(50)]
    (folder / "sts.tsv").write_text("\n".join(lines) + "\n")
    (folder / "faq.csv").write_text("\n".join(faq) + "\n")
    (folder / "beir" / "qrels").mkdir(parents=True)
    (folder / "beir" / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "beir" / "queries.jsonl").write_text("\n".join(queries))
    (folder / "beir" / "qrels" / "test.tsv").write_text("\n".join(["q\td\ts", *judgements]))
    return folder


def test_the_sts_table_fits_80_columns_and_tests_two_models(of_texts, texts, tmp_path):
    options = ["--against", "coarse", "--resamples", 300, "--dtype", "float32", "--json", tmp_path / "s.json"]
    code, out, _ = of_texts("sts", "fine", texts / "sts.tsv", *options)
    assert code == 0
    assert max(len(line) for line in out.splitlines() if line.startswith(" ")) <= 80  # the tables; prose may wrap
    assert [options["dtype"] for options in of_texts.asked] == ["float32", "float32"]
    saved = json.loads((tmp_path / "s.json").read_text())
    shown = next(line for line in out.splitlines() if line.lstrip().startswith("Spearman")).split()[1:]
    tasks = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR"]
    keys = [f"{task}/spearman" for task in tasks] + ["spearman"]
    assert shown == [f"{100 * saved['metrics'][key]:.2f}" for key in keys]
    assert saved["intervals"]["spearman"][0] < saved["metrics"]["spearman"] < saved["intervals"]["spearman"][1]
    assert list(saved["against"]["metrics"]) == [*tasks, "average"]
    assert saved["against"]["metrics"]["average"]["ahead"] == "a"
    assert "paired over 280 pairs; 300 resamples" in out


def test_one_task_of_a_table_has_no_average(of_texts, texts):
    code, out, _ = of_texts("sts", "fine", texts / "sts.tsv", "--task", "STSB", "--resamples", 10)
    assert code == 0
    assert "STSB" in out
    assert "average" not in out


def test_rows_left_out_are_reported_once(of_texts, tmp_path, caplog):
    rows = ["sentence1\tsentence2\tscore", "w1\tw1\t5", "w1\tw2\t2", "w1 w2\tw2 w3\t3", "w1\t\t3"]
    (tmp_path / "sts.tsv").write_text("\n".join(rows) + "\n")
    code, out, _ = of_texts("sts", "fine", tmp_path / "sts.tsv", "--resamples", 10)
    assert code == 0
    assert "left out" not in out  # it is on stderr
    assert "fewer than 10 pairs give no interval (–): sts" in out
    assert [record.args[1:3] for record in caplog.records if "left out" in record.message] == [(1, 4)]


def test_a_beir_folder_is_judged_and_compared_by_its_grades(of_texts, texts, tmp_path):
    options = ["--against", "coarse", "--json", tmp_path / "b.json", "--per-query"]
    code, out, _ = of_texts("retrieval", "fine", texts / "beir", *options)
    assert code == 0
    assert "query_to_document: 50 queries, corpus of 50" in out
    assert "clip_benchmark" not in out
    saved = json.loads((tmp_path / "b.json").read_text())
    assert {"ndcg@10", "recall@100", "map", "mrr"} <= set(saved["query_to_document"]["metrics"])
    headlines = [f"query_to_document/{name}" for name in ("ndcg@10", "recall@100", "map", "mrr")]
    assert set(saved["against"]["metrics"]) == set(headlines)
    assert saved["against"]["metrics"]["query_to_document/ndcg@10"]["ahead"] == "a"
    assert of_texts("compare", "fine", "coarse", texts / "beir", "--json", tmp_path / "c.json")[0] == 0
    assert json.loads((tmp_path / "c.json").read_text())["metrics"] == saved["against"]["metrics"]
    assert of_texts("retrieval", "coarse", texts / "beir", "--json", tmp_path / "d.json", "--per-query")[0] == 0
    assert of_texts("compare", tmp_path / "b.json", tmp_path / "d.json", "--json", tmp_path / "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["metrics"] == saved["against"]["metrics"]


def test_a_written_run_is_judged_like_its_model_and_compared_with_models_and_saved_values(of_texts, texts, tmp_path):
    run, qrels = tmp_path / "fine.trec", texts / "beir" / "qrels" / "test.tsv"
    saved, ties = {}, ["--ties", "trec_eval", "--per-query"]
    for name, options in (("fine", ["--run", run]), ("coarse", [])):
        path = tmp_path / f"{name}.json"
        assert of_texts("retrieval", name, texts / "beir", *ties, "--json", path, *options)[0] == 0
        saved[name] = json.loads(path.read_text())["query_to_document"]
    assert run.read_text().splitlines()[0].split()[1:4:2] == ["Q0", "1"]
    for judgements in (texts / "beir", qrels):
        code, out, _ = of_texts("retrieval", run, judgements, "--json", tmp_path / "r.json", "--per-query")
        assert code == 0
        assert "query_to_document: 50 queries, run of 50" in out
        found = json.loads((tmp_path / "r.json").read_text())["query_to_document"]
        assert found["metrics"] == pytest.approx(saved["fine"]["metrics"])
        assert found["ties"] == "trec_eval"
    sides = {"model": "coarse", "values": tmp_path / "coarse.json", "run": run}
    differences = []
    for first, second in (("run", "model"), ("run", "values"), ("model", "run")):
        options = ["--json", tmp_path / "c.json", "--resamples", 200]
        assert of_texts("compare", sides[first], sides[second], texts / "beir", *options)[0] == 0
        differences.append(json.loads((tmp_path / "c.json").read_text())["metrics"]["query_to_document/ndcg@10"])
    assert [row["ahead"] for row in differences] == ["a", "a", "b"]
    assert differences[0] == differences[1]
    assert of_texts("compare", run, run, qrels, "--resamples", 10)[0] == 0
    assert of_texts("retrieval", run, qrels, "--against", run)[0] == 0
    for arguments, said in (
        (
            ("compare", "coarse", sides["values"], texts / "beir"),
            "judge both with the same --ties",
        ),
        (("compare", run, run), "name a source to judge both models on"),
        (("compare", run, "fine", texts / "faq.csv", "--query", "question", "--document", "answer"), "is a run, which"),
        (("retrieval", run, qrels, "--run", tmp_path / "x"), "--run writes what a model finds"),
        (("retrieval", "fine", texts / "beir", "--run", tmp_path), "is a folder; name a file"),
        (("retrieval", run, tmp_path / "no.qrels"), "no such file"),
        (("retrieval", "fine", texts / "sts.tsv", "--ties", "trec_eval"), "--ties is of searches with judgements"),
        (("retrieval", "fine", texts / "beir", "--ties", "trec"), "ties 'trec': no such rule"),
    ):
        code, _, err = of_texts(*arguments)
        assert code == 2, arguments
        assert said in " ".join(err.split()), arguments


def test_queries_that_stand_in_the_corpus_are_left_out_of_their_own_ranking_as_beir_does(of_texts, tmp_path):
    (tmp_path / "qrels").mkdir()
    lines = [json.dumps({"_id": f"a{number}", "text": f"w{number // 2} v{number}"}) for number in range(8)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    qrels = [f"a{number}\ta{number ^ 1}\t1" for number in range(7)]  # the counter-argument of each; none for the last
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["q\td\ts", *qrels, "a7\ta0\t0"]))
    found = {}
    for rule in ([], ["--self-matches", "drop"], ["--self-matches", "keep"]):
        code, out, _ = of_texts("retrieval", "fine", tmp_path, *rule, "--json", tmp_path / "a.json", "--per-query")
        assert code == 0
        assert "8 queries stand in the corpus themselves" in " ".join(out.split())
        assert "1 queries have no relevant document, and score 0" in " ".join(out.split())
        found["".join(rule[1:])] = json.loads((tmp_path / "a.json").read_text())["query_to_document"]
    assert [found[rule]["metrics"]["hit@1"] for rule in ("", "drop", "keep")] == [7 / 8, 7 / 8, 0]
    assert [found[rule]["self_matches"] for rule in ("", "drop", "keep")] == ["drop", "drop", "keep"]
    assert found[""]["per_query"]["data"] != found["keep"]["per_query"]["data"]  # not to be compared
    for rule, said in (("drop", "(--self-matches drop)"), ("keep", "BEIR drops")):
        code, out, _ = of_texts("compare", "fine", "fine", tmp_path, "--self-matches", rule, "--resamples", 10)
        assert code == 0
        assert said in " ".join(out.split())


def test_two_columns_of_text_are_searched_both_ways(of_texts, texts, tmp_path):
    columns = ["--query", "question", "--document", "answer"]
    code, _, _ = of_texts("retrieval", "fine", texts / "faq.csv", *columns, "-k", 1, "--json", tmp_path / "t.json")
    assert code == 0
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved["query_to_document"]["metrics"]["hit@1"] >= 0.9
    assert saved["document_to_query"]["queries"] == 50
    code, out, _ = of_texts("compare", "coarse", "fine", texts / "faq.csv", *columns, "-k", 1, "--resamples", 500)
    assert code == 0
    assert "B is ahead beyond the interval on query_to_document/hit@1" in out


def test_diagnostics_of_a_model_of_texts_need_no_images(of_texts, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(f"w{number} w{number + 1}" for number in range(9)) + "\n")
    code, _, _ = of_texts("diagnostics", "fine", tmp_path / "texts.csv", "--json", tmp_path / "d.json")
    assert code == 0
    saved = json.loads((tmp_path / "d.json").read_text())
    assert saved["text"]["rows"] == 9
    assert "image" not in saved


def test_diagnostics_of_pairs_of_sentences(of_texts, texts, tmp_path):
    pairs = ["--pairs", "sentence1,sentence2"]
    code, out, _ = of_texts("diagnostics", "fine", texts / "sts.tsv", *pairs, "--json", tmp_path / "d.json")
    assert code == 0
    assert "alignment" in out
    saved = json.loads((tmp_path / "d.json").read_text())
    assert saved["text"]["rows"] == 560
    assert 0 < saved["between"]["pairs"] < 280


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sts", "fine", "{}/sts.tsv", "--split", "dev"], "no split 'dev'; it has test"),
        (["sts", "fine", "{}/sts.tsv", "--task", "STSb"], "no task 'STSb'; did you mean 'STSB'?"),
        (["sts", "fine", "{}/sts.tsv", "--pairs", "sentence1"], "--pairs sentence1: expected two columns"),
        (["sts", "fine", "{}/sts.tsv", "--similarity", "cos"], "similarity 'cos' is not known"),
        (["sts", "fine", "{}/no.tsv"], "no such file or folder"),
        (["sts", "fine"], "mteb/sts12-sts: no such file or folder here, and the hub cannot be reached"),
        (["retrieval", "fine", "{}/faq.csv", "--query", "question"], "--query and --document go together"),
        (["retrieval", "fine", "{}/faq.csv"], "by --query and --document: it has question, answer"),
        (["compare", "fine", "coarse", "{}/faq.csv"], "by --query and --document: it has question, answer"),
        (["retrieval", "fine", "{}/beir", "--split", "dev"], "no split 'dev'; it has test"),
        (["retrieval", "fine", "{}/beir", "--self-matches", "dorp"], "did you mean 'drop'?"),
        (["retrieval", "fine", "{}/sts.tsv", "--self-matches", "drop"], "searches for texts by texts"),
        (["compare", "a.json", "b.json", "--self-matches", "drop"], "searches for texts by texts"),
        (["diagnostics", "fine", "{}/sts.tsv", "--pairs", "sentence1,sentence3"], "did you mean 'sentence"),
    ],
)
def test_mistakes_with_texts_get_one_line(of_texts, texts, arguments, said):
    code, out, err = of_texts(*(argument.format(texts) for argument in arguments))
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert out == ""


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("eval", "retrieval", "sample:minilm", "{}", "--query", "q", "--document", "caption"), "--query"),
        (("eval", "sts", "sample:minilm", "{}"), "--pairs"),
        (("eval", "zero-shot", "sample:minilm", "{}", "--label", "kind"), "--image"),
        (("data", "check", "{}", "--text", "captions"), "--text"),
        (("encode", "sample:minilm", "{}", "--out", "{}-out", "--column", "caption", "--label", "kind"), "--label"),
        (("encode", "sample:minilm", "{}", "--out", "{}-out", "--column", "caption", "--id", "sku"), "--id"),
        (("encode", "sample:minilm", "{}", "--out", "{}-out", "--column", "caption", "--id", "empty"), "--id"),
    ],
)
def test_a_column_that_will_not_do_comes_with_the_option_that_names_it(mmcl_, tmp_path, command, flag):
    (tmp_path / "rows.csv").write_text("path,caption,empty\na.png,a cat,\n")
    code, _, err = mmcl_(*(str(word).format(tmp_path / "rows.csv") for word in command))
    assert code == 2
    assert f"name another with {flag}" in err
    assert [line.startswith("error: ") for line in err.strip().splitlines()].count(True) == 1
