"""Guards: pairs of a prompt and a response that may do harm."""
