"""The loop, checkpoints, schedules and logs."""

from mmcl.training.launch import train as train
from mmcl.training.run import Run as Run
