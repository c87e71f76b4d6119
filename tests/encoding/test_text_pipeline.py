"""Encoding texts: order, batches, precision, streams, worker processes and bad input."""

from __future__ import annotations

import logging
import os
import signal
import threading
from multiprocessing import Pipe

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mmcl
from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.encoding import workers
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.text_compute import TextCompute
from mmcl.encoding.text_pipeline import made_ahead
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.device import multiplies_bfloat16
from mmcl.runtime.errors import MmclError

WORDS = ["a", "the", "red", "blue", "big", "small", "dog", "car", "runs", "sits", "over", "under", "now", "then"]
RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, size)) for size in RANDOM.integers(1, 60, 80)]


def make_encoder(pooling="mean", dim=16) -> Encoder:
    torch.manual_seed(0)
    settings = TextTowerConfig(layers=2, width=32, heads=2, pooling=pooling, tokenizer={"vocab_size": 80})
    processor, tower = build_text_tower(settings, train_tokenizer(TEXTS, settings.tokenizer, 64))
    processor.set_prompts({"query": "the big ", "plain": ""})
    encoder = Encoder(
        Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), tower.width, dim))}, dim, "tiny")
    ).eval()
    encoder.set_compute("float32")
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@torch.no_grad()
def padded(encoder, texts, prompt=None):
    """The plain tower on one padded batch."""
    embedder = encoder.embedder("text")
    batch = embedder.processor.collate(embedder.processor.tokenize(texts, prompt)[0])
    skipped = embedder.processor.skipped(prompt)
    features = embedder.tower(**batch, skipped=torch.full((len(texts),), skipped) if skipped else None)
    return F.normalize(embedder.head(features), dim=1).numpy()


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "max", "cls", "last", "first_last", "last_two", "pooler"])
def test_packed_equals_the_plain_tower(pooling):
    encoder = make_encoder(pooling)
    np.testing.assert_allclose(encoder.encode(TEXTS), padded(encoder, TEXTS), atol=1e-5)
    assert encoder._compute._prepared["text"]._packed is not None


def test_an_unknown_architecture_runs_padded_and_equals_the_plain_tower():
    encoder = make_encoder()
    encoder.embedder("text").tower.net.encoder.layer[0].register_forward_hook(lambda *_: None)
    np.testing.assert_allclose(encoder.encode(TEXTS), padded(encoder, TEXTS), atol=1e-5)
    assert encoder._compute._prepared["text"]._packed is None


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.one_of(st.text(max_size=30), st.sampled_from(TEXTS)), min_size=1, max_size=12), place=st.data()
)
def test_a_texts_vector_does_not_depend_on_the_batch_around_it(encoder, texts, place):
    together = encoder.encode(texts)
    chosen = place.draw(st.integers(0, len(texts) - 1))
    np.testing.assert_allclose(encoder.encode(texts[chosen]), together[chosen], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], together, atol=1e-5)
    assert all(np.array_equal(together[i], together[texts.index(text)]) for i, text in enumerate(texts))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 700), max_size=60), size=st.one_of(st.none(), st.integers(1, 7)))
def test_batches_hold_every_text_once_longest_first_within_the_budget(encoder, lengths, size):
    compute = TextCompute(encoder.embedder("text"), torch.float32)
    batches = list(compute.batches(np.array(lengths, dtype=np.int64), size))
    order = np.concatenate(batches) if batches else np.array([], dtype=int)
    assert sorted(order) == list(range(len(lengths)))
    taken = [lengths[place] for place in order]
    assert taken == sorted(taken, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or size or sum(lengths[place] for place in batch) <= compute._budget
        assert size is None or len(batch) <= size


def test_prompts_named_default_and_left_out_of_the_pooling():
    encoder = make_encoder()
    processor = encoder.embedder("text").processor
    prompted = encoder.encode(TEXTS[:9], prompt="query")
    np.testing.assert_allclose(prompted, encoder.encode([f"the big {text}" for text in TEXTS[:9]]), atol=1e-6)
    processor.set_prompts(processor.prompts, "query")
    np.testing.assert_allclose(encoder.encode(TEXTS[:9]), prompted, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[:9], prompt=""), padded(encoder, TEXTS[:9], ""), atol=1e-5)
    processor.include_prompt = False
    np.testing.assert_allclose(encoder.encode(TEXTS[:9]), padded(encoder, TEXTS[:9]), atol=1e-5)
    assert not np.allclose(encoder.encode(TEXTS[:9]), prompted, atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "first_last"])
