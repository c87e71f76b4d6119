"""Indexes of vectors, exact search, and search with a model and by words."""

from mmcl.retrieval.exact import exact_search as exact_search
from mmcl.retrieval.faiss.index import Index as Index
from mmcl.retrieval.index import Hits as Hits
from mmcl.retrieval.index import VectorIndex as VectorIndex
from mmcl.retrieval.index import open_index as open_index
from mmcl.retrieval.search.fusion import Fusion as Fusion
from mmcl.retrieval.search.lexical import LexicalIndex as LexicalIndex
from mmcl.retrieval.search.queries import Like as Like
from mmcl.retrieval.search.results import Result as Result
from mmcl.retrieval.search.searcher import Searcher as Searcher
