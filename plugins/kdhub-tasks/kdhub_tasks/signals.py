"""Names of signals. Imported where specs are declared: nothing heavy here."""

LAYERED = {"hidden_states": -2, "attentions": -1}
"""Signals of each layer of a network, and the axis of the layers."""
