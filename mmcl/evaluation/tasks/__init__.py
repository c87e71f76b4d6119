"""Evaluation tasks: what is embedded, and which metrics are taken."""
