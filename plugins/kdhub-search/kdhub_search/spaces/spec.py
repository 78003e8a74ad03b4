"""Spaces of students: what can be chosen, and searched."""
