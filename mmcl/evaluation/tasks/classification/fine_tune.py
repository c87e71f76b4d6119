"""A whole image tower fine-tuned on a share of the labels, as in the semi-supervised tables of SimCLR."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config.data import AugmentationConfig
from mmcl.data.batches.views import Augment
from mmcl.data.cache.pixels import Pixels, open_pixels
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.tasks.classification.few_shot import (
    FRACTIONS,
    SEEDS,
    VALIDATION,
    FewShotScores,
    check_draws,
    few_shot_scores,
)
from mmcl.evaluation.tasks.classification.labels import labelled
from mmcl.evaluation.tasks.classification.linear_probe import fit_probe
from mmcl.evaluation.tasks.classification.of_rows import embed_both
from mmcl.evaluation.tasks.classification.scores import ranks_of
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

# Chen et al. 2020, arXiv:2002.05709, B.5: SGD with Nesterov momentum of 0.9, no weight decay, no warmup, a rate of
# 0.05 · batch / 256, random crops and flips, 60 epochs on 1% of the labels and 30 on 10%.
_RATE, _MOMENTUM, _BATCH = 0.05, 0.9, 64
_EPOCHS, _EPOCHS_OF_FEW, _FEW = 30, 60, 0.05
AUGMENTATION = AugmentationConfig(crop_scale=(0.2, 1.0), flip=0.5)
_AT_ONCE = 256  # images of a forward pass in evaluation


def fine_tuning_of_rows(
    encoder: Encoder,
    train: Rows | ShardRows,
    test: Rows | ShardRows,
    *,
    image: str = "image",
    label: str = "label",
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = SEEDS,
    bootstrap: int = 1000,
) -> list[FewShotScores]:
    """Classify the images of ``test`` by the model's image tower, fine-tuned on a share of the labels of ``train``.

    Each draw starts from the model and from the linear probe of the same labels, so that the first steps of a random
    head do not undo what the tower has learned (LP-FT, Kumar et al. 2022, arXiv:2202.10054). The recipe is SimCLR's:
    SGD with Nesterov momentum 0.9, a rate of 0.05 · 64/256 that falls to 0 by a cosine, batches of 64, random crops and
    flips, 60 epochs on less than 5% of the labels and 30 on more. The model itself is not changed.

    Args:
        encoder: with one tower of images.
        train, test: tables.
        image, label: their columns.
        fractions, seeds, bootstrap: as of :func:`~mmcl.evaluation.few_shot`.

    Raises:
        MmclError: as ``few_shot``; there is no such column, or no usable row.
    """
    check_draws(fractions, seeds)
    embedder, device = encoder.towers.image(), encoder.device
    of_train, of_test = (_pixels(embedder, each, image) for each in (train, test))
    both = embed_both(encoder, train, test, image=image, label=label, normalize=False)
    learned, judged = both
    rows = labelled(*both.arrays)

    def scores(fraction: float) -> FewShotScores:
        epochs = _EPOCHS_OF_FEW if fraction < _FEW else _EPOCHS

        def ranks(chosen: np.ndarray, seed: int) -> np.ndarray:
            labels = rows.train_labels[chosen]
            few = rows.train[chosen]
            probe = fit_probe(few, labels, rows.classes, None, validation=VALIDATION, seed=seed, device=device)
            model = Classifier(embedder, *probe.of_raw_features())
            pixels = of_train.take(learned.rows[chosen])
            fine_tune(model, torch.from_numpy(pixels), torch.from_numpy(labels), epochs=epochs, seed=seed)
            logits = _logits(model, lambda places: of_test.take(judged.rows[places]), len(judged.rows))
            return ranks_of(logits, torch.from_numpy(rows.test_labels))

        return few_shot_scores(rows, fraction, seeds, ranks, bootstrap=bootstrap)

    return [scores(fraction) for fraction in fractions]


class Classifier(nn.Module):
    """A copy of an image embedder of which all learns, and a linear layer that starts at (D, C) ``weight`` and (C,)
    ``bias``."""

    def __init__(self, embedder: ImageEmbedder, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.embedder = copy.deepcopy(embedder)
        self.embedder.frozen, self.embedder.in_eval = False, []
        self.embedder.requires_grad_(True)
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, **images: Tensor) -> Tensor:
        """(N, C) logits of the inputs of the embedder."""
        return torch.addmm(self.bias, self.embedder(**images), self.weight)


def fine_tune(model: Classifier, pixels: Tensor, labels: Tensor, *, epochs: int, seed: int) -> None:
    """Learn the classes of images by cross-entropy, from where ``model`` stands.

    Args:
        model: where to start.
        pixels: (N, S, S, 3) uint8.
        labels: (N,) int64.
        epochs: passes over the images.
        seed: of their order, their random crops and the model's dropout.
    """
    device, random, augment = model.bias.device, np.random.default_rng(seed), Augment(AUGMENTATION)
    size = min(_BATCH, len(labels))
    batches = max(1, len(labels) // size)  # of a size and a little more: none is too small for batch normalisation
    optimizer = torch.optim.SGD(model.parameters(), _RATE * size / 256, _MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    with torch.random.fork_rng(), progress("fine-tune", epochs * len(labels), "images") as advance:
        torch.manual_seed(seed)
        for _ in range(epochs):
            for batch in np.array_split(random.permutation(len(labels)), batches):
                seeds = torch.from_numpy(random.integers(2**62, size=len(batch))).to(device)
                views = augment({"pixels": pixels[batch].to(device)}, seeds, 0, None)
                loss = F.cross_entropy(model(**views), labels[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(len(batch))


@torch.no_grad()
def _logits(model: Classifier, pixels: Callable[[np.ndarray], np.ndarray], count: int) -> Tensor:
    model.eval()
    parts = []
    for places in np.split(np.arange(count), range(_AT_ONCE, count, _AT_ONCE)):
        parts.append(model(pixels=torch.from_numpy(pixels(places)).to(model.bias.device)).cpu())
    return torch.cat(parts)


def _pixels(embedder: ImageEmbedder, rows: Rows | ShardRows, image: str) -> Pixels[np.ndarray]:
    of = embedder.processor
    if not isinstance(rows, Rows):
        raise MmclError(f"{rows.name}: fine-tuning reads a table or a folder, not tar shards")
    return open_pixels(rows, image, size=of.size, resize=of.square_resize, exact_decoding=of.exact_decoding)
