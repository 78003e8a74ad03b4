"""Data sets as students: rows that are published, measured and verified as models are."""
