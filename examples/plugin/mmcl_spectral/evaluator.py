"""How many dimensions the embeddings of images use, as training goes on."""

from typing import Literal

import numpy as np

from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.data.sources import open_source
from mmcl.encoding import Encoder
from mmcl.evaluation.evaluator import Evaluator


class EffectiveRankConfig(EvaluationSourceConfig):
    """Images to embed."""

    task: Literal["effective_rank"] = "effective_rank"
    rows: int = 256
    """The first so many rows."""


class EffectiveRank(Evaluator):
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007)."""

    Config = EffectiveRankConfig
    headlines = ("effective_rank",)

    def __init__(self, source, images):
        self.source, self.images = source, images

    @classmethod
    def open(cls, settings, setup):
        rows = open_source(settings.source, split=settings.split)
        column = settings.columns.get("image", setup.config.data.columns.get("image", "image"))
        return cls(rows.name, rows.images(column, range(min(settings.rows, len(rows)))))

    @classmethod
    def metrics(cls, settings, ks):
        return ["effective_rank"]

    def evaluate(self, encoder, *, warn=True):
        vectors = Encoder(encoder).encode(self.images, show_progress=False)
        values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
        share = values / values.sum()
        return {"effective_rank": float(np.exp(-(share * np.log(share + 1e-12)).sum()))}
