"""Where a dataset lies: publishing files and units complete or not at all, and reading them from elsewhere."""
