"""Nodes of graphs: the task, and what is provided for it."""
