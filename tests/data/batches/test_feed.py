"""From rows to batches: identities, the choice among captions, further items."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.config import load_config
from mmcl.config.data import SourceConfig
from mmcl.data.batches.feed import open_feed
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.sampler import Draw
from mmcl.data.batches.table import Table
from mmcl.encoding import Encoder
from mmcl.evaluation.tasks.retrieval_evaluator import PairsEvaluator
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def make_feed(
    folder, rows, shapes_config, frozen=False, method=None, overrides=(), weights=(), references=None, augmented=False
):
    """``rows`` of one source, or a list of such lists, which may have ``weights``."""
    sources = []
    for part in rows if isinstance(rows[0], list) else [rows]:
        path = folder / f"rows{len(list(folder.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        sources.append({"source": str(path)})
    for source, weight in zip(sources, weights, strict=False):
        source["weight"] = weight
    data = {"train": sources[0], "mix": sources[1:], "image": {"size": 32}}
    config = load_config(shapes_config | {"data": data}, overrides)
    method = method or build_method(config, path.with_suffix(""))
    method.encoder.embedder("text").frozen = frozen
    method.references = references or {}
    sources = [config.data.train, *config.data.mix]
    feed = open_feed(sources, method.eval().reading, config, folder, augmented=augmented, device=torch.device("cpu"))
    return feed, method


def same(method, texts):
    """What texts are to a method's model."""
    return method.encoder.embedder("text").processor.identities(texts).tolist()


def judge(feed, method, ks):
    """The images and captions of a feed's rows, by each other."""
    sources, device = [feed.settings[0]], torch.device("cpu")
    table = Table(sources, Reading(method.columns, method.encoder), feed.config, feed._scratch, device=device)
    return PairsEvaluator(table, ("image", "text"), ks).evaluate(method.encoder)


def drawn(*rows, number=0, turn=0):
    return Draw(number, np.array(rows), np.full(len(rows), turn))


def equal(a, b):
    """Bit for bit."""
    tensors = [[batch.ids, batch.seeds, batch.rows, *batch.extra_ids.values()] for batch in (a, b)]
    for batch, flat in zip((a, b), tensors, strict=True):
        for inputs in (batch.inputs, batch.extra, *batch.references.values()):
            flat += [inputs[role][name] for role in sorted(inputs) for name in sorted(inputs[role])]
    return len(tensors[0]) == len(tensors[1]) and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


def test_every_caption_of_a_row_is_chosen_in_some_epoch_and_the_choice_belongs_to_row_and_epoch(
    image_folder, shapes_config
):
    captions = [[f"{n} {word}" for word in ("one", "two", "three")] for n in range(6)]
    rows = [{"image": f"{n}.png", "text": texts} for n, texts in enumerate(captions)]
    feed, method = make_feed(image_folder, rows, shapes_config)
    identities_of = [set() for _ in rows]
    for epoch in range(30):
        batch = feed.batch(drawn(*range(6), turn=epoch))
        for row, identity in enumerate(batch.ids[:, 1].tolist()):
            identities_of[row].add(identity)
        part = feed.batch(drawn(4, 1, turn=epoch))
        assert torch.equal(part.ids, batch.ids[[4, 1]])
    assert identities_of == [set(same(method, texts)) for texts in captions]


def test_extra_captions_are_distinct_and_carry_the_identity_of_their_image(image_folder, shapes_config):
    texts = ["a dog", "a cat", "a dog", "a cow", ["a hen", "a pig"], "a fox"]
    rows = [{"image": f"{n}.png", "text": text} for n, text in enumerate(texts)]
    feed, method = make_feed(image_folder, rows, shapes_config, overrides=["method.extra_texts=4"], augmented=True)
    batch = feed.batch(drawn(0, 1, number=3))
    ids = batch.extra_ids["negatives"]
    assert ids.shape == (4, 2)
    assert len(set(ids[:, 1].tolist())) == 4
    owner = {
        name: row for row, cell in enumerate(texts) for name in same(method, [cell] if isinstance(cell, str) else cell)
    }
    images_of = feed.columns["image"].hashes
    for image, text in ids.tolist():
        assert image in {images_of[row] for row, cell in enumerate(texts) if cell == texts[owner[text]]}
    assert feed.extra_count == 4
    again = feed.batch(drawn(0, 1, number=3)).extra_ids["negatives"]
    assert torch.equal(ids, again)
    everything, _ = make_feed(image_folder, rows, shapes_config, overrides=["method.extra_texts=99"], augmented=True)
    assert everything.extra_count == 6  # all distinct captions


