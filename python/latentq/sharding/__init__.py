"""Convert a source to MDS shards of JPEGs."""
