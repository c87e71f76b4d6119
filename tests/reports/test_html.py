import io
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mmcl.evaluation import Scores, retrieval_pairs
from mmcl.reports import Hit, Mistake, Search, write_report, write_run_report
from mmcl.training.run import Run

Steps: TypeAlias = Callable[..., list[dict[str, Any]]]
Judged: TypeAlias = dict[str, dict[str, Scores]]
FakeRun: TypeAlias = Callable[..., Run]


class Page(HTMLParser):
    """Everything of a page that can reach outside, run, or be looked up."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.text += data

    def all(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


def encoded(color: str = "red", size: tuple[int, int] = (20, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scores() -> Judged:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 8))
    return {"unseen art": retrieval_pairs(image, image + rng.normal(size=image.shape), bootstrap=50)}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, scores: Judged, steps: Steps, fake_run: FakeRun) -> str:
    tmp_path = tmp_path_factory.mktemp("report")
    run = fake_run(tmp_path / "run", steps(), step=20)
    hits = [Hit("red square", 0.512, encoded(), True), Hit("blue square", 0.25, encoded("blue"), False)]
    mistake = Mistake(encoded(), "crab", "ship", encoded("blue"), 0.443, 0.406, 4)
    path = write_report(
        tmp_path / "page.html",
        run,
        title="Emoji",
        scores=scores,
        searches=[Search("something red", hits)],
        mistakes=[mistake],
        notes=["Looked at once."],
    )
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(full: str) -> None:
    page = Page(full)
    assert all(value.startswith("data:image/") for value in page.all("src"))
    assert all(value.startswith("#") for value in page.all("href") + page.all("xlink:href"))
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "embed", "base"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", full))
    assert "@import" not in full
    assert "default-src 'none'" in full


def test_scores_stand_with_interval_chance_and_n(full: str, scores: Judged) -> None:
    text = Page(full).text
    for judged in scores["unseen art"].values():
        for name in ("hit@1", "hit@5", "hit@10"):
            low, high = judged.intervals[name]
            assert f"{100 * judged.metrics[name]:.1f}%" in text
            assert f"{100 * low:.1f}–{100 * high:.1f}" in text
    assert f"{100 / 60:.1f}%" in text  # one right answer among 60: chance of hit@1
    assert f"{1000 / 60:.1f}%" in text  # and of hit@10
    assert "n = 60 queries, 60 candidates" in text


def test_bars_are_as_long_as_their_values(full: str, scores: Judged) -> None:
    drawn = [float(width) for width in re.findall(r'<rect class="length"[^>]* width="([\d.]+)%"', full)]
    measured = [judged.metrics[f"hit@{k}"] for judged in scores["unseen art"].values() for k in (1, 5, 10)]
    np.testing.assert_allclose(drawn, 100 * np.array(measured), atol=0.005)


def test_searches_and_mistakes_are_reported(full: str) -> None:
    page = Page(full)
    assert "something red" in page.text
    assert "0.512" in page.text
    assert page.text.count("✓ right") == 1  # in words: not by colour alone
    assert {"red square", "blue square", "The image: crab", "Taken for: ship"} <= set(page.all("alt"))
    assert page.tags["img"] == len(page.all("alt")) == 4
    assert "taken for ship by 0.037" in page.text
    assert "right name at rank 4" in page.text


def test_the_run_is_reported(full: str) -> None:
    text = Page(full).text
    for fact in ("pairs.csv, split train, 7,902 rows", "3 min 12 s", "mmcl 0.0.9", "40; the model is that of step 20"):
        assert fact in text
    assert "learn_temperature: true" in text  # the config, whole
    assert "has written no model" not in text


def test_every_svg_is_xml_and_no_id_is_there_twice(full: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", full, flags=re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    ids = Page(full).all("id")
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for value in Page(full).all("href") + Page(full).all("xlink:href")}
    assert anchors <= set(ids)


def test_tables_have_headers_and_curves_have_words(full: str) -> None:
    page = Page(full)
    assert {"col", "row"} == set(page.all("scope"))
    assert page.tags["table"] == page.tags["caption"]
    assert "Loss: from 5 at step 10 to 3.5 at step 40" in page.all("aria-label")


def test_text_of_users_is_inert(tmp_path: Path, scores: Judged, fake_run: FakeRun, config: dict) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    config = {**config, "name": evil.replace("/", ""), "data": {"train": {"source": evil}}}  # a name is no path
    config["evaluation"] = {"sources": {evil: {"source": evil}}}
    lines = [{"step": 1, "loss": 1.0, evil: 2.0}, {"step": 1, "evaluation": {f"{evil}/{evil}/hit@1": 0.5}}]
    run = fake_run(tmp_path, lines, config=config)
    (tmp_path / "skipped.jsonl").write_text(json.dumps(dict.fromkeys(("source", "id", "role", "reason"), evil)))
    by_itself = write_run_report(run).read_text(encoding="utf-8")
    given = write_report(
        tmp_path / "given.html",
        run,
        title=evil,
        scores={evil: dict.fromkeys([evil], scores["unseen art"]["image_to_text"])},
        searches=[Search(evil, [Hit(evil, 0.5, encoded(), True)])],
        mistakes=[Mistake(encoded(), evil, evil, encoded(), 0.5, 0.4, 2)],
        notes=[evil],
    ).read_text(encoding="utf-8")
    for html, images in ((by_itself, 0), (given, 3)):
        page = Page(html)
        assert evil in page.text  # shown as it was written
        assert page.tags["script"] == 0
        assert page.tags["img"] == images
        assert not [name for _, name, _ in page.attributes if name == "onerror"]


def test_control_characters_are_shown_escaped(tmp_path: Path, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, [])
    page = write_report(tmp_path / "r.html", run, title="a\u202eb\x1b[2J", notes=["c\x9bd\te"]).read_text(
        encoding="utf-8"
    )
    assert "a\\u202eb\\x1b[2J" in page
    assert "c\\x9bd\te" in page
    assert not set(page) & set("\u202e\x1b\x9b")


@pytest.mark.parametrize("count", [None, 0, 1, 3])
def test_an_unfinished_run_has_a_report(tmp_path: Path, count: int | None, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, None if count is None else steps(count))
    page = Page(write_run_report(run).read_text(encoding="utf-8"))
    assert "This run has written no model yet" in page.text
    assert ("Loss: 5 at step 10" in page.all("aria-label")) == (count == 1)
    assert ("Results" in page.text) == (count == 3)  # the second step is judged


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, steps())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert "its last logged step is 40" in Page(write_run_report(run).read_text(encoding="utf-8")).text


def test_a_run_by_itself_reports_the_evaluation_of_its_model(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, steps(), step=20)
    path = write_run_report(run)
    text = Page(path.read_text(encoding="utf-8")).text
    assert path == tmp_path / "report.html"
    assert "Measured during training, at step 20" in text
    assert "21.0%" in text  # hit@1 at step 20
    assert "41.0%" not in text  # hit@1 at step 40, not the model's
    assert "95% interval" not in text.partition("Definitions of the metrics")[0]


def test_skipped_rows_are_counted_and_the_first_listed(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, steps(), step=40)
    rows = [{"source": "pairs.csv", "id": f"row-{n}", "role": "image", "reason": "truncated"} for n in range(1200)]
    (tmp_path / "skipped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Page(write_run_report(run).read_text(encoding="utf-8")).text
    assert "1,200 rows skipped" in text
    assert "row-4" in text
    assert "row-5" not in text


def test_an_image_that_cannot_be_read_leaves_its_place(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, steps())
    hits = [Hit("broken", 0.5, b"not an image"), Hit("text only", 0.4)]
    html = write_report(tmp_path / "x.html", run, title="x", searches=[Search("q", hits)]).read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags["img"] == 0
    assert page.text.count("no image") == 1
    assert "text only" in page.text


def test_the_old_report_stays_complete_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_run: FakeRun
) -> None:
    run = fake_run(tmp_path, [])
    old = write_run_report(run).read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_run_report(run)
    assert (tmp_path / "report.html").read_bytes() == old
    assert not list(tmp_path.glob(".*"))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, steps: Steps, fake_run: FakeRun) -> None:
    run = fake_run(tmp_path, steps(), step=40)
    assert write_run_report(run).read_bytes() == write_run_report(run).read_bytes()
