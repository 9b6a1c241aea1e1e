"""Diffusion mathematics on tensors of any shape [batch, ...]: schedules, denoisers, guidance, samplers, noise, objective."""
