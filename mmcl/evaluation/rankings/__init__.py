"""Rankings, whatever made them: judged, and fused by weights that are learned from judgements."""

from mmcl.evaluation.rankings.fusion import Learned as Learned
from mmcl.evaluation.rankings.fusion import learn_weights as learn_weights
from mmcl.evaluation.rankings.judged import judge_ranking as judge_ranking
