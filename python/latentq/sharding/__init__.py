"""Converts a source to MDS shards of JPEGs."""
