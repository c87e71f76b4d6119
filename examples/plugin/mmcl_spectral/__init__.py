"""A method, a tower and an evaluator beside those of mmcl.

``pip install examples/plugin`` in the environment of mmcl; ``mmcl models`` then lists them, and a config names them::

    method: {name: spectral, weight: 1.0}
    model: {dim: 64, image: {name: "patches:8"}}
    evaluation: {sources: {dev: {task: effective_rank, source: "sample:shapes", split: dev}}}
"""
