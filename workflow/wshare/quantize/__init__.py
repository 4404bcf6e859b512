"""Algorithms on arrays: codebooks, k-means, entropy-constrained quantization, error feedback."""
