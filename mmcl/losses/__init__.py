"""Equations: pure functions of tensors, with no state and no model."""

from mmcl.losses.distillation import distillation as distillation
from mmcl.losses.info_nce import batch_accuracy as batch_accuracy
from mmcl.losses.info_nce import info_nce as info_nce
from mmcl.losses.matryoshka import matryoshka as matryoshka
from mmcl.losses.sigmoid import sigmoid as sigmoid
