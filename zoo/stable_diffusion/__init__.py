"""Latent diffusion (arXiv 2112.10752): a KL autoencoder and a U-Net with cross-attention over its latents."""
