"""Random changes of images and texts."""
