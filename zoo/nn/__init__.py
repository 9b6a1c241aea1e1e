"""Layers shared by every family: attention, residual blocks, resampling, embeddings. Knows no family."""
