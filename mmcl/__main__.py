"""``python -m mmcl`` is the command ``mmcl``."""

from mmcl.cli import main

main()
