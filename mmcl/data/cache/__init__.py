"""Pixels and tokens, computed once and kept in files that later epochs and runs map into memory."""
