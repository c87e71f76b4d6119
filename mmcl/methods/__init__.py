"""Methods: how rows become views, views become embeddings, and embeddings become a loss. One file a method."""

from mmcl.methods.base import Loss as Loss
from mmcl.methods.base import Method as Method
from mmcl.methods.base import Views as Views
from mmcl.methods.clip import Clip as Clip
from mmcl.methods.siglip import Siglip as Siglip
from mmcl.methods.simcse import Simcse as Simcse
