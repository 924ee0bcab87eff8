"""Encodes a source into a latent dataset."""
