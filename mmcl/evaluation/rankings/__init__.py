"""Rankings fused by weights that are learned from judgements, and judged beside those that they are made of."""

from mmcl.evaluation.rankings.fusion import Learned as Learned
from mmcl.evaluation.rankings.fusion import as_run as as_run
from mmcl.evaluation.rankings.fusion import learn_weights as learn_weights
from mmcl.evaluation.rankings.hybrid import HybridScores as HybridScores
from mmcl.evaluation.rankings.hybrid import judge_hybrid as judge_hybrid
