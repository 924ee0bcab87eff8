"""From a source to a latent dataset."""
