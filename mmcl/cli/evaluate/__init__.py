"""mmcl eval: a file a kind of judging."""
