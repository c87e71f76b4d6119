"""FAISS indexes, exact search, and search with a model."""

from mmcl.retrieval.exact import exact_search as exact_search
from mmcl.retrieval.faiss_index import Index as Index
from mmcl.retrieval.index import VectorIndex as VectorIndex
from mmcl.retrieval.index import open_index as open_index
