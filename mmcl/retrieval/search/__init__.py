"""Search with a model: by vectors, by words, and by both."""

from mmcl.retrieval.search.fusion import Fusion as Fusion
from mmcl.retrieval.search.hybrid import add_words as add_words
from mmcl.retrieval.search.hybrid import texts_of_rows as texts_of_rows
from mmcl.retrieval.search.lexical import LexicalIndex as LexicalIndex
from mmcl.retrieval.search.lexical import check_language as check_language
from mmcl.retrieval.search.queries import Like as Like
from mmcl.retrieval.search.results import Result as Result
from mmcl.retrieval.search.searcher import Searcher as Searcher
