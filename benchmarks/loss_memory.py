"""InfoNCE of a large batch: tiles against open_clip's ClipLoss, forward and backward; seconds and peak memory by B.

    python benchmarks/loss_memory.py [--sizes 4096 8192 16384] [--ours-only 32768] [--rounds 3] [--limit 600]
        [--precisions highest medium bfloat16]

Each measurement is a fresh process: float32 unit vectors of 512 dimensions, which need a gradient, and a learned
temperature, under ``torch.set_float32_matmul_precision``; where the CPU multiplies bfloat16, also vectors in that. One
small problem is solved first, so that no library starts within the measurement. ``rate`` is GFLOP/s of the products
that a loss takes (four of the size of its matrix in tiles, six in ClipLoss), ``share`` that of the rate which products
alone reach in the same process, in the precision allowed and by the fastest library. ``peak_mb`` is the peak of the
resident set during forward and backward less what was resident before, the inputs with it: it holds the gradients,
(B, 512) twice, and everything that was allocated on the way. Rounds alternate, and the median is reported.

The dense loss is left out where its matrices (both directions' logits, their log-softmax and the gradients of these)
would not fit into the machine's free memory, and a measurement that takes longer than the limit is left empty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from measure import machine, report

DIMENSION = 512
PRODUCTS = {"mmcl": 4, "open_clip": 6}  # of 2·B²·D operations, forward and backward
PRECISIONS = ("highest", "high", "medium", "bfloat16")  # torch's settings for float32 vectors; or vectors in bfloat16
DENSE_COPIES = 5  # matrices of B² float32 that ClipLoss holds at its peak (measured: 4.2), and some margin


def measure(contender: str, precision: str, size: int) -> dict[str, float]:
    """Seconds, rate and peak memory of one forward and backward pass, in this process."""
    import resource
    import time

    import torch
    import torch.nn.functional as F

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if dtype == torch.float32:
        torch.set_float32_matmul_precision(precision)

    def loss_of(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if contender == "mmcl":
            from mmcl.losses import info_nce

            return info_nce(image, text, 1 / scale, similarity="dot")
        from open_clip.loss import ClipLoss

        return ClipLoss()(image, text, scale)

    def problem(size: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        image = F.normalize(torch.randn(size, DIMENSION), dim=1)
        text = torch.randn(size, DIMENSION).add_(image, alpha=4.0)
        image, text = (vectors.to(dtype).requires_grad_() for vectors in (image, F.normalize(text, dim=1)))
        return image, text, torch.tensor(14.3, requires_grad=True)

    loss_of(*problem(1200)).backward()
    given = problem(size)
    before = resident()
    reset_peak()
    start = time.perf_counter()
    loss = loss_of(*given)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = max(resident("VmHWM"), before)
    if peak == before:  # no reset: the peak of the whole process
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = PRODUCTS[contender] * 2 * size**2 * DIMENSION / seconds / 1e9
    measured = {"seconds": seconds, "rate": rate, "share": rate / rate_of_products(precision)}
    return {**measured, "peak_mb": (peak - before) / 1e6, "loss": loss.item()}


def rate_of_products(precision: str) -> float:
    """GFLOP/s of a tile's product: the best of 20."""
    import time

    import torch

    from mmcl.runtime.products import multiply

    a, b, out = torch.randn(1024, DIMENSION), torch.randn(DIMENSION, 1024), torch.empty(1024, 1024)
    if precision in ("medium", "bfloat16"):
        a, b, out = a.bfloat16(), b.bfloat16(), out.bfloat16()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        multiply(a, b, out)
        seconds.append(time.perf_counter() - start)
    return 2 * out.numel() * DIMENSION / min(seconds) / 1e9


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, or at most so far (``VmHWM``)."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Start the peak anew: what came before, such as drawing the inputs, is not the loss's."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("5")


def in_fresh_process(contender: str, precision: str, size: int, limit: float) -> dict[str, float] | None:
    """As :func:`measure`; None if it takes too long or does not fit."""
    command = [sys.executable, __file__, "--one", contender, precision, str(size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{contender}, {precision}, at B = {size}: not done within {limit:g} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"{contender}, {precision}, at B = {size}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def free_memory() -> int:
    """Bytes that a new process can have."""
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def compare(size: int, contenders: list[str], precision: str, rounds: int, limit: float) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"batch": size, "precision": precision}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in list(found):
            measured = in_fresh_process(name, precision, size, limit)
            if measured is None:
                del found[name]
            else:
                found[name].append(measured)
    for name, measurements in found.items():
        for what in ("seconds", "rate", "share", "peak_mb"):
            row[f"{name}_{what}"] = statistics.median(m[what] for m in measurements)
    if {"mmcl", "open_clip"} <= found.keys():
        row["times_as_fast"] = row["open_clip_seconds"] / row["mmcl_seconds"]
        row["memory_ratio"] = row["open_clip_peak_mb"] / row["mmcl_peak_mb"]
        row["loss_difference"] = abs(found["mmcl"][0]["loss"] - found["open_clip"][0]["loss"])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--ours-only", type=int, nargs="*", default=[32768, 65536, 131072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one measurement may take")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["highest", "medium", "bfloat16"])
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "PRECISION", "B"), help="measure here, print JSON")
    options = parser.parse_args()
    if options.one:
        contender, precision, size = options.one
        print(json.dumps(measure(contender, precision, int(size))))
        return
    import torch

    from mmcl.runtime.device import multiplies_bfloat16

    print("units:", *machine()["units"], file=sys.stderr)
    rows = []
    precisions = options.precisions if multiplies_bfloat16(torch.device("cpu")) else ["highest"]
    for size in options.sizes:
        contenders = ["open_clip", "mmcl"]
        if DENSE_COPIES * 4 * size**2 > free_memory():
            print(f"open_clip at B = {size}: {DENSE_COPIES} matrices of B² do not fit", file=sys.stderr)
            contenders = ["mmcl"]
        for precision in precisions:
            rows.append(compare(size, contenders, precision, options.rounds, options.limit))
            print(rows[-1], file=sys.stderr)
    for size in options.ours_only:  # the time grows with B²: one round says enough
        for precision in precisions:
            rows.append(compare(size, ["mmcl"], precision, 1, options.limit))
            print(rows[-1], file=sys.stderr)

    report(__file__, rows, dimension=DIMENSION, rounds=options.rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
