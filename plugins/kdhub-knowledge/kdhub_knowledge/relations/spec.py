"""Relations between things that a sentence names."""
