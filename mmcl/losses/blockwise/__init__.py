"""How a loss over a large matrix of logits is computed: by blocks, on CPU and CUDA, over several processes."""
