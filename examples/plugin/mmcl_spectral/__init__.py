"""A method, towers and an evaluator beside those of mmcl.

``pip install examples/plugin`` in the environment of mmcl; ``mmcl models`` then lists them, and a config names them::

    method: {name: spectral, weight: 1.0}
    model: {dim: 64, image: {name: "patches:8"}}  # and of a method that reads texts, text: {name: "bag:64"}
    evaluation: {sources: {dev: {task: effective_rank, source: "sample:shapes", split: dev}}}
"""
