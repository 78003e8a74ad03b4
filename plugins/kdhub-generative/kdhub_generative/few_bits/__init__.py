"""Models of few bits, and pictures as sentences for language models."""
