"""Publishing files and units where a dataset lies: complete, or not at all."""
