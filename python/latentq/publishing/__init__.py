"""Publishing finished datasets where other people find them."""
