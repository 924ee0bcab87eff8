"""Converts other tools' latents to latent datasets, and latent datasets to other tools' layouts.

One file per layout; each has `read(path, progress) -> ForeignDataset` and `write(dataset, out, progress) -> samples`.
"""
