"""Public alias: autoencoders, implemented in `latentq.models.autoencoders`."""

from latentq.models.autoencoders import DEFAULT, Autoencoder, Normalization, Posterior, Tokenizer, load_autoencoder

__all__ = ["DEFAULT", "Autoencoder", "Normalization", "Posterior", "Tokenizer", "load_autoencoder"]
