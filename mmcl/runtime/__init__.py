"""Devices, precision, distribution, progress, files and errors: the ground floor, which imports nothing above it."""
