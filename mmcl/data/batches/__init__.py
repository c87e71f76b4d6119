"""From rows to batches: columns, samplers, workers."""
