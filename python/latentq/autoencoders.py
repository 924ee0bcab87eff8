"""Public alias: autoencoders, implemented in `latentq.models.autoencoders`."""

from latentq.models.autoencoders import DEFAULT, Autoencoder, Posterior, Tokenizer, load_autoencoder

__all__ = ["DEFAULT", "Autoencoder", "Posterior", "Tokenizer", "load_autoencoder"]
