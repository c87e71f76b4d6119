"""Losses of views that belong together, without negatives: what keeps them from collapse is in each equation."""
