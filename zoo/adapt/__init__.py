"""Adapters for any part of any family: low-rank (LoRA) and prefixes. This room knows modules and names only."""
