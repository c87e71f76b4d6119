"""Transformers on texts laid end to end, without padding: how each family computes, and one runner for all."""
