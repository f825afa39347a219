"""HTML pages of results: one file each, which opens without a network."""
