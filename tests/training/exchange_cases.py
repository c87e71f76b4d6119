"""What one process, and each of several together, makes of the same batches; run by test_exchange.py.

    exchange_cases.py FOLDER     writes FOLDER/1.safetensors of one process, FOLDER/2.safetensors of two, and of four

For every case there are the losses and the numbers in the log, the gradient of the first step, and all state at the
end. Towers are linear and in float64, so that nothing but the order of sums differs. Processes are forked: the imports
would take longer than all else.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl import losses
from mmcl.config.model import HeadConfig
from mmcl.config.training import TrainingConfig
from mmcl.data.batches.batch import Batch
from mmcl.methods import Context, Method, Step, paired
from mmcl.methods.image_text import clip, siglip
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.image_text.siglip import SiglipConfig
from mmcl.methods.text import scored_pairs, simcse
from mmcl.methods.text.scored_pairs import ScoredPairsConfig
from mmcl.methods.text.simcse import SimcseConfig
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.padding import Padding
from mmcl.models.towers import Towers
from mmcl.runtime.distributed import barrier, gather_rows, rank, world_size
from mmcl.training.optimization.optim import build_optimizer
from mmcl.training.optimization.step import TrainStep, parallel_method

STEPS, ROWS, WIDTH, DIM = 20, 24, 4, 5
RAGGED = {1: [ROWS], 2: [17, 7], 4: [9, 1, 2, 12]}  # rows of each process
EMPTY = {1: [ROWS], 2: [24, 0], 4: [9, 1, 0, 14]}

HARD = {"anchor": "text", "positive": "text", "negative": "text", "negative_2": "text"}
METHODS: dict[str, tuple[type[Method], Any, dict[str, str]]] = {
    "clip": (
        clip.Clip,
        ClipConfig(label_smoothing=0.1, extra_texts=8, teacher={"name": "given"}),
        {"image": "image", "text": "text"},
    ),
    "cut": (clip.Clip, ClipConfig(matryoshka={"dims": [2]}), {"image": "image", "text": "text"}),
    "queue": (clip.Clip, ClipConfig(queue={"size": 50, "momentum": 0.9}), {"image": "image", "text": "text"}),
    "labelled": (
        clip.Clip,
        ClipConfig(label_smoothing=0.1, extra_texts=8, queue={"size": 50}),
        {"image": "image", "text": "text", "label": "label"},
    ),
    "siglip": (siglip.Siglip, SiglipConfig(), {"image": "image", "text": "text"}),
    "simcse": (
        simcse.Simcse,
        SimcseConfig(
            symmetric=True,
            hard_negative_weight=2.0,
            training_head=True,
            learn_temperature=True,
            guide={"name": "given", "margin": 0.2},
        ),
        HARD,
    ),
    "debiased": (simcse.Simcse, SimcseConfig(debias=0.1, learn_temperature=True, training_head=True), HARD),
    "cosent": (
        scored_pairs.ScoredPairs,
        ScoredPairsConfig(learn_temperature=True),
        {"anchor": "text", "positive": "text", "score": "number"},
    ),
}

# Exchange, tile, rows of a micro-batch, and rows of each process if they are not as many.
WAYS: dict[str, tuple[str, int | None, int | None, dict[int, list[int]] | None]] = {
    "dense": ("gather", None, None, None),
    "tiled": ("gather", 7, None, None),
    "ring": ("ring", None, None, None),
    "cached": ("gather", None, 4, None),
    "all": ("ring", 7, 4, None),
    "ragged": ("gather", None, 4, RAGGED),
    "ragged_ring": ("ring", 7, None, RAGGED),
    "empty": ("gather", None, None, EMPTY),
    "empty_ring": ("ring", 7, None, EMPTY),
}
FIVE = [("clip", way) for way in ("dense", "tiled", "ring", "cached", "all")]
CASES = {  # of so many processes
    1: [(name, "dense") for name in METHODS],
    2: [*FIVE, ("clip", "empty"), ("cut", "all"), ("siglip", "all"), ("queue", "all")],
    4: [*FIVE, ("clip", "empty_ring"), ("queue", "ragged_ring"), ("labelled", "all")],
}
CASES[2] += [
    ("labelled", "ragged_ring"),
    ("simcse", "dense"),
    ("simcse", "ragged_ring"),
    ("debiased", "cached"),
    ("cosent", "ragged"),
]


class Tower(nn.Linear):
    """Four numbers, called pixels or tokens, to six."""

    width, table_gradients, padding = 6, False, Padding()

    def __init__(self) -> None:
        super().__init__(WIDTH, 6)

    def forward(
        self, pixels: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        given = input_ids if pixels is None else pixels
        assert given is not None
        return super().forward(given).tanh()


def encoder_of(modalities: set[str]) -> Towers:
    kinds: dict[str, Any] = {"image": ImageEmbedder, "text": TextEmbedder}
    processor = SimpleNamespace(padding_id=0)
    parts = {name: kinds[name](processor, Tower(), Head(HeadConfig(), 6, DIM)) for name in sorted(modalities)}
    return Towers(parts, DIM).double()


def make_method(name: str, across: str | None) -> Method:
    torch.manual_seed(3)
    kind, config, inputs = METHODS[name]
    modalities = set(inputs.values()) - {"number", "label"}
    references = {role: encoder_of(modalities) for role in ("teacher", "guide") if getattr(config, role, None)}
    context = Context(inputs, ROWS, across, references=references)
    return kind(config, encoder_of(modalities), context).double()


def make_batch(method: Method, step: int, sizes: list[int]) -> Batch:
    """This process's rows of the global batch; some rows share an item with one on another process."""
    random = torch.Generator().manual_seed(step)

    def draw(count: int, width: int = WIDTH) -> Tensor:
        return torch.randn(count, width, generator=random, dtype=torch.float64)

    first = sum(sizes[: rank()])
    mine = slice(first, first + sizes[rank()])
    inputs: dict[str, dict[str, Tensor]] = {}
    references: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in method.references}
    for role, modality in method.columns.items():
        name = {"image": "pixels", "text": "input_ids", "label": "labels"}.get(modality, "values")
        if modality == "label":  # of which a row has one or several positives
            full = torch.randint(ROWS // 2, (ROWS,), generator=random)
        else:
            full = draw(ROWS) if modality != "number" else torch.rand(ROWS, generator=random)
        inputs[role] = {name: full[mine]}
        for reference in method.references:
            references[reference][role] = {"features": draw(ROWS, 6)[mine]}
    columns = sum(modality not in ("number", "label") for modality in method.columns.values())
    ids = torch.randint(ROWS, (ROWS, columns), generator=random) + ROWS * torch.arange(columns)
    rows = torch.arange(ROWS)[mine]
    extra, extra_ids = {}, {}
    for role, wanted in method.extra.items():
        count = wanted.count
        share = slice(rank() * count // world_size(), (rank() + 1) * count // world_size())
        extra[role] = {"input_ids": draw(count)[share]}
        identities = torch.randint(ROWS, (count, columns), generator=random) + ROWS * torch.arange(columns)
        if "label" in method.columns:
            labels = torch.randint(ROWS // 2, (count, 1), generator=random)
            identities = torch.cat([identities, labels], dim=1)
        extra_ids[role] = identities[share]
    return Batch(inputs, ids[mine], rows, rows, extra, extra_ids, references=references)


def in_tiles(loss: Any, tile: int | None, *args: Any, blockwise: losses.Blockwise, **options: Any) -> Tensor:
    return loss(*args, blockwise=replace(blockwise, tile=tile), **options)


def run(
    name: str, exchange: str, tile: int | None, micro_batch: int | None, rows: dict[int, list[int]] | None
) -> dict[str, Tensor]:
    """What 20 steps give."""
    for module, loss in ((clip, "info_nce"), (simcse, "info_nce"), (siglip, "sigmoid"), (paired, "batch_accuracy")):
        setattr(module, loss, partial(in_tiles, getattr(losses, loss), tile))
    several = world_size() > 1
    method = make_method(name, exchange if several else None)
    settings = TrainingConfig(micro_batch=micro_batch, clip_grad=None, weight_decay=0.01, device="cpu")
    device = torch.device("cpu")
    wrapped = parallel_method(method, settings, device)
    optimizer = build_optimizer(method, settings)
    found: dict[str, Tensor] = {}

    def keep_gradient(*_: Any) -> None:
        for key, parameter in method.named_parameters():
            if parameter.grad is not None:
                found.setdefault(f"gradient of {key}", parameter.grad.clone())

    optimizer.register_step_pre_hook(keep_gradient)
    step = TrainStep(method, wrapped, optimizer, settings, device, "float32", None)
    sizes = rows[world_size()] if rows else [ROWS // world_size()] * world_size()
    numbers = []
    for number in range(STEPS):
        result = step([make_batch(method, number, sizes)], Step(number, STEPS), 1e-2)
        numbers.append([result.loss, result.norm, *result.parts.values()])
        if number % 10 == 9:
            numbers[-1] += method.metrics(result.outputs).values()
    found["log"] = torch.tensor([value for line in numbers for value in line], dtype=torch.float64)
    # A copy: buffers may be shared, and weights be views of a bucket.
    found |= {key: tensor.clone() for key, tensor in method.state_dict().items()}
    return found


def together(number: int, world: int, folder: Path) -> None:
    """All cases of ``world`` processes, as number ``number`` among them."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/store-{world}", rank=number, world_size=world)
    kept: dict[str, Tensor] = {}
    for name, way in CASES[world]:
        found = run(name, *WAYS[way])
        mine = torch.cat([found[key].double().flatten() for key in sorted(found)])
        assert (gather_rows(mine).view(world, -1) == mine).all(), f"{name} {way}: processes differ"
        kept |= {f"{name}/{way}/{key}": tensor.contiguous() for key, tensor in found.items()}
    if number == 0:
        save_file(kept, folder / f"{world}.safetensors")
    barrier()


def forked(number: int, world: int, folder: Path) -> int:
    """The id of a process that does its part and ends."""
    if (child := os.fork()) > 0:
        return child
    try:
        together(number, world, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for world in CASES:
        children = [forked(number, world, Path(sys.argv[1])) for number in range(world)]
        ends = [os.waitpid(child, 0)[1] for child in children]
        if any(ends):
            sys.exit(1)