def test_an_epoch_whose_batch_cannot_be_filled_ends_in_one_line(image_folder, shapes_config):
    """The first row shares something with all but two others: what stands beside it changes from epoch to epoch."""
    things = [(1, "hen"), (0, "hen"), (5, "cow"), (1, "pig"), (2, "hen"), (3, "fox")]
    rows = [{"image": f"{image}.png", "text": text} for image, text in things]
    changed = ["training.batch_size=4", "data.distinct=true"]
    feed, _ = make_feed(image_folder, rows, shapes_config, overrides=changed)
    assert len(feed) == 1  # the first epoch's can
    with pytest.raises(MmclError, match=r"^data\.distinct: 4 rows .* cannot be found; lower training\.batch_size$"):
        list(feed.batches(0, 60))


def test_processes_share_extra_texts(image_folder, shapes_config, monkeypatch):
    rows = [{"image": f"{n}.png", "text": f"a dog of age {n}"} for n in range(6)]
    few, _ = make_feed(image_folder, rows, shapes_config, overrides=["method.extra_texts=3"], augmented=True)
    complete = few.batch(drawn(0, 1)).extra_ids["negatives"]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(few.batch(drawn(0, 1)).extra_ids["negatives"])
    assert [len(share) for share in shares] == [2, 1]
    assert torch.equal(torch.cat(shares), complete)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_image_in_several_rows_scores_like_one_with_several_captions(image_folder, shapes_config, frozen):
    captions = [[f"{n} {word}" for word in ("one", "two")] for n in range(6)]
    lists = [{"image": f"{n}.png", "text": texts} for n, texts in enumerate(captions)]
    flat = [{"image": f"{n}.png", "text": text} for n, texts in enumerate(captions) for text in texts]
    feed, method = make_feed(image_folder, lists, shapes_config, frozen=frozen)
    other, _ = make_feed(image_folder, flat, shapes_config, frozen=frozen, method=method)
    by_list, by_row = judge(feed, method, (1, 12)), judge(other, method, (1, 12))
    assert by_row["image_to_text/hit@1"] == by_list["image_to_text/hit@1"]
    assert by_row["text_to_image/hit@12"] == 1.0
    # each image stands twice, so a right one is never beaten by its own copy
    assert by_row["text_to_image/hit@1"] == by_list["text_to_image/hit@1"]


