"""Matrix products on CPUs by the library that is fastest there: MKL, or oneDNN, both of which torch holds.

float32 products here are true float32 on every machine. Rates of one core of an AMD EPYC 9005 (AVX512, no AMX), GFLOP/s
of 2048 x 384 by 384 x 1536: float32 by MKL 110, by oneDNN 250; bfloat16 by oneDNN 470 to 530, of which GELU costs 10%.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmcl.runtime.device import has_amx, multiplies_bfloat16


@cache
def onednn_multiplies_float32() -> bool:
    """Whether float32 products on the CPU go to oneDNN; else to the library that torch takes by itself.

    MKL looks for Intel's name before it uses AVX512, and computes in AVX2 elsewhere; oneDNN looks for the instructions.
    With AMX, oneDNN would round the factors to bfloat16. The rule knows the hardware alone and takes no time, so that
    a run can be repeated to the bit.
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.cpu._is_avx512_supported()
        and not has_amx()
        and not _made_by_intel()
    )


def _made_by_intel() -> bool:
    try:
        description = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        description = platform.processor()
    return "GenuineIntel" in description


Precision = Literal["full", "bfloat16"]
"""What the factors of a product are rounded to: not at all, or to bfloat16. Sums are in float32, or wider."""


def float32_setting(device: torch.device) -> str:
    """What the process allows of float32 products: ``ieee``, ``tf32`` or ``bf16``, whichever setting of torch's says so
    (``torch.set_float32_matmul_precision``'s are ``highest``, ``high`` and ``medium``)."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    with _lock:
        setting = _before.cpu if _inside and device.type == "cpu" else backend.matmul.fp32_precision
    return "ieee" if setting == "none" else str(setting)


def allowed_precision(device: torch.device) -> Precision:
    """The fastest precision that the process allows of float32 products on the CPU: ``bfloat16`` where the setting is
    ``bf16`` and the hardware multiplies it. GPUs follow torch's setting by themselves.

    Torch's ``high`` also allows three products of numbers in two parts. On an Intel Xeon with AMX these take longer
    than one in float32 by MKL: 8.7 to 11 ms for 7.8 of a tile of 1,024 and 512 dimensions.
    """
    allowed = device.type == "cpu" and float32_setting(device) == "bf16" and multiplies_bfloat16(device)
    return "bfloat16" if allowed else "full"


def multiply(a: Tensor, b: Tensor, out: Tensor, *, precision: Precision = "full", add: bool = False) -> None:
    """Write a @ b to ``out``, or add it to ``out``.

    On CPUs torch has no product of bfloat16 tensors with a float32 result, and a logit of 14 rounded to 8 bits is off
    by up to 0.03. With AMX, oneDNN rounds the factors of a float32 product itself; without, the product is full
    float32, at half the rate. What is added is one of many terms, which ``bfloat16`` rounds before they are summed up.

    Args:
        a: (N, K).
        b: (K, M).
        out: (N, M), which shares no memory with the factors.
        precision: less than ``full`` only for float32, on hardware that multiplies bfloat16.
        add: whether to keep what ``out`` holds.
    """
    if precision == "bfloat16" and a.is_cuda:
        a, b = a.bfloat16(), b.bfloat16()
        if add:
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        else:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
    elif precision == "bfloat16" and add:
        out += a.bfloat16() @ b.bfloat16()
    else:
        _multiply(a, b, out, add=add, onednn=precision == "bfloat16" or _by_onednn(a))


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool, onednn: bool) -> None:
    with _onednn() if onednn else nullcontext():
        if add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)


def sigmoid_of_product(a: Tensor, b: Tensor, shift: float) -> Tensor:
    """(N, M) 1 / (1 + exp(shift - a @ b.T)) of (N, K) and (M, K) in bfloat16, rounded once, in the end; on CPUs."""
    bias = b.new_full((len(b),), -shift)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "sigmoid", [], "")
    return result


def times_outer_sum(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, M) values * (rows[:, None] + columns) of (N, M) bfloat16 values, rounded once, in the end; on CPUs.

    The sum is a product of two narrow matrices, each number in two parts, whose result is multiplied before it is
    stored.

    Args:
        values: (N, M).
        rows: (N,) float32.
        columns: (M,) float32.
    """
    left, right = (_two_bfloat16(numbers) for numbers in (rows, columns))
    left, right = left + [torch.ones_like(left[0])] * 2, [torch.ones_like(right[0])] * 2 + right
    factors = torch.stack(left, 1), torch.stack(right, 1)
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(factors[0], values, factors[1], None, "mul")
    return result


def _two_bfloat16(numbers: Tensor) -> list[Tensor]:
    """Float32 numbers rounded to bfloat16, and what is left of them."""
    rounded = numbers.bfloat16()
    return [rounded, (numbers - rounded).bfloat16()]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by the fastest library, forward and backward.

    Args:
        x: (..., K).
        weight: (M, K).
        bias: (M,).
    """
    if not (_by_onednn(x) or _in_native_bfloat16(x)) or torch.is_autocast_enabled("cpu") or not x.numel():
        return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


class _Linear(torch.autograd.Function):
    """A linear layer whose three products are all of oneDNN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype == torch.bfloat16:
            # torch's own copies the bias into the result and adds the product to that: a third slower.
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
            return result
        with _onednn():
            return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        with nullcontext() if grad.dtype == torch.bfloat16 else _onednn():
            return (
                grad @ weight if of_x else None,
                _product_of_rows(rows, x) if of_weight else None,
                rows.sum(0) if of_bias else None,
            )


