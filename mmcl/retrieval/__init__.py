"""FAISS indexes and search."""

from mmcl.retrieval.index import Index as Index
