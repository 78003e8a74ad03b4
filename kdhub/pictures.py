"""Pictures that a task draws of what its models gave (`kdhub.task.Task.draw`): grids, overlays, filmstrips, animations.

They stand in `plots/` of a run, named `rows-NAME`, so that none hides a plot of kdhub's own, and are shown in card and
page, where anybody's browser opens them: hence few formats, and little of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 4 * 2**20
"""Bytes of one picture."""
MOST = 8
"""Pictures of a run."""
LONGEST = 300
"""Characters of a sentence."""
FORMATS = {".png": b"\x89PNG\r\n\x1a\n", ".gif": b"GIF8"}
"""Ending of a name -> what such a file begins with."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]+)")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: lower-case with hyphens, ending with one of `FORMATS` ("answers.png").
        sentence: what it shows, also for those who do not see it. Which rows, kdhub adds by itself.
        content: the file.
    """

    name: str
    sentence: str
    content: bytes


def problems(pictures: Sequence[Picture]) -> list[str]:
    """What is wrong with the pictures of a run, one sentence each; empty when they may be shown."""
    found = [f"there are {len(pictures)} pictures, more than {MOST}"] if len(pictures) > MOST else []
    names = [one.name for one in pictures]
    found += [f"{name!r} stands for several pictures" for name in dict.fromkeys(names) if names.count(name) > 1]
    for one in pictures:
        match = _NAME.fullmatch(one.name)
        if not match or match[2] not in FORMATS:
            found.append(f"{one.name!r} is not a name like answers{' or answers'.join(FORMATS)}")
        elif not one.content.startswith(FORMATS[match[2]]):
            found.append(f"{one.name} does not hold what its name says: it begins with {one.content[:8]!r}")
        if len(one.content) > LARGEST:
            found.append(f"{one.name} has {len(one.content):,} bytes, more than {LARGEST:,}")
        if not one.sentence.strip().endswith(".") or len(one.sentence) > LONGEST or "\n" in one.sentence:
            found.append(f"{one.name} needs a sentence of at most {LONGEST} characters ({one.sentence[:60]!r})")
    return found
