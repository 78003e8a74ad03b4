"""Data sets: named splits of plain rows from any source, checked once and memory-mapped afterwards."""
