"""What is similar within a corpus, or between two: hard negatives, paraphrases, duplicates, clusters."""

from mmcl.retrieval.similar.clusters import Clusters as Clusters
from mmcl.retrieval.similar.clusters import communities as communities
from mmcl.retrieval.similar.clusters import kmeans as kmeans
from mmcl.retrieval.similar.clusters import write_clusters as write_clusters
from mmcl.retrieval.similar.duplicates import Duplicates as Duplicates
from mmcl.retrieval.similar.duplicates import find_duplicates as find_duplicates
from mmcl.retrieval.similar.items import Side as Side
from mmcl.retrieval.similar.negatives import Corpus as Corpus
from mmcl.retrieval.similar.negatives import MinedFile as MinedFile
from mmcl.retrieval.similar.negatives import Options as Options
from mmcl.retrieval.similar.negatives import Pairs as Pairs
from mmcl.retrieval.similar.negatives import mine_negatives as mine_negatives
from mmcl.retrieval.similar.pairs import UnitVectors as UnitVectors
from mmcl.retrieval.similar.paraphrases import Paraphrases as Paraphrases
from mmcl.retrieval.similar.paraphrases import best_pairs as best_pairs
from mmcl.retrieval.similar.paraphrases import mine_paraphrases as mine_paraphrases
