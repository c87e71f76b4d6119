"""One optimizer step: gradients, gradient caching, updates."""
