"""Neural networks: towers, pooling, heads."""