def test_settings_changed_since_the_last_encode_are_used_by_a_copy_in_bfloat16(pooling):
    encoder = make_encoder(pooling)
    processor, tower = encoder.embedder("text").processor, encoder.embedder("text").tower
    tower.net.encoder.layer[0].register_forward_hook(lambda *_: None)  # so that it runs padded, from a copy
    encoder.set_compute("bfloat16")
    encoder.encode(TEXTS[:5])
    assert encoder._compute._prepared["text"]._packed is None
    processor.set_prompts({"query": "now then "}, "query")
    processor.include_prompt, processor.max_tokens = False, 9
    changed = encoder.encode_with_details(TEXTS[:5])
    encoder._compute.forget()
    np.testing.assert_array_equal(changed.vectors, encoder.encode(TEXTS[:5]))
    assert changed.truncated.any()


def test_bfloat16_leaves_rotary_positions_and_token_weights_exact():
    from transformers import LlamaConfig, LlamaModel

    processor = make_encoder().embedder("text").processor
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaModel(LlamaConfig(vocab_size=len(processor.tokenizer), **sizes))
    net.layers[0].register_forward_hook(lambda *_: None)  # so that it runs padded, from a copy
    weights = TokenWeights.of(torch.rand(len(processor.tokenizer)) + 1e-3)
    rotary = TextTower(net, processor, pooling="mean", token_weights=weights)
    compute = TextCompute(TextEmbedder(processor, rotary, Head.from_layers(32, [])).eval(), torch.bfloat16)
    assert {weight.dtype for weight in compute._net.net.parameters()} == {torch.bfloat16}
    assert torch.equal(compute._net.net.rotary_emb.inv_freq, net.rotary_emb.inv_freq)
    assert torch.equal(compute._net.token_weights.log_weight, weights.log_weight)
    assert torch.isfinite(compute([np.arange(20, dtype=np.int32)])).all()


def test_the_bar_counts_the_texts_that_are_computed_and_is_shown_when_asked_for(encoder, capfd):
    encoder.encode([*TEXTS[:20], *TEXTS[:20]], show_progress=True)
    distinct = len(set(TEXTS[:20]))
    assert f"{distinct}/{distinct}" in capfd.readouterr().err
    encoder.encode(TEXTS[:20])
    assert capfd.readouterr().err == ""


def test_truncated_texts_are_marked_counted_and_reported_once(encoder, caplog):
    texts = ["dog", "dog " * 500, "car", "dog " * 500]
    with caplog.at_level(logging.WARNING, "mmcl"):
        found = encoder.encode_with_details(texts)
    assert found.truncated.tolist() == [False, True, False, True]
    assert [record.getMessage() for record in caplog.records] == ["2 of 4 texts were cut at 64 tokens"]
    single = encoder.encode_with_details("dog " * 500)
    assert single.truncated is True
    np.testing.assert_allclose(single.vectors, found.vectors[1], atol=1e-5)


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="no bfloat16 products in this CPU")
@pytest.mark.parametrize("pooling", ["mean", "pooler", "first_last"])
def test_in_bfloat16_a_vector_is_the_same_to_the_bit_alone_and_in_any_batch(pooling):
    encoder = make_encoder(pooling)
    encoder.set_compute("bfloat16")
    together = encoder.encode(TEXTS)
    assert np.array_equal(encoder.encode(TEXTS[::-1]), together[::-1])
    assert np.array_equal(encoder.encode(TEXTS, batch_size=7), together)
    for place in range(0, len(TEXTS), 5):
        assert np.array_equal(encoder.encode(TEXTS[place]), together[place])


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="no bfloat16 products in this CPU")
def test_real_weights_in_bfloat16_are_close_to_float32_and_the_same_alone():
    try:
        encoder = mmcl.load("sample:minilm", dtype="float32")
    except MmclError as error:
        pytest.skip(f"MiniLM is not to be had: {error}")
    texts = ["Two dogs run on a beach.", "", "Naïve Bayes — or not?", "the stock market fell " * 9, "A man " * 200]
    exact = encoder.encode(texts)
    encoder.set_compute("bfloat16")
    rough = encoder.encode(texts)
    assert (rough * exact).sum(axis=1).min() > 0.9995
    for text, vector in zip(texts, rough, strict=True):
        assert np.array_equal(encoder.encode(text), vector)


