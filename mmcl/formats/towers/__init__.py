"""Towers by the names that a config gives them, and as a model folder describes them."""
