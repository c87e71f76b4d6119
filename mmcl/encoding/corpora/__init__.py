"""Corpora to vectors on disk, and these read again."""
