"""Towers, pooling, heads, the encoder made of them, loading and saving."""

from mmcl.models.encoder import Encoder as Encoder
from mmcl.models.folder import load as load
