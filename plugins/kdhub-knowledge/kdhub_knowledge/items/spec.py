"""Items that people take one after another."""
