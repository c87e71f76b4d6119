"""Methods that learn from images alone, or from images with labels."""
