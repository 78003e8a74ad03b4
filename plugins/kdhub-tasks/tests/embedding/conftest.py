"""Tiny encoders, generated once."""

from encoders import tiny
