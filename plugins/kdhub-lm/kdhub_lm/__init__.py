"""Distillation of causal language models, for kdhub."""
