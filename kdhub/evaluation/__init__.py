"""Measuring: quality, fidelity and cost, and what is made of the numbers: report, plots and card."""
