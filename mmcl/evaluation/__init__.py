"""How good are the embeddings: retrieval, zero-shot classification, textual similarity and geometry, and whether one
model is better."""

from typing import Any

from mmcl.evaluation.compare import Comparison as Comparison
from mmcl.evaluation.compare import compare as compare
from mmcl.evaluation.compare_sts import compare_sts as compare_sts
from mmcl.evaluation.metrics.ranking import Judgements as Judgements
from mmcl.evaluation.metrics.ranking import relevant_ranks as relevant_ranks
from mmcl.evaluation.tasks.classification.few_shot import FewShotScores as FewShotScores
from mmcl.evaluation.tasks.classification.few_shot import few_shot as few_shot
from mmcl.evaluation.tasks.classification.knn import KnnScores as KnnScores
from mmcl.evaluation.tasks.classification.knn import knn as knn
from mmcl.evaluation.tasks.classification.linear_probe import LinearProbeScores as LinearProbeScores
from mmcl.evaluation.tasks.classification.linear_probe import linear_probe as linear_probe
from mmcl.evaluation.tasks.classification.templates import TEMPLATES as TEMPLATES
from mmcl.evaluation.tasks.classification.zero_shot import ZeroShotScores as ZeroShotScores
from mmcl.evaluation.tasks.classification.zero_shot import classifier as classifier
from mmcl.evaluation.tasks.classification.zero_shot import zero_shot as zero_shot
from mmcl.evaluation.tasks.diagnostics import Diagnostics as Diagnostics
from mmcl.evaluation.tasks.diagnostics import diagnose as diagnose
from mmcl.evaluation.tasks.diagnostics import diagnose_pairs as diagnose_pairs
from mmcl.evaluation.tasks.recommendation import recommendation as recommendation
from mmcl.evaluation.tasks.retrieval import Scores as Scores
from mmcl.evaluation.tasks.retrieval import retrieval as retrieval
from mmcl.evaluation.tasks.retrieval import retrieval_pairs as retrieval_pairs
from mmcl.evaluation.tasks.runs import retrieval_run as retrieval_run
from mmcl.evaluation.tasks.sentence_pairs import open_sts as open_sts
from mmcl.evaluation.tasks.sts import StsScores as StsScores
from mmcl.evaluation.tasks.sts import sts as sts
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval as beir_retrieval
from mmcl.evaluation.tasks.text_retrieval import retrieval_of_texts as retrieval_of_texts
from mmcl.evaluation.tasks.threshold.duplicates import threshold_of_duplicates as threshold_of_duplicates
from mmcl.evaluation.tasks.threshold.pairs import threshold_of_pairs as threshold_of_pairs
from mmcl.evaluation.tasks.threshold.threshold import Thresholds as Thresholds
from mmcl.evaluation.tasks.threshold.threshold import threshold as threshold


def __getattr__(name: str) -> Any:
    if name == "mteb_model":  # on first use: mteb comes with an extra
        from mmcl.evaluation.mteb_adapter import mteb_model

        return mteb_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
