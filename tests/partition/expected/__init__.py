"""What the partition must say about real architectures: written down by hand from their papers and sources."""
