"""Commonsense graphs: what language models write about everyday events."""
