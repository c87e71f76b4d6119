"""Search with a model, and by words."""

from mmcl.retrieval.search.lexical import LexicalIndex as LexicalIndex
from mmcl.retrieval.search.searcher import Search as Search
