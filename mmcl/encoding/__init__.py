"""The encoder, from raw inputs to vectors, and from corpora to vectors on disk."""

from mmcl.encoding.corpora.encode import encode_source as encode_source
from mmcl.encoding.corpora.job import encode_range as encode_range
from mmcl.encoding.corpora.opening import open_job as open_job
from mmcl.encoding.corpora.settings import Columns as Columns
from mmcl.encoding.corpora.settings import Layout as Layout
from mmcl.encoding.corpora.vectors import Vectors as Vectors
from mmcl.encoding.corpora.writer import VectorWriter as VectorWriter
from mmcl.encoding.encoder import Encoder as Encoder
from mmcl.encoding.vector_files.file_vectors import FileVectors as FileVectors
from mmcl.encoding.vector_files.open import open_vectors as open_vectors
