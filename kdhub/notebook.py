"""HTML by which objects show themselves in a notebook. Everything in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any


def table(title: str, columns: Sequence[Any], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table under a title; the first `left` columns are left-aligned."""

    def line(cells: Sequence[Any], tag: str) -> str:
        side = lambda n: "left" if n < left else "right"  # noqa: E731
        each = (f'<{tag} style="text-align:{side(n)}">{escape(str(cell))}</{tag}>' for n, cell in enumerate(cells))
        return f"<tr>{''.join(each)}</tr>"

    head = f"<thead>{line(columns, 'th')}</thead>" if columns else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<p><b>{escape(title)}</b></p><table>{head}<tbody>{body}</tbody></table>"


def pictures(folder: Path) -> str:
    """The PNG files of a folder, inside the page; nothing where there are none."""
    found = sorted(folder.glob("*.png"))
    data = ((path.stem, base64.b64encode(path.read_bytes()).decode()) for path in found)
    return "".join(
        f'<img alt="{escape(name)}" style="max-width:32em" src="data:image/png;base64,{one}">' for name, one in data
    )
