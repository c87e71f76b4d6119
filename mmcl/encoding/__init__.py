"""A corpus to vectors on disk."""

from mmcl.encoding.encode import encode_source as encode_source
from mmcl.encoding.vectors import Vectors as Vectors
from mmcl.encoding.vectors import open_vectors as open_vectors
from mmcl.encoding.writer import VectorWriter as VectorWriter
