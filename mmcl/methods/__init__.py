"""Methods: how rows become views, views become embeddings, and embeddings become a loss. One file a method."""

from mmcl.methods.base import Context as Context
from mmcl.methods.base import Loss as Loss
from mmcl.methods.base import Method as Method
from mmcl.methods.image.barlow_twins import BarlowTwins as BarlowTwins
from mmcl.methods.image.byol import Byol as Byol
from mmcl.methods.image.dino import Dino as Dino
from mmcl.methods.image.lejepa import Lejepa as Lejepa
from mmcl.methods.image.moco import Moco as Moco
from mmcl.methods.image.simclr import Simclr as Simclr
from mmcl.methods.image.simsiam import Simsiam as Simsiam
from mmcl.methods.image.sup_con import SupCon as SupCon
from mmcl.methods.image.swav import Swav as Swav
from mmcl.methods.image.vicreg import Vicreg as Vicreg
from mmcl.methods.image_text.clip import Clip as Clip
from mmcl.methods.image_text.siglip import Siglip as Siglip
from mmcl.methods.image_text.slip import Slip as Slip
from mmcl.methods.outputs import Outputs as Outputs
from mmcl.methods.outputs import Rows as Rows
from mmcl.methods.siamese import Siamese as Siamese
from mmcl.methods.step import Step as Step
from mmcl.methods.text.scored_pairs import ScoredPairs as ScoredPairs
from mmcl.methods.text.simcse import Simcse as Simcse
from mmcl.methods.two_tower import TwoTower as TwoTower
