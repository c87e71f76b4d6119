from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmcl.losses.blockwise import triton_blocks

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton comes with torch for CUDA on Linux only"
)

# For the H100, which needs no H100: what the interpreter takes and the compiler refuses shows here.
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mmcl.losses.blockwise import triton_kernels

constants = {"D": 40, "ID_COLUMNS": 1, "PRECISION": "tf32x3", "BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 8}
ints = {"row_count", "column_count", "row_start", "out_stride"}
floats = {"own_log_weight", "shift"}
for kernel in (triton_kernels.log_sum_exp_tile, triton_kernels.softmax_weights_tile, triton_kernels.softplus_tile):
    types = {}
    for name in kernel.fn.arg_names:
        half, ids = name in {"rows", "columns", "out"}, name in {"row_ids", "column_ids", "owner"}
        pointer = "*bf16" if half else "*i64" if ids else "*fp32"
        number = "i32" if name in ints else "fp32" if name in floats else pointer
        types[name] = "constexpr" if name in constants else number
    used = {name: value for name, value in constants.items() if name in types}
    binary = compile(ASTSource(kernel.fn, types, used), target=GPUTarget("cuda", 90, 32))
    assert "atom" not in binary.asm["ptx"] and "red.global" not in binary.asm["ptx"]
"""


def failure(*command: str, **environment: str) -> str:
    """What a Python that fails has printed."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    return done.stdout + done.stderr if done.returncode else ""


@needs_triton
def test_kernels_equal_the_dense_forms_under_the_interpreter():
    """In a process of its own: triton decides at its import whether it interprets."""
    cases = Path(__file__).with_name("triton_interpreted.py")
    assert not failure("-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases), TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile_for_hopper_and_use_no_atomics(tmp_path):
    assert not failure("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))


def test_the_host_side_needs_no_triton():
    blocked = "import sys; sys.modules['triton'] = None; import mmcl.losses.blockwise.triton_blocks"
    assert not failure("-c", blocked)


def test_tensors_without_a_device_for_the_kernels_are_not_taken(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton_blocks.available(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not triton_blocks.available(torch.zeros(1, dtype=torch.float64))
