"""InfoNCE of a large batch: tiles against open_clip's ClipLoss, forward and backward; seconds and peak memory by B.

    python benchmarks/loss_memory.py [--sizes 4096 8192 16384] [--ours-only 32768] [--rounds 3] [--limit 600]

Each measurement is a fresh process: float32 unit vectors of 512 dimensions, which need a gradient, and a learned
temperature; where the CPU multiplies bfloat16, also vectors in that. One small problem is solved first, so that no
library starts within the measurement. ``peak_mb`` is the peak of the resident set during forward and backward less what
was resident before, the inputs with it: it holds the gradients, (B, 512) twice, and everything that was allocated on
the way. Rounds alternate, and the median is reported.

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

from measure import report

DIMENSION = 512
BFLOAT16 = "_bfloat16"  # after a contender's name
DENSE_COPIES = 5  # matrices of B² float32 that ClipLoss holds at its peak (measured: 4.2), and some margin


def measure(contender: str, size: int) -> dict[str, float]:
    """Seconds and peak memory of one forward and backward pass, in this process."""
    import resource
    import time

    import torch
    import torch.nn.functional as F

    dtype = torch.bfloat16 if contender.endswith(BFLOAT16) else torch.float32

    def loss_of(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if contender.startswith("mmcl"):
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
    return {"seconds": seconds, "peak_mb": (peak - before) / 1e6, "loss": loss.item()}


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, or at most so far (``VmHWM``)."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Start the peak anew: what came before, such as drawing the inputs, is not the loss's."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("5")


def in_fresh_process(contender: str, size: int, limit: float) -> dict[str, float] | None:
    """As :func:`measure`; None if it takes too long or does not fit."""
    command = [sys.executable, __file__, "--one", contender, str(size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{contender} at B = {size}: not done within {limit:g} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"{contender} at B = {size}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def free_memory() -> int:
    """Bytes that a new process can have."""
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def compare(size: int, contenders: list[str], rounds: int, limit: float) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"batch": size}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in list(found):
            measured = in_fresh_process(name, size, limit)
            if measured is None:
                del found[name]
            else:
                found[name].append(measured)
    for name, measurements in found.items():
        for what in ("seconds", "peak_mb"):
            row[f"{name}_{what}"] = statistics.median(m[what] for m in measurements)
    for precision in ("", BFLOAT16):
        ours, theirs = f"mmcl{precision}", f"open_clip{precision}"
        if {ours, theirs} <= found.keys():
            row[f"times_as_fast{precision}"] = row[f"{theirs}_seconds"] / row[f"{ours}_seconds"]
            row[f"memory_ratio{precision}"] = row[f"{theirs}_peak_mb"] / row[f"{ours}_peak_mb"]
            row[f"loss_difference{precision}"] = abs(found[ours][0]["loss"] - found[theirs][0]["loss"])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--ours-only", type=int, nargs="*", default=[32768, 65536, 131072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one measurement may take")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "B"), help="measure in this process, print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    import torch

    from mmcl.runtime.device import multiplies_bfloat16

    rows = []
    precisions = ["", BFLOAT16] if multiplies_bfloat16(torch.device("cpu")) else [""]
    ours, theirs = ([f"{name}{precision}" for precision in precisions] for name in ("mmcl", "open_clip"))
    for size in options.sizes:
        contenders = [*theirs, *ours]
        if DENSE_COPIES * 4 * size**2 > free_memory():
            print(f"open_clip at B = {size}: {DENSE_COPIES} matrices of B² do not fit", file=sys.stderr)
            contenders = ours
        rows.append(compare(size, contenders, options.rounds, options.limit))
        print(rows[-1], file=sys.stderr)
    for size in options.ours_only:  # the time grows with B²: one round says enough
        rows.append(compare(size, ours, 1, options.limit))
        print(rows[-1], file=sys.stderr)

    report(__file__, rows, dimension=DIMENSION, rounds=options.rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
