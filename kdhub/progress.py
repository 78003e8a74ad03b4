"""How far something long is: one live bar on a terminal, tqdm's in a notebook, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

logger = logging.getLogger("kdhub")


def place() -> str:
    """Where progress is seen: `notebook`, `terminal`, or `lines`, as in a file or another program."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        return "notebook"
    heard = logger.handlers and logger.isEnabledFor(logging.INFO)  # as the command line sets it up, unless --quiet
    return "terminal" if heard and sys.stderr.isatty() else "lines"


class Bar:
    """One thing that goes on.

    Args:
        every: seconds between plain lines.
    """

    def __init__(self, every: float):
        self.every, self.said = every, time.monotonic()
        self._place, self._shown, self._task = place(), None, None

    def __call__(self, done: int, total: int, line: str, *, last: bool = False) -> None:
        """Say that `done` of `total` are done.

        Args:
            line: all there is to say; it stands beside a bar, too.
            last: whether a plain line is due however short ago the one before was.
        """
        if self._place == "lines":
            if last or time.monotonic() - self.said >= self.every:
                self.said = time.monotonic()
                logger.info("%s", line)
            return
        getattr(self, f"_{self._place}")(done, total, line)
        if done >= total:
            self.close()

    def _terminal(self, done: int, total: int, line: str) -> None:
        if self._shown is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(file=getattr(sys.stderr, "stream", sys.stderr))  # what drives the terminal is ours
            columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
            self._shown = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._task = self._shown.add_task("", total=total)
            self._shown.start()
        self._shown.update(self._task, completed=done, total=total, description=line)

    def _notebook(self, done: int, total: int, line: str) -> None:
        if self._shown is None:
            from tqdm.auto import tqdm

            self._shown = tqdm(total=total, leave=False)
        self._shown.set_description_str(line, refresh=False)
        self._shown.update(done - self._shown.n)

    def close(self) -> None:
        """Take the bar away."""
        shown, self._shown = self._shown, None
        if shown is not None:
            (shown.stop if self._place == "terminal" else shown.close)()

    def __del__(self) -> Any:
        self.close()
