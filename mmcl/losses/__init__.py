"""Equations: pure functions of tensors, with no state and no model."""

from mmcl.losses.accuracy import batch_accuracy as batch_accuracy
from mmcl.losses.blockwise.plan import Blockwise as Blockwise
from mmcl.losses.contrastive import contrastive as contrastive
from mmcl.losses.debiased import debiased_info_nce as debiased_info_nce
from mmcl.losses.distillation import distillation as distillation
from mmcl.losses.info_nce import info_nce as info_nce
from mmcl.losses.logits.negatives import Guide as Guide
from mmcl.losses.logits.negatives import Negatives as Negatives
from mmcl.losses.logits.similarity import Similarity as Similarity
from mmcl.losses.matryoshka import matryoshka as matryoshka
from mmcl.losses.nt_xent import nt_xent as nt_xent
from mmcl.losses.scored import cosent as cosent
from mmcl.losses.scored import cosine_mse as cosine_mse
from mmcl.losses.sigmoid import sigmoid as sigmoid
from mmcl.losses.triplet import Mining as Mining
from mmcl.losses.triplet import mined_triplet as mined_triplet
from mmcl.losses.triplet import triplet as triplet
from mmcl.losses.without_negatives.barlow_twins import barlow_twins as barlow_twins
from mmcl.losses.without_negatives.barlow_twins import cross_correlation as cross_correlation
from mmcl.losses.without_negatives.negative_cosine import negative_cosine as negative_cosine
from mmcl.losses.without_negatives.swapped_prediction import sinkhorn as sinkhorn
from mmcl.losses.without_negatives.swapped_prediction import swapped_prediction as swapped_prediction
from mmcl.losses.without_negatives.vicreg import VicregTerms as VicregTerms
from mmcl.losses.without_negatives.vicreg import vicreg as vicreg
from mmcl.losses.without_negatives.vicreg import vicreg_terms as vicreg_terms
