"""Networks with weights: autoencoders, text encoders."""
