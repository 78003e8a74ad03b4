"""Small data sets that stand for large ones: images, and what makes their labels on the spot (`hello`)."""