def _product_of_rows(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b of (rows, N) and (rows, K)."""
    # In bfloat16 the product itself transposes its first factor slowly. 3200 rows of 384 by 3200 of 1536 take 9.5 ms on
    # a core with AMX, and 6.5 if the former are copied; but wide ones are copied as slowly.
    copied = a.dtype == torch.bfloat16 and a.shape[1] < b.shape[1]
    return (a.T.contiguous() if copied else a.T) @ b


@contextmanager
def fast_products() -> Iterator[None]:
    """Within, float32 products on the CPU are of the fastest library, whatever calls for them: forward and backward of
    the networks of other packages too."""
    with _onednn() if onednn_multiplies_float32() else nullcontext():
        yield


LONGEST_BATCHED = 256
"""Tokens or patches: all their weights are kept for the gradient, which the fused kind computes anew."""


@contextmanager
def batched_attention(device: torch.device, tokens: int) -> Iterator[None]:
    """Within, torch's attention on a CPU multiplies for all heads and all items of a batch at once.

    Its fused kind, which keeps no weights between tokens, multiplies for each head of each item by itself. That begins
    many small products, slowly where these are oneDNN's: with the gradient, of 128 texts of 25 tokens and 12 heads in
    bfloat16, it takes 102 ms for 14.

    Args:
        device: of what attends.
        tokens: of the longest item; beyond :data:`LONGEST_BATCHED` attention stays as it is.
    """
    if device.type != "cpu" or tokens > LONGEST_BATCHED:
        yield
        return
    rounds = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # the CPU's setting as well
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else bfloat16 is attended to in float32
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(rounds)


class Activation(NamedTuple):
    """An activation as torch computes it in place of ``values``, and what oneDNN calls it and its variant."""

    compute: Callable[[Tensor], Tensor]
    name: str
    variant: str = ""


ACTIVATIONS = {
    None: Activation(lambda values: values, "none"),
    "gelu": Activation(torch.ops.aten.gelu_, "gelu", "none"),
    "gelu_tanh": Activation(partial(torch.ops.aten.gelu_, approximate="tanh"), "gelu", "tanh"),
    "relu": Activation(torch.relu_, "relu"),
    "silu": Activation(partial(F.silu, inplace=True), "swish"),
}

_PACKED_FOR_ROWS = 2048
"""oneDNN lays weights out for so many rows. Fewer or more are multiplied as fast: 64 to 4096 within 5%."""


class PackedLinear:
    """A linear layer and its activation for inference. Where oneDNN computes it, weights are laid out for it once, and
    bias and activation are part of the product; elsewhere the weights are shared with the layer.

    Args:
        weight: (M, K), float32 or bfloat16.
        bias: (M,), of the same type.
        activation: ``gelu``, ``gelu_tanh``, ``relu``, ``silu``, or none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._activation = ACTIVATIONS[activation]
        self._packed = _in_native_bfloat16(weight) or _by_onednn(weight)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, _PACKED_FOR_ROWS)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(..., M) of (..., K), which is of the type of the weights."""
        compute, name, variant = self._activation
        if not self._packed:
            return compute(F.linear(x, self._weight, self._bias))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], variant)
        return result


def _by_onednn(factor: Tensor) -> bool:
    return factor.dtype == torch.float32 and factor.device.type == "cpu" and onednn_multiplies_float32()


def _in_native_bfloat16(factor: Tensor) -> bool:
    return factor.dtype == torch.bfloat16 and factor.device.type == "cpu" and multiplies_bfloat16(factor.device)


class _Setting(NamedTuple):
    """What torch holds of the precision of float32 products."""

    cpu: str
    cuda: str
    all: str | None

    @classmethod
    def found(cls) -> _Setting:
        cpu, cuda = (backend.matmul.fp32_precision for backend in _BACKENDS)
        try:
            name = torch.get_float32_matmul_precision()
        except RuntimeError:  # whoever set it used both of torch's ways, and cannot ask for it
            name = None
        # One that was inherited is inherited again.
        of_mkldnn, of_all = _BACKENDS[0].fp32_precision, _ALL.fp32_precision
        return cls("none" if cpu == of_mkldnn else cpu, "none" if cuda == of_all else cuda, name)

    def restore(self) -> None:
        if self.all is not None and not _has_cuda():
            torch.set_float32_matmul_precision(self.all)
            _BACKENDS[1].matmul.fp32_precision = self.cuda
        _BACKENDS[0].matmul.fp32_precision = self.cpu


_BACKENDS: Any = torch.backends.mkldnn, torch.backends.cuda
_ALL: Any = torch.backends
_has_cuda = cache(torch.cuda.is_available)

_UNCHANGED = _Setting("none", "none", None)
_lock, _inside, _before = threading.Lock(), 0, _UNCHANGED  # of the setting below, which is the process's
_own = threading.local()  # how often this thread is inside


@contextmanager
def _onednn() -> Iterator[None]:
    """Within, float32 products on the CPU are oneDNN's, which rounds their factors to bfloat16 where there is AMX.

    Threads may be inside at once; the last to leave restores the setting that the first one found. Torch's getters
    raise where its ways to set the precision disagree; without a GPU, whose products it would change, the setting is
    therefore the one that both can name: ``torch.get_float32_matmul_precision()`` is ``medium`` within.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = _Setting.found()
            if _before.all is not None and not _has_cuda():
                torch.set_float32_matmul_precision("medium")
            _BACKENDS[0].matmul.fp32_precision = "bf16"
        _own.depth = getattr(_own, "depth", 0) + 1
    try:
        yield
    finally:
        with _lock:
            _own.depth -= 1
            _inside -= 1
            if not _inside:
                _before.restore()


def _alone_after_fork() -> None:
    """A fork has but the thread that forked: not those that were inside, of which one may have held the lock."""
    global _lock, _inside
    _lock = threading.Lock()
    others, _inside = _inside, getattr(_own, "depth", 0)
    if others and not _inside:
        _before.restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_after_fork)