def test_bfloat16_is_close_and_follows_new_weights():
    encoder = make_encoder()
    exact = encoder.encode(TEXTS[:8])
    encoder.set_compute("bfloat16")
    rough = encoder.encode(TEXTS[:8])
    assert rough.dtype == np.float32
    assert (rough * exact).sum(axis=1).min() > 0.999
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, rtol=1e-5)
    assert encoder.embedder("text").tower.net.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_trained_or_loaded_since_the_last_encode_are_used(dtype):
    encoder, other = make_encoder(), make_encoder()
    for each in (encoder, other):
        each.set_compute(dtype)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    before = encoder.encode(TEXTS[:4])
    encoder.load_state_dict(other.state_dict())
    np.testing.assert_allclose(encoder.encode(TEXTS[:4]), other.encode(TEXTS[:4]), atol=1e-6)
    assert not np.allclose(encoder.encode(TEXTS[:4]), before, atol=1e-3)
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=10.0)
    embedder = encoder.embedder("text")
    embedder(**embedder.processor.collate(embedder.processor.tokenize(TEXTS[:4])[0])).square().sum().backward()
    optimizer.step()
    assert encoder.training
    trained = encoder.encode(TEXTS[:4])
    assert encoder.training
    encoder.eval()
    limit = 1e-5 if dtype == "float32" else 0.1
    np.testing.assert_allclose(trained, padded(encoder, TEXTS[:4]), atol=limit)
    assert not np.allclose(trained, other.encode(TEXTS[:4]), atol=1e-3)


def test_a_stream_gives_the_same_vectors_and_reads_one_chunk_ahead(encoder):
    read = []

    def source():
        for text in TEXTS:
            read.append(text)
            yield text

    stream = encoder.encode_stream(source(), chunk=7)
    parts = [next(stream)]
    assert len(read) == 14
    parts += stream
    assert [len(part) for part in parts] == [7] * 11 + [3]
    np.testing.assert_allclose(np.concatenate(parts), encoder.encode(TEXTS), atol=1e-5)
    assert list(encoder.encode_stream([])) == []
    assert next(encoder.encode_stream(TEXTS[:3], precision="ubinary")).shape == (3, 2)


def test_a_stream_says_how_many_texts_were_cut_as_encode_does(encoder, caplog):
    texts = [*TEXTS[:8], "dog " * 500, *TEXTS[8:12]]
    found = encoder.encode_with_details(texts)
    parts = list(encoder.encode_stream(texts, chunk=5))
    assert [len(part) for part in parts] == [5, 5, 3]
    np.testing.assert_allclose(np.concatenate(parts), found.vectors, atol=1e-5)
    assert found.truncated[8]
    assert caplog.text.count(f"{found.truncated.sum()} of 13 texts were cut") == 2


def test_what_came_before_a_bad_text_is_given_out(encoder):
    parts = []
    with pytest.raises(MmclError, match="input 15 is None"):
        parts.extend(encoder.encode_stream([*TEXTS[:15], None], chunk=7))
    assert [len(part) for part in parts] == [7, 7]

    def fails():
        yield from TEXTS[:7]
        raise OSError("gone")

    parts = []
    with pytest.raises(OSError, match="gone"):
        parts.extend(encoder.encode_stream(fails(), chunk=7))
    assert [len(part) for part in parts] == [7]


def test_items_are_made_on_another_thread_while_the_last_is_worked_on():
    threads = [thread for _, thread in made_ahead(range(3), lambda item: (item, threading.get_ident()))]
    assert threads[0] == threading.get_ident()
    assert threading.get_ident() not in threads[1:]


def test_quantised_results_need_lasting_ranges_in_a_stream(encoder):
    ranges = encoder.encode(TEXTS[:40])
    at_once = encoder.encode(TEXTS, precision="int8", calibration=TEXTS[:40])
    np.testing.assert_array_equal(at_once, encoder.encode(TEXTS, precision="int8", calibration=ranges))
    assert encoder.encode(TEXTS[0], precision="int8", calibration=ranges).shape == (16,)
    with pytest.raises(MmclError, match="'int8' needs calibration="):
        encoder.encode_stream(TEXTS, precision="int8")


