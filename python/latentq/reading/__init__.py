"""Reading latent datasets for training."""