PAIRS = [{"image": f"{n}.png", "text": [f"{n} small red dogs", f"{n} large cats asleep"]} for n in range(6)]
TWO = [PAIRS[:2], [{"id": f"b{n}", "image": f"{n}.png", "text": f"thing {n}"} for n in range(2, 6)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_any_start_and_by_any_number_of_workers(image_folder, shapes_config, workers):
    overrides = ["training.batch_size=4", "text_augmentation.drop=0.5", "data.cache_gb=0", "method.extra_texts=3"]
    feed, method = make_feed(image_folder, PAIRS, shapes_config, overrides=overrides, augmented=True)
    complete = list(feed.batches(0, 7))
    state = torch.get_rng_state()
    overrides += [f"data.workers={workers}"]
    other, _ = make_feed(image_folder, PAIRS, shapes_config, method=method, overrides=overrides, augmented=True)
    rest = list(other.batches(3, 7))
    assert len(complete) == 7
    assert len(feed) == 1
    assert all(equal(a, b) for a, b in zip(complete[3:], rest, strict=True))
    assert not equal(complete[0], complete[1])
    assert torch.equal(torch.get_rng_state(), state), "the global generator belongs to dropout"


def test_closing_ends_the_workers_and_mistakes_come_through_them_as_they_are(image_folder, shapes_config):
    overrides = ["training.batch_size=2", "data.workers=2", "data.cache_gb=0"]
    feed, _ = make_feed(image_folder, PAIRS, shapes_config, overrides=overrides)
    before = set(multiprocessing.active_children())
    batches = feed.batches(0, 1000)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert not set(multiprocessing.active_children()) - before
    (image_folder / "3.png").unlink()
    with pytest.raises(MmclError, match=r"^row 3: its image was readable and no longer is: .*3\.png: no such file$"):
        list(feed.batches(0, 9))


def test_two_sources_are_one_set_of_rows(image_folder, shapes_config):
    feed, method = make_feed(image_folder, TWO, shapes_config, overrides=["training.batch_size=3"])
    assert (feed.samples, len(feed), feed.total) == (6, 2, 6)
    epoch = list(feed.batches(0, 2))
    rows = torch.cat([batch.rows for batch in epoch]).tolist()
    assert sorted(rows) == list(range(6))
    texts = [set(same(method, row["text"])) for row in PAIRS[:2]]
    texts += [set(same(method, [f"thing {n}"])) for n in range(2, 6)]
    plain, _ = make_feed(image_folder, PAIRS, shapes_config)
    for batch in epoch:
        assert all(text in texts[row] for row, text in zip(batch.rows.tolist(), batch.ids[:, 1].tolist(), strict=True))
        alone = plain.batch(drawn(*batch.rows.tolist()))
        assert torch.equal(alone.inputs["image"]["pixels"], batch.inputs["image"]["pixels"])
        assert torch.equal(alone.ids[:, 0], batch.ids[:, 0])
        names = [name.rsplit(": ", 1)[1] for name in feed.names(batch)]
        assert names == [str(row) if row < 2 else f"b{row}" for row in batch.rows.tolist()]


def test_weights_and_samples_set_the_share_of_each_source(image_folder, shapes_config):
    overrides = ["training.batch_size=3"]
    with pytest.raises(MmclError, match="give one to all"):
        len(make_feed(image_folder, TWO, shapes_config, overrides=overrides, weights=[2])[0])
    feed, method = make_feed(image_folder, TWO, shapes_config, overrides=overrides, weights=[2, 1])
    rows = torch.cat([batch.rows for batch in feed.batches(0, 4)])  # two epochs
    assert (feed.samples, int((rows < 2).sum())) == (6, 8)
    assert sorted(rows[rows >= 2].tolist()) == [2, 3, 4, 5]
    overrides += ["data.train.samples=30"]
    feed, _ = make_feed(image_folder, TWO, shapes_config, overrides=overrides, method=method)
    assert (feed.samples, len(feed)) == (34, 11)
    rows = torch.cat([batch.rows for batch in feed.batches(0, 11)])
    assert (rows < 2).sum() >= 29
    seeds = torch.cat([batch.seeds for batch in feed.batches(0, 11)])
    assert len(seeds.unique()) == len(seeds), "a row that comes again in an epoch is changed in another way"


def test_tables_and_shards_are_not_mixed(image_folder, shapes_config):
    config = load_config(shapes_config)
    method = build_method(config, image_folder / "run")
    sources = [SourceConfig(source="a.tar"), SourceConfig(source="table.csv")]
    with pytest.raises(MmclError, match=r"^table\.csv: tables and tar shards cannot be mixed"):
        open_feed(sources, method.reading, config, image_folder, augmented=True, device=torch.device("cpu"))


def test_what_cannot_be_used_is_reported_with_its_source(image_folder, shapes_config):
    (image_folder / "5.png").write_bytes(b"no image")
    feed, _ = make_feed(image_folder, TWO, shapes_config)
    (problem,) = feed.problems()
    assert problem["id"].endswith(": b5")
    assert (problem["role"], feed.positions.tolist()) == ("image", [0, 1, 2, 3, 4])
    with pytest.raises(MmclError, match="5 usable rows do not fill a batch of 64"):
        len(feed)
    broken = [PAIRS[:2], [{"image": "5.png", "text": "x"}]]
    feed, _ = make_feed(image_folder, broken, shapes_config, overrides=["training.batch_size=2"])
    with pytest.raises(MmclError, match=r"none of its 1 rows can be used; leave it out of data\.mix"):
        len(feed)


def test_a_teacher_has_features_of_the_same_images_and_captions(image_folder, shapes_config):
    larger = shapes_config | {"data": {"train": {"source": "sample:shapes", "split": "dev"}, "image": {"size": 48}}}
    teacher = build_method(load_config(larger), image_folder / "t").encoder.eval()
    exact = Encoder(teacher)
    exact.set_compute("float32")
    overrides = ["text_augmentation.drop=0.3"]
    references = {"teacher": teacher}
    feed, method = make_feed(
        image_folder, PAIRS, shapes_config, overrides=overrides, augmented=True, references=references, frozen=True
    )
    assert "input_ids" in feed.batch(drawn(0)).inputs["text"], "what is changed at random cannot be kept"
    images = [Image.open(image_folder / f"{n}.png") for n in range(6)]
    for turn in range(4):
        batch = feed.batch(drawn(4, 0, 2, turn=turn))
        assert list(batch.references["teacher"]) == list(batch.inputs) == ["image", "text"]
        for n, (row, chosen) in enumerate(zip((4, 0, 2), batch.ids[:, 1].tolist(), strict=True)):
            (caption,) = [text for text in PAIRS[row]["text"] if same(method, [text]) == [chosen]]
            for role, item in (("image", images[row]), ("text", caption)):
                with torch.inference_mode():
                    vector = teacher.embedder(role).head(batch.references["teacher"][role]["features"][n : n + 1])
                expected = torch.from_numpy(exact.encode(item, normalize=False))
                assert torch.allclose(vector[0], expected, atol=1e-5)


def test_captions_change_in_training_only(image_folder, shapes_config):
    overrides = ["text_augmentation.drop=0.6"]
    still, method = make_feed(image_folder, PAIRS, shapes_config, overrides=overrides)
    moving, _ = make_feed(image_folder, PAIRS, shapes_config, method=method, overrides=overrides, augmented=True)
    lengths = {turn: moving.batch(drawn(0, 1, 2, turn=turn)) for turn in range(8)}
    for turn, batch in lengths.items():
        plain = still.batch(drawn(0, 1, 2, turn=turn))
        assert torch.equal(plain.ids, batch.ids)
        kept, all_of_it = (each.inputs["text"]["attention_mask"].sum(1) for each in (batch, plain))
        assert (kept <= all_of_it).all()
    assert any(batch.inputs["text"]["input_ids"].shape[1] < 8 for batch in lengths.values())
    items, _ = moving.columns["text"].items(np.arange(6))
    judged = [feed.columns["text"].inputs(items)["input_ids"] for feed in (moving, still)]
    assert torch.equal(*judged)


def test_a_table_with_a_separator_and_images_below_a_root(image_folder, shapes_config, tmp_path):
    table = tmp_path / "tables" / "rows.csv"
    table.parent.mkdir()
    table.write_text("image^text\n0.png^one, two\n1.png^three\n")
    data = {"train": {"source": str(table), "separator": "^"}, "image": {"size": 32, "root": str(image_folder)}}
    config = load_config(shapes_config | {"data": data})
    method = build_method(config, tmp_path / "run")
    reading, cpu = method.eval().reading, torch.device("cpu")
    feed = open_feed([config.data.train], reading, config, tmp_path, augmented=False, device=cpu)
    assert feed.problems() == []
    assert len(feed.positions) == 2
