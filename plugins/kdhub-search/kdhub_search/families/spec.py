"""Families of students of many sizes from one training."""
