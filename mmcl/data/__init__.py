"""Sources of rows, decoding, tokenizing, augmentation, samplers and sample data sets."""
