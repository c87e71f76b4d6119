"""Products by MKL and by oneDNN: true float32 either way, forward and backward."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading

import pytest
import torch
import torch.nn.functional as F

from mmcl.runtime import products
from mmcl.runtime.device import multiplies_bfloat16
from mmcl.runtime.products import (
    LONGEST_BATCHED,
    PackedLinear,
    allowed_precision,
    batched_attention,
    fast_products,
    linear,
    multiply,
    sigmoid_of_product,
    times_outer_sum,
)

CPU = torch.device("cpu")
WITHOUT_AMX = pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="with AMX, oneDNN would round the factors")
EXACT = {"rtol": 0, "atol": 2e-4}  # sums of 300 products: by bfloat16 factors they would be off by 0.1


@pytest.fixture(params=["mkl", pytest.param("onednn", marks=WITHOUT_AMX), "the machine's"])
def library(request, monkeypatch):
    """The library that float32 products go to."""
    if request.param != "the machine's":
        monkeypatch.setattr(products, "onednn_multiplies_float32", lambda: request.param == "onednn")
    torch.manual_seed(0)
    return request.param


def layouts(matrix):
    """The same matrix in the layouts that factors come in."""
    wider = torch.zeros(len(matrix), matrix.shape[1] + 3)
    wider[:, : matrix.shape[1]] = matrix
    return matrix, matrix.T.contiguous().T, wider[:, : matrix.shape[1]]


@pytest.mark.parametrize("add", [False, True])
def test_multiply_is_true_float32_in_every_layout(library, add):
    for a in layouts(torch.randn(70, 300)):
        for b in layouts(torch.randn(300, 50)):
            for out in layouts(torch.randn(70, 50)):
                expected = a.double() @ b.double() + (out.double() if add else 0)
                multiply(a, b, out, add=add)
                torch.testing.assert_close(out.double(), expected, **EXACT)


@pytest.mark.parametrize("add", [False, True])
def test_multiply_that_may_round_has_at_most_the_error_of_rounding(library, add):
    a, b, out = torch.randn(70, 300), torch.randn(300, 50), torch.ones(70, 50)
    multiply(a, b, out, precision="bfloat16", add=add)
    torch.testing.assert_close(out.double(), add + a.double() @ b.double(), rtol=0, atol=0.3)


@pytest.mark.parametrize(
    ("setting", "units", "expected"),
    [
        ("highest", True, "full"),
        ("high", True, "full"),  # three products take longer than one in float32
        ("medium", True, "bfloat16"),
        ("medium", False, "full"),
    ],
)
def test_torchs_setting_is_followed_where_that_is_faster(setting, units, expected, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: units)
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision(setting)
    try:
        assert allowed_precision(CPU) == expected
        with products._onednn():  # whose own setting is not the process's
            assert allowed_precision(CPU) == expected
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def test_products_in_float64_and_products_of_nothing(library):
    a, b = torch.randn(5, 300).double(), torch.randn(300, 4).double()
    out = torch.empty(5, 4, dtype=torch.float64)
    multiply(a, b, out)
    torch.testing.assert_close(out, a @ b, rtol=1e-14, atol=1e-12)
    multiply(torch.randn(0, 3), torch.randn(3, 4), torch.empty(0, 4))
    assert linear(torch.randn(0, 3), torch.randn(4, 3)).shape == (0, 4)
    assert PackedLinear(torch.randn(4, 3))(torch.randn(0, 3)).shape == (0, 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(70, 300), (5, 7, 300), (300,)])
def test_linear_and_its_gradients_are_true_float32(library, shape, bias):
    given = [torch.randn(shape), torch.randn(40, 300), *([torch.randn(40)] if bias else [])]
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    exact = [tensor.double().requires_grad_() for tensor in given]
    got, expected = linear(*leaves), F.linear(*exact)
    torch.testing.assert_close(got.double(), expected, **EXACT)
    upstream = torch.randn(expected.shape)
    got.backward(upstream)
    expected.backward(upstream.double())
    for leaf, wide in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), wide.grad, **EXACT)


@pytest.mark.parametrize("sizes", [(300, 40), (40, 300)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_in_bfloat16_have_the_error_of_rounding(sizes, bias):
    torch.manual_seed(0)
    given = [torch.randn(5, 14, sizes[0]), torch.randn(sizes[1], sizes[0]), *([torch.randn(sizes[1])] if bias else [])]
    leaves = [tensor.bfloat16().requires_grad_() for tensor in given]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    got, expected = linear(*leaves), F.linear(*exact)
    upstream = torch.randn(expected.shape).bfloat16()
    got.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(got, expected), *((leaf.grad, wide.grad) for leaf, wide in zip(leaves, exact, strict=True))]
    for rounded, wide in pairs:
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.double(), wide, rtol=2**-8, atol=1e-6)
    assert linear(torch.zeros(0, sizes[0], dtype=torch.bfloat16), leaves[1]).shape == (0, sizes[1])


def test_linear_has_no_gradient_for_frozen_weights_and_a_second_derivative(library):
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3)
    (gradient,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, 2 * (weight.T @ weight).sum(0).expand(4, 3))
    assert weight.grad is None


def test_linear_under_autocast_is_of_its_type(library):
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = linear(x, weight)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu"])
def test_packed_linear_is_true_float32_and_activates(library, activation):
    function = {
        None: lambda x: x,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
    }[activation]
    x, weight, bias = torch.randn(70, 300), torch.randn(50, 300), torch.randn(50)
    for given in ((weight, bias), (weight,)):
        packed = PackedLinear(*given, activation=activation)
        expected = function(F.linear(x.double(), *(tensor.double() for tensor in given)))
        for rows in (70, 1):
            torch.testing.assert_close(packed(x[:rows]).double(), expected[:rows], **EXACT)
        torch.testing.assert_close(packed(x.view(7, 10, 300)).double(), expected.view(7, 10, 50), **EXACT)


def test_packed_linear_in_bfloat16_rounds_its_result_once():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((70, 300), (50, 300), (50,)))
    got = PackedLinear(weight, bias)(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), F.linear(x.double(), weight.double(), bias.double()), rtol=2**-8, atol=0.1)


MULTIPLIES_BFLOAT16 = pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="no bfloat16 products in this CPU")


@MULTIPLIES_BFLOAT16
@pytest.mark.parametrize("shape", [(70, 50, 300), (1, 1, 1), (16, 64, 32)])
def test_sigmoids_of_products_are_rounded_once(shape):
    torch.manual_seed(0)
    rows, columns, dim = shape
    a, b = torch.randn(rows, dim).bfloat16(), (torch.randn(columns, dim) / dim**0.5).bfloat16()
    got, expected = sigmoid_of_product(a, b, 20.0), (a.double() @ b.double().T - 20).sigmoid()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=2**-8 + 1e-4, atol=0)


@MULTIPLIES_BFLOAT16
def test_times_outer_sum_rounds_once():
    torch.manual_seed(0)
    values, rows, columns = torch.randn(70, 50).bfloat16(), torch.rand(70) * 1e12, torch.rand(50) * 1e11
    expected = values.double() * (rows.double()[:, None] + columns.double())
    torch.testing.assert_close(times_outer_sum(values, rows, columns).double(), expected, rtol=2**-8 + 1e-4, atol=0)


@MULTIPLIES_BFLOAT16
def test_rows_of_packed_products_in_bfloat16_do_not_depend_on_the_rows_beside_them():
    torch.manual_seed(0)
    packed = PackedLinear(torch.randn(96, 384).bfloat16(), torch.randn(96).bfloat16(), "gelu")
    x = torch.randn(2048, 384).bfloat16()
    expected = packed(x)
    for rows in (64, 128, 512, 1024):
        assert torch.equal(packed(x[-rows:]), expected[-rows:])


def test_the_rule_asks_the_instructions_and_who_made_the_cpu(monkeypatch):
    rule = products.onednn_multiplies_float32.__wrapped__
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for avx512, amx, intel, expected in (
        (True, False, False, True),
        (True, False, True, False),
        (True, True, False, False),
        (False, False, False, False),
    ):
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda value=avx512: value)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        monkeypatch.setattr(products, "_made_by_intel", lambda value=intel: value)
        assert rule() == expected


@WITHOUT_AMX
def test_the_setting_of_the_process_is_restored_when_threads_overlap():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    inside, leave = threading.Event(), threading.Event()

    def other():
        with products._onednn():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with products._onednn():
        thread.start()
        assert inside.wait(10)
    assert setting.fp32_precision == "bf16"
    leave.set()
    thread.join()
    assert setting.fp32_precision == before


def test_within_fast_products_those_of_any_network_are_true_float32(library):
    net = torch.nn.MultiheadAttention(64, 2, batch_first=True)
    x, upstream = torch.randn(3, 40, 64), torch.randn(3, 40, 64)
    wide = copy.deepcopy(net).double()
    with fast_products(), batched_attention(CPU, 40):
        assert torch.backends.mkldnn.matmul.fp32_precision == (
            "bf16" if products.onednn_multiplies_float32() else "none"
        )
        net(x, x, x, need_weights=False)[0].backward(upstream)
    wide(*[x.double()] * 3, need_weights=False)[0].backward(upstream.double())
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    for narrow, exact in zip(net.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(narrow.grad.double(), exact.grad, **EXACT)


@pytest.mark.parametrize("setting", ["highest", "high", "medium", None])
def test_torch_can_be_asked_for_its_setting_within_fast_products(setting, monkeypatch):
    monkeypatch.setattr(products, "onednn_multiplies_float32", lambda: True)
    monkeypatch.setattr(products, "_has_cuda", lambda: False)
    cuda, found = torch.backends.cuda.matmul, products._Setting.found()

    def state():
        return (
            *(torch.get_float32_matmul_precision(), cuda.allow_tf32),
            *(cuda.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision),
        )

    try:
        if setting is not None:
            torch.set_float32_matmul_precision(setting)
        before = state()
        with fast_products(), fast_products():
            assert state() == ("medium", True, "tf32", "bf16")
            assert products.float32_setting(CPU) == {"high": "tf32", "medium": "bf16"}.get(setting, "ieee")
        assert state() == before
    finally:
        found.restore()
        assert products._Setting.found() == found


def test_with_a_gpu_its_products_stay_as_they_are_within_fast_products(monkeypatch):
    monkeypatch.setattr(products, "onednn_multiplies_float32", lambda: True)
    monkeypatch.setattr(products, "_has_cuda", lambda: True)
    before = torch.backends.cuda.matmul.fp32_precision
    with fast_products():
        assert torch.backends.cuda.matmul.fp32_precision == before
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [24, LONGEST_BATCHED + 1])
def test_attention_multiplies_for_all_heads_and_items_at_once_up_to_a_length(tokens, dtype):
    query, key, value = torch.randn(3, 2, 4, 24, 32, dtype=dtype).requires_grad_()
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with batched_attention(CPU, tokens):
        got = F.scaled_dot_product_attention(query, key, value)
    batched = "Flash" not in got.grad_fn.name()
    assert batched == (tokens <= LONGEST_BATCHED)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert "Flash" in F.scaled_dot_product_attention(query, key, value).grad_fn.name()


@WITHOUT_AMX
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_that_is_forked_while_a_thread_changes_the_setting_multiplies():
    def product(sending):
        with products._onednn():
            sending.send((torch.ones(2, 3) @ torch.ones(3, 2)).tolist())

    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=product, args=(sending,), daemon=True)
    with products._lock:
        child.start()
    try:
        assert receiving.poll(60), "the forked process waits for a lock that nobody will release"
        assert receiving.recv() == [[3, 3], [3, 3]]
    finally:
        child.kill()
        child.join()


@WITHOUT_AMX
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_that_is_forked_while_a_thread_is_inside_is_outside():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with products._onednn():
            inside.set()
            leave.wait(60)

    def setting(sending):
        sending.send((torch.backends.mkldnn.matmul.fp32_precision, products._inside))

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=setting, args=(sending,), daemon=True)
    child.start()
    try:
        assert receiving.poll(60)
        assert receiving.recv() == ("none", 0)
    finally:
        leave.set()
        thread.join()
        child.kill()
        child.join()


@WITHOUT_AMX
def test_a_setting_that_was_inherited_is_inherited_again():
    backend = torch.backends.mkldnn
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "ieee"
        with products._onednn():
            pass
        backend.fp32_precision = "bf16"
        assert backend.matmul.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