@pytest.mark.parametrize("text", ["", " \n\t ", "\ud800 lone", "dog" * 33_334, "\x00", "🙂"])
def test_odd_texts_have_vectors_like_any_other(encoder, text):
    vectors = encoder.encode([text, "a dog", text])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[1], encoder.encode("a dog"), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda encoder: encoder.encode(["a", None]), "input 1 is None; leave it out"),
        (lambda encoder: encoder.encode(["a", 3.5]), "input 1 is a float"),
        (lambda encoder: encoder.encode({"text": "a"}), "input 0 is a dict"),
        (lambda encoder: encoder.encode("a", prompt="qery"), "no prompt of that name"),
        (lambda encoder: encoder.set_compute("bf16"), "did you mean 'bfloat16'"),
        (lambda encoder: encoder.encode("a", devices=0), "a number of processes from 1 up"),
        (lambda encoder: encoder.encode("a", devices="cpux"), "device 'cpux' is not known"),
        (lambda encoder: encoder.encode("a", devices=torch.device("meta")), "device 'meta' is not on this machine"),
        (lambda encoder: encoder.encode("a", truncate_dim="8"), "truncate_dim '8' must be between 1 and"),
        (lambda encoder: encoder.encode_stream("a"), "got one text"),
        (lambda encoder: encoder.encode_stream(np.array("a")), "got one text"),
        (lambda encoder: encoder.encode_stream(None), "encode_stream: got a NoneType; give a text"),
        (lambda encoder: encoder.encode_stream(["a"], chunk=0), "chunk is 0"),
    ],
)
def test_mistakes_are_answered_in_one_line(encoder, call, message):
    with pytest.raises(MmclError, match=message):
        call(encoder)


def test_worker_processes_give_the_same_vectors_in_order(encoder):
    texts = [*TEXTS[:30], "dog " * 500, TEXTS[0]]
    found = encoder.encode_with_details(texts, devices=["cpu", "cpu"], prompt="query")
    np.testing.assert_allclose(found.vectors, encoder.encode(texts, prompt="query"), atol=1e-5)
    assert np.flatnonzero(found.truncated).tolist() == [30]
    assert encoder.path is None


def test_what_came_before_a_bad_chunk_is_given_out_by_workers_too():
    class Echo:
        def __init__(self):
            self.connection, self.other = Pipe()

        def give(self, chunk):
            self.other.send(chunk)

        def take(self):
            return self.connection.recv()

    def fails():
        yield from range(5)
        raise OSError("gone")

    chunks = []
    with pytest.raises(OSError, match="gone"):
        chunks.extend(workers._in_order([Echo(), Echo()], fails()))
    assert chunks == [0, 1, 2, 3, 4]
    assert list(workers._in_order([Echo(), Echo()], range(30))) == list(range(30))


def test_a_killed_worker_ends_the_encode_with_one_line(encoder, monkeypatch):
    give = workers._Worker.give

    def give_and_kill(worker, chunk):
        give(worker, chunk)
        os.kill(worker._process.pid, signal.SIGKILL)

    monkeypatch.setattr(workers._Worker, "give", give_and_kill)
    with pytest.raises(MmclError, match=r"worker process on cpu ended, exit code -9"):
        encoder.encode(TEXTS, devices=["cpu", "cpu"])


@pytest.mark.parametrize("fused", [True, False])
def test_what_was_prepared_of_weights_is_prepared_anew_after_a_step(fused):
    """A fused optimizer does not count the versions of weights, and an encoder of some towers is not told to train."""
    encoder = make_encoder()
    encoder.set_compute("bfloat16")
    part = encoder.select("text")
    part.encode(TEXTS[:4])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, fused=fused)
    encoder.embed(TEXTS[:4]).sum().backward()
    optimizer.step()
    fresh = make_encoder()
    fresh.load_state_dict(encoder.state_dict())
    fresh.set_compute("bfloat16")
    np.testing.assert_array_equal(part.encode(TEXTS[:4]), fresh.encode(TEXTS[:4]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", ["in place", "through .data", "of .data"])
def test_weights_changed_since_the_last_encode_are_used(change, dtype):
    encoder = make_encoder()
    encoder.set_compute(dtype)
    before = encoder.encode(TEXTS[:4])
    for weight in encoder.parameters():
        if change == "of .data":
            weight.data = weight.data * 1.5
        elif change == "in place":
            with torch.no_grad():
                weight.mul_(1.5)
        else:
            weight.data.mul_(1.5)
    if change == "through .data":
        encoder.train()
        encoder.eval()
    fresh = make_encoder()
    fresh.load_state_dict(encoder.state_dict())
    fresh.set_compute(dtype)
    np.testing.assert_array_equal(encoder.encode(TEXTS[:4]), fresh.encode(TEXTS[:4]))
    assert not np.allclose(encoder.encode(TEXTS[:4]), before, atol=1e-3)
