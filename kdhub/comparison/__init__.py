"""Comparing methods on equal terms: paired differences, plots, page, and the evidence ledger."""
