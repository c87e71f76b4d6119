import pytest

from mmcl.evaluation import StsScores
from mmcl.reports import judge_run, write_run_report
from mmcl.training import train

SCRATCH = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}}


def test_the_report_of_a_run_compares_with_the_start_and_shows_searches_and_mistakes(tmp_path, shapes_config):
    run = train(shapes_config, out=tmp_path / "run", overrides=["training.epochs=0.1"], show_progress=False)
    judged = judge_run(run)
    for way, scores in judged.scores["dev"].items():
        for name in ("hit@1", "hit@10", "mrr"):
            assert scores.metrics[name] == pytest.approx(run.metrics[f"dev/{way}/{name}"], abs=0.01)
            low, high = scores.intervals[name]
            assert low <= scores.metrics[name] <= high
    assert all(len(search.hits) == 8 for search in judged.searches)
    margins = [mistake.score - mistake.score_of_right for mistake in judged.mistakes]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] > 0
    [start] = [line["start"] for line in run.lines() if "start" in line]
    assert start.keys() == run.metrics.keys()
    page = write_run_report(run, judged).read_text(encoding="utf-8")
    assert all(title in page for title in ("95% interval", "before", "chance", "Searches", "Nearest wrong answers"))


def test_runs_on_sentences_are_judged_by_correlation_and_by_search(tmp_path):
    pairs = [f"a {colour} {thing}\tthe {thing} is {colour}" for colour in ("red", "blue") for thing in "abcdefgh"]
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\n" + "\n".join(pairs) + "\n")
    scored = [f"{pair}\t{number % 6}" for number, pair in enumerate(pairs)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(scored) + "\n")
    source = str(tmp_path / "pairs.tsv")
    config = {
        "name": "sentences",
        "method": "simcse",
        "data": {"train": {"source": source}, "columns": {"anchor": "anchor", "positive": "positive"}},
        "model": {"dim": 16, "text": SCRATCH},
        "training": {"epochs": 1, "batch_size": 8},
        "evaluation": {
            "sources": {"sts": {"task": "sts", "source": str(tmp_path / "sts.tsv")}, "dev": {"source": source}}
        },
    }
    run = train(config, out=tmp_path / "run", show_progress=False)
    judged = judge_run(run)
    assert isinstance(judged.scores["sts"], StsScores)
    assert judged.scores["dev"].keys() == {"anchor_to_positive", "positive_to_anchor"}
    page = write_run_report(run, judged).read_text(encoding="utf-8")
    assert "16 rows" in page
    assert "anchor → positive" in page
