"""The networks of image towers as plain state dicts of torchvision and timm."""
