"""A data set as the student: the rows that a recipe names, whoever makes them (a file, the Hub, a teacher that labels
or writes). They become a run with figures, costs and a card, are published to a data set repository, and are data of
other recipes as `recipe:NAME`. Each key below `data` is a split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from kdhub.errors import DataError, UsageError
from kdhub.method import Method, MethodOptions

if TYPE_CHECKING:
    from kdhub.method import RunContext
    from kdhub.student import Student


class AsData(Method):
    class Options(MethodOptions):
        split_by: str | None = Field(None, description="column whose values name the split of each row, instead")

    options: Options

    def distill(self, run: RunContext) -> Student:
        """
        Raises:
            UsageError: the recipe names no data, or the start is not rows. DataError: `split_by` is not a column.
        """
        if not run.data_uses:
            raise UsageError("there are no rows to keep", hint="name them with --data, or below `data` in the recipe")
        student = run.student
        for use in run.data_uses:
            student.splits |= self._divided(run.table(use)) if self.options.split_by else {use: run.table(use)}
        return student

    def _divided(self, table: Any) -> dict[str, Any]:
        column = self.options.split_by
        if column not in table.column_names:
            raise DataError(
                f"the rows have no column {column!r} to divide them by, only {', '.join(table.column_names)}"
            )
        where = table.select_columns([column]).with_format("arrow")[:][column].to_numpy(zero_copy_only=False)
        names, at = np.unique(where, return_index=True)
        return {str(names[n]): table.select(np.flatnonzero(where == names[n])) for n in np.argsort(at)}
