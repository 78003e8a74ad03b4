"""Running text, line by line, as texts of a few hundred characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def in_blocks(lines: Iterable[str], size: int) -> Iterator[str]:
    """Lines one below the other until `size` characters are reached; a block ends at the end of a line unless that is
    more than `size` characters further."""
    held = ""
    for line in lines:
        held += line + "\n"
        while len(held) >= size:
            end = held.rfind("\n", 0, 2 * size) + 1 or size
            yield held[:end]
            held = held[end:]
    if held.strip():
        yield held
