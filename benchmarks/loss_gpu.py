"""What do time and memory of a symmetric InfoNCE grow to on a GPU, tiled and dense?

python benchmarks/loss_gpu.py                                   # needs a CUDA device; B = 8,192 … 1,048,576 at D = 512
python benchmarks/loss_gpu.py --sizes 65536 --backward-block 16384

One step is the loss and its gradients by both sides' embeddings and the scale, of bfloat16 embeddings:

- `open_clip`: its `ClipLoss` under autocast, as in its training loop; and the same through `torch.compile`;
- `memeff`: the Triton kernels of the package of this name, if it is installed; its temperature has no gradient;
- `tiles`: `mmcl.losses.info_nce` without Triton, in tiles of plain torch;
- `triton`: `mmcl.losses.info_nce` as it comes.

Before anything is timed each is compared with the dense loss in float64. Contenders alternate; milliseconds are medians
between CUDA events. `share` is 8·B²·D operations (two each for a multiplication and an addition: B²·D of them forward,
three times that backward) over the time, as a share of the rate measured for a large `torch.mm` in bfloat16. Memory is
the peak of what torch has allocated, embeddings and gradients included.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import torch
import torch.nn.functional as F
from measure import show, write
from open_clip import ClipLoss
from torch import Tensor

from mmcl.losses import info_nce
from mmcl.losses.blockwise import triton_blocks

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

SCALE = 100.0  # the largest that CLIP allows; float32's exponentials overflow below a temperature of 0.0113
CHECKED = 4096  # rows; dense in float64
TOLERANCE = 1e-2  # of the gradient's norm


def main() -> None:
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("loss_gpu: no CUDA device here, so nothing was measured")
    torch.manual_seed(0)
    triton_blocks.BACKWARD_BLOCK = options.backward_block
    show(check(options.dim))
    rate = matmul_rate()
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "bfloat16_tflops": rate / 1e12,
        "dim": options.dim,
        "backward_block": options.backward_block,
    }
    rows = []
    for size in options.sizes:
        torch.compiler.reset()
        rows += measure(size, options.dim, options.rounds, options.seconds, rate)
        write(options.out, rows, **facts)
    show(rows)


def contenders() -> dict[str, Loss]:
    """Losses of unit vectors of images and texts, and a scale."""
    compiled = torch.compile(ClipLoss(), dynamic=False)

    def open_clip(loss: Loss) -> Loss:
        def run(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return loss(image, text, scale)

        return run

    def triton(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return info_nce(image, text, 1 / scale, similarity="dot")

    def tiles(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        with _without_triton():
            return triton(image, text, scale)

    return {
        "open_clip": open_clip(ClipLoss()),
        "open_clip compiled": open_clip(compiled),
        **_memeff(),
        "tiles": tiles,
        "triton": triton,
    }


def _memeff() -> dict[str, Loss]:
    """The package's loss at the scale that is measured, which is a number to it."""
    if importlib.util.find_spec("memeff") is None:
        return {}
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(1 / SCALE, normalized_inputs=True, stable=False)
    return {"memeff": lambda image, text, scale: loss(image, text)}


@contextmanager
def _without_triton() -> Iterator[None]:
    with mock.patch.object(triton_blocks, "available", return_value=False):
        yield


def step(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The loss, and its gradients; None by what it does not depend on."""
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True)


def pairs(size: int, dim: int) -> tuple[Tensor, ...]:
    """Embeddings of (B, D) images and texts that are near to each other, and a scale."""
    image = F.normalize(torch.randn(size, dim, device="cuda"), dim=1)
    text = F.normalize(image + torch.randn_like(image) / dim**0.5, dim=1)
    scale = torch.tensor(SCALE, device="cuda")
    return tuple(x.requires_grad_() for x in (image.bfloat16(), text.bfloat16(), scale))


def check(dim: int) -> list[dict[str, Any]]:
    """Relative errors against float64; ours end the run where they are too large."""
    inputs = pairs(CHECKED, dim)
    exact = step(_dense, tuple(x.detach().double().requires_grad_() for x in inputs))
    rows = []
    for name, loss in contenders().items():
        errors = [
            math.nan if got is None else ((got - want).norm() / want.norm()).item()
            for got, want in zip(step(loss, inputs), exact, strict=True)
        ]
        names = ("loss", "by image", "by text", "by scale")
        rows.append({"rows": CHECKED, "relative error": name, **dict(zip(names, errors, strict=True))})
        if name in ("tiles", "triton") and max(errors[:3]) > TOLERANCE:
            sys.exit(f"loss_gpu: '{name}' is not equal to the dense loss at B = {CHECKED}: {rows[-1]}")
    return rows


def _dense(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def matmul_rate(side: int = 8192, rounds: int = 20) -> float:
    """Operations a second of a large product in bfloat16."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    seconds = [_seconds(lambda: torch.mm(a, b)) for _ in range(rounds)]
    return 2 * side**3 / statistics.median(seconds)


def measure(size: int, dim: int, rounds: int, limit: float, rate: float) -> list[dict[str, Any]]:
    """A line for each contender; whose steps take longer than ``limit`` in all is run less often, but once."""
    inputs = pairs(size, dim)
    running = contenders()
    peaks, seconds = {}, {name: [] for name in running}
    for name, loss in list(running.items()):
        peaks[name] = _peak(loss, inputs)  # compiles and tunes, too
        if peaks[name] is None:
            del running[name]
    for _ in range(rounds):
        for name, loss in running.items():
            if not seconds[name] or sum(seconds[name]) + seconds[name][-1] < limit:
                seconds[name].append(_seconds(lambda loss=loss: step(loss, inputs)))
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"B": size, "loss": name, "ms": "out of memory"}
        if values:
            median = statistics.median(values)
            row |= {"ms": median * 1e3, "rounds": len(values), "share": 8 * size**2 * dim / median / rate}
            row |= {"peak GiB": peaks[name]}
        rows.append(row)
    show(rows)
    return rows


def _peak(loss: Loss, inputs: tuple[Tensor, ...]) -> float | None:
    """GiB at the most in a second step; None if memory does not suffice."""
    try:
        step(loss, inputs)
        torch.cuda.reset_peak_memory_stats()
        step(loss, inputs)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _seconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**n for n in range(13, 21)], help="of the batch")
    parser.add_argument("--dim", type=int, default=512, help="of the embeddings")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each contender, of which the median is shown")
    parser.add_argument("--seconds", type=float, default=60.0, help="in which a contender stops short of its rounds")
    parser.add_argument(
        "--backward-block",
        type=int,
        default=triton_blocks.BACKWARD_BLOCK,
        help="rows and columns of a block of derivatives",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
