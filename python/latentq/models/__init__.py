"""Networks with weights: autoencoders and text encoders."""
