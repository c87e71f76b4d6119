"""encode in 8-bit integers."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from mmcl.encoding import text_compute
from mmcl.runtime import device
from mmcl.runtime.device import multiplies_int8
from mmcl.runtime.errors import MmclError
from tests.encoding.test_text_pipeline import TEXTS, make_encoder

needs_int8 = pytest.mark.skipif(
    not multiplies_int8(torch.device("cpu")), reason="no products of 8-bit integers in this CPU"
)


@needs_int8
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler", "first_last"])
def test_a_vector_is_the_same_to_the_bit_alone_and_in_any_batch_and_close_to_float32(pooling):
    encoder = make_encoder(pooling)
    exact = encoder.encode(TEXTS)
    encoder.set_compute("int8")
    assert encoder.compute == "int8"
    together = encoder.encode(TEXTS)
    assert (together * exact).sum(axis=1).min() > 0.99
    assert not np.array_equal(together, exact)
    assert np.array_equal(encoder.encode(TEXTS[::-1]), together[::-1])
    assert np.array_equal(encoder.encode(TEXTS, batch_size=7), together)
    for place in range(0, len(TEXTS), 5):
        assert np.array_equal(encoder.encode(TEXTS[place]), together[place])


@needs_int8
def test_what_was_encoded_before_leaves_no_trace_and_new_weights_are_followed():
    encoder, fresh = make_encoder(), make_encoder()
    for each in (encoder, fresh):
        each.set_compute("int8")
    encoder.encode("the " * 60)
    assert np.array_equal(encoder.encode(TEXTS[:4]), fresh.encode(TEXTS[:4]))
    with torch.no_grad():
        for weight in fresh.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    encoder.load_state_dict(fresh.state_dict())
    assert np.array_equal(encoder.encode(TEXTS[:4]), fresh.encode(TEXTS[:4]))
    exact = make_encoder()
    exact.load_state_dict(fresh.state_dict())
    assert (encoder.encode(TEXTS[:4]) * exact.encode(TEXTS[:4])).sum(axis=1).min() > 0.99


def test_a_cpu_without_such_products_is_named(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not device.multiplies_int8(torch.device("cpu"))
    encoder = make_encoder()
    with pytest.raises(MmclError, match="dtype int8: this CPU has no products of 8-bit integers"):
        encoder.set_compute("int8")
    assert encoder.compute == "float32"


@needs_int8
def test_a_network_that_does_not_run_packed_is_named():
    encoder = make_encoder()
    net = encoder.towers.text().tower.net
    net.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)  # as adapters have them
    with pytest.raises(MmclError, match=f"dtype int8: not for a text tower of {type(net).__name__}"):
        encoder.set_compute("int8")


@needs_int8
@pytest.mark.parametrize(("cosine", "level"), [(0.99, "INFO"), (0.5, "WARNING")])
def test_how_close_it_is_to_float32_is_logged_and_warned_of_where_it_is_not(monkeypatch, caplog, cosine, level):
    prepare = text_compute.int8_transformer
    monkeypatch.setattr(text_compute, "int8_transformer", lambda *given: (prepare(*given)[0], cosine))
    encoder = make_encoder()
    encoder.set_compute("int8")
    with caplog.at_level(logging.INFO, "mmcl"):
        encoder.encode(TEXTS[:2])
        encoder.encode(TEXTS[:2])
    (record,) = (record for record in caplog.records if "int8" in record.getMessage())
    assert record.levelname == level
    assert f"a cosine of {cosine:.3f}" in record.getMessage()
