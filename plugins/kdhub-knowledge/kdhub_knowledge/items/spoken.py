"""`recommendations:DATA`: rows to tune a language model on, the last stage of arXiv:2510.08626 (there with LoRA): the
history as the prompt, the chosen rationale and the title of the next item as the response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from kdhub_tasks.classes import listed
from kdhub_tasks.language.prompting import batches, filled, fingerprints

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError
from kdhub.rows import prepared
from kdhub_knowledge.items.catalogue import ITEMS, Catalogue
from kdhub_knowledge.items.rationales import Guard
from kdhub_knowledge.items.spec import NAME
from kdhub_knowledge.items.task import prepare_for

PROMPT = "Someone chose these, the earliest first:\n\n{history}\n\nWhy, and what comes next?\n"


def recommendations(
    argument: str,
    *,
    student: Any = None,
    history_len: int = 20,
    template: str = PROMPT,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """
    Args:
        argument: a data set with rationales (`rationales:DATA`).
        student: chooses the rationale, as a recipe names a teacher (`{source: recipe:pulse}`): by the next item as well
            in the split `train`, without it elsewhere; the first one where no student is named.
        history_len: items that are shown. template: of the prompt, with {history} in it.
        options: of the other data set.

    Raises:
        UsageError: a template without {history}. DataError: rows without rationales.
    """
    name = f"recommendations:{argument}"
    if "{history}" not in template:
        raise UsageError(f"{name}: the template must contain {{history}} (template={template[:60]!r})")
    data, chooser = open_data(argument, options=options), student and open_teacher(student, NAME)
    key = {"of": fingerprints(data), "student": chooser and dict(chooser.identity), "history_len": history_len}

    def rows(split: str) -> Iterator[dict[str, Any]]:
        if "rationales" not in data.split(split).column_names:
            raise DataError(
                f"{name}, split {split!r}, has no column 'rationales'", hint="recommendations:rationales:DATA"
            )
        known = Catalogue.of(data)
        guard, prepare = Guard(known, history_len), prepare_for(known.items)
        for batch in batches(data.split(split)):
            best = [0] * len(batch)
            if chooser:
                scores = chooser.model.of(known).selection(prepared(prepare, batch), with_target=split == "train")
                best = [int(np.argmax(given)) if len(given) else 0 for given in scores]
            for row, n in zip(batch, best):
                if texts := listed(row["rationales"]):
                    prompt = filled(template, history=guard.lines(guard.history(row)))
                    yield {"prompt": prompt, "response": f"{texts[n]} Next: {known.titles[known.at[str(row['item'])]]}"}
        guard.report(f"{name}, split {split!r}")

    splits = {s: lambda s=s: rows(s) for s in data.splits if s != ITEMS}
    key |= {"template": template, "version": 1}
    return Data.from_rows(name, splits, key=key, licence=data.licence)
