"""A data set as the student: the rows that a recipe names, whoever makes them (a file, the Hub, a teacher that labels
or writes). They become a run with figures, costs and a card, are published to a data set repository, and are data of
other recipes as `recipe:NAME`. Each key below `data` is a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdhub.errors import UsageError
from kdhub.method import Method

if TYPE_CHECKING:
    from kdhub.method import RunContext
    from kdhub.student import Student


class AsData(Method):
    def distill(self, run: RunContext) -> Student:
        """
        Raises:
            UsageError: the recipe names no data, or the start is not rows.
        """
        if not run.data_uses:
            raise UsageError("there are no rows to keep", hint="name them with --data, or below `data` in the recipe")
        student = run.student
        for use in run.data_uses:
            student.splits[use] = run.table(use)
        return student
