"""The typed description of a run: one YAML file is one experiment."""

from mmcl.config.load import load_config as load_config
from mmcl.config.schema import Config as Config
