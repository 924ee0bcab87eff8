"""Encode a source into a latent dataset."""
