"""Diffusion mathematics on tensors of any shape [batch, ...]: schedules, guidance, samplers, objective."""
