"""The encoder, from raw inputs to vectors, and from corpora to vectors on disk."""

from mmcl.encoding.encode import encode_source as encode_source
from mmcl.encoding.encoder import Encoder as Encoder
from mmcl.encoding.vectors import Vectors as Vectors
from mmcl.encoding.vectors import open_vectors as open_vectors
from mmcl.encoding.writer import VectorWriter as VectorWriter
