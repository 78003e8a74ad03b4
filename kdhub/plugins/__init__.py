"""Finding plugins, and what they provide by name."""
