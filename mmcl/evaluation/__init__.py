"""How good are the embeddings: retrieval, zero-shot classification and geometry, and whether one model is better."""

from mmcl.evaluation.compare import Comparison as Comparison
from mmcl.evaluation.compare import compare as compare
from mmcl.evaluation.diagnostics import Diagnostics as Diagnostics
from mmcl.evaluation.diagnostics import diagnose as diagnose
from mmcl.evaluation.ranking import Judgements as Judgements
from mmcl.evaluation.ranking import relevant_ranks as relevant_ranks
from mmcl.evaluation.retrieval import Scores as Scores
from mmcl.evaluation.retrieval import retrieval as retrieval
from mmcl.evaluation.retrieval import retrieval_pairs as retrieval_pairs
from mmcl.evaluation.templates import TEMPLATES as TEMPLATES
from mmcl.evaluation.zero_shot import ZeroShotScores as ZeroShotScores
from mmcl.evaluation.zero_shot import classifier as classifier
from mmcl.evaluation.zero_shot import zero_shot as zero_shot
