"""The command line. Importing this package imports nothing heavy."""

from __future__ import annotations


def main() -> None:
    """`kdhub`, and `python -m kdhub`."""
    from kdhub.cli.app import run

    run()
