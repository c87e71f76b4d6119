"""Methods: how rows become views, views become embeddings, and embeddings become a loss. One file a method."""

from mmcl.methods.barlow_twins import BarlowTwins as BarlowTwins
from mmcl.methods.base import Context as Context
from mmcl.methods.base import Loss as Loss
from mmcl.methods.base import Method as Method
from mmcl.methods.byol import Byol as Byol
from mmcl.methods.clip import Clip as Clip
from mmcl.methods.outputs import Outputs as Outputs
from mmcl.methods.outputs import Rows as Rows
from mmcl.methods.scored_pairs import ScoredPairs as ScoredPairs
from mmcl.methods.siglip import Siglip as Siglip
from mmcl.methods.simclr import Simclr as Simclr
from mmcl.methods.simcse import Simcse as Simcse
from mmcl.methods.step import Step as Step
from mmcl.methods.swav import Swav as Swav
