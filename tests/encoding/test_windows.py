"""Long texts in windows: how they are cut, pooled, or stored each by itself."""

import numpy as np
import pytest

from mmcl.encoding import Layout, encode_source
from mmcl.encoding.windows import windows
from mmcl.runtime.errors import MmclError

from .corpora.hashed import HashEncoder, rows
from .corpora.tiny import sentences, tiny_encoder

LIMIT = 24
SHORT, LONG = "the red dog", " ".join(sentences(30))
SPACELESS = "thereddogrunsoverthebluecar" * 12


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder(max_tokens=LIMIT)


@pytest.mark.parametrize("text", [LONG, SPACELESS, f"  {LONG}\n\n{SPACELESS} "])
@pytest.mark.parametrize("overlap", [0, 3, None])
def test_windows_cover_a_text_in_order_and_fit_into_the_model(encoder, text, overlap):
    (spans,) = encoder.windows([text], overlap=overlap)
    assert len(spans) > 3
    assert spans[0][0] == len(text) - len(text.lstrip())
    assert spans[-1][1] == len(text.rstrip())
    starts, ends = zip(*spans, strict=True)
    assert list(starts) == sorted(set(starts))
    assert list(ends) == sorted(set(ends))
    for end, start in zip(ends, starts[1:], strict=False):
        assert not text[end:start].strip()  # nothing but space is between two
        assert (start < end) == (overlap != 0)
    processor = encoder.embedder("text").processor
    _, cut = processor.tokenize([text[start:end] for start, end in spans])
    assert cut == 0


def test_windows_end_between_words_where_there_are_any(encoder):
    (spans,) = encoder.windows([LONG], overlap=4)
    for start, end in spans:
        assert start == 0 or LONG[start - 1] == " " or LONG[start] == " "
        assert end == len(LONG) or " " in LONG[end - 1 : end + 1]


def test_a_text_that_fits_is_one_window(encoder):
    assert encoder.windows([SHORT, "", "  "]) == [[(0, len(SHORT))], [(0, 0)], [(0, 2)]]


def test_a_prompt_leaves_less_of_a_window(encoder):
    processor = tiny_encoder(max_tokens=LIMIT).embedder("text").processor
    processor.set_prompts({"query": "the big red dog ", "long": LONG})
    (plain,), (behind,) = windows(processor, [LONG]), windows(processor, [LONG], "query")
    assert len(behind) > len(plain)
    assert processor.tokenize([LONG[start:end] for start, end in behind], "query")[1] == 0
    with pytest.raises(MmclError, match="the prompt fills the 24 tokens"):
        windows(processor, [LONG], "long")


@pytest.mark.parametrize("overlap", [-1, 12])
def test_an_overlap_that_leaves_nothing_new_is_refused(encoder, overlap):
    with pytest.raises(MmclError, match=f"overlap is {overlap}; it must be from 0 to 11"):
        encoder.windows([LONG], overlap=overlap)


def test_chunks_are_the_mean_of_their_windows_of_unit_length(encoder, tmp_path):
    texts = [SHORT, LONG, None, SPACELESS, "a car"]
    source = rows(tmp_path / "s", text=texts)
    stored = encode_source(encoder, source, "text", tmp_path / "out", layout=Layout(long="chunk", overlap=4))
    assert stored.ids().tolist() == ["0", "1", "3", "4"]
    assert stored.truncated == 0
    assert stored.source["long"] == "chunk"
    for place, text in enumerate([SHORT, LONG, SPACELESS, "a car"]):
        (spans,) = encoder.windows([text], overlap=4)
        mean = encoder.encode([text[start:end] for start, end in spans]).mean(axis=0)
        np.testing.assert_allclose(stored[place], mean / np.linalg.norm(mean), atol=1e-5)
    with pytest.raises(MmclError, match="another source: long"):
        encode_source(encoder, source, "text", tmp_path / "out")


def test_each_window_has_a_row_with_its_characters(encoder, tmp_path):
    texts = [SHORT, LONG, None, "a car"]
    source = rows(tmp_path / "s", id=["a", "b", "c", "d"], text=texts)
    stored = encode_source(encoder, source, "text", tmp_path / "out", layout=Layout("int8", 2, long="windows"))
    (spans,) = encoder.windows([LONG])
    table = stored.table().to_pydict()
    assert table["id"] == ["a", *["b"] * len(spans), "d"]
    assert list(zip(table["start"], table["end"], strict=True)) == [(0, len(SHORT)), *spans, (0, 5)]
    whole = dict(zip("abd", [SHORT, LONG, "a car"], strict=True))
    parts = [
        whole[id_][start:end] for id_, start, end in zip(*(table[name] for name in ("id", "start", "end")), strict=True)
    ]
    assert [label.rstrip(" …") for label in table["label"]] == [part.strip()[:200].strip() for part in parts]
    np.testing.assert_allclose(np.asarray(stored), encoder.encode(parts), atol=0.02)


@pytest.mark.parametrize(
    ("encoder_", "long", "message"),
    [(HashEncoder(), "chunk", "by a model that tells where to cut them"), (None, "chunks", "long is 'chunks'; use")],
)
def test_what_cannot_be_cut_is_said(encoder, tmp_path, encoder_, long, message):
    with pytest.raises(MmclError, match=message):
        encode_source(
            encoder_ or encoder, rows(tmp_path / "s", text=[SHORT]), "text", tmp_path / "out", layout=Layout(long=long)
        )
