"""Rows of preferences: several responses to one prompt, and how good each is said to be.

| columns | form | scores |
| --- | --- | --- |
| `prompt`, `chosen`, `rejected` | preferences | 1 and 0 |
| `prompt`, `responses`, `scores` | rankings | as given, more is better |

A row is one example, that of its best response, so that such rows can be learnt from by labels too. Asked for groups
(the setting `groups`), an example has all responses as `sequences`, and a batch is one of sequences: `groups` says of
which row each is, `scores` how good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub.task import Example

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from kdhub.method import ObjectiveMethod, Run
    from kdhub.task import Rows
    from kdhub_lm.outputs import Outputs
    from kdhub_lm.rows import Encoding

FORMS = ("preferences", "rankings")


def responses_of(row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """The responses of a row and their scores."""
    if "chosen" in row:
        return [row["chosen"], row["rejected"]], [1.0, 0.0]
    return list(row["responses"]), [float(score) for score in row["scores"]]


def examples(encoding: Encoding, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    """See the module."""
    given = [responses_of(row) for row in rows]
    flat = [{**row, "response": text} for row, (texts, _) in zip(rows, given) for text in texts]
    sequences, made = iter(encoding.responses(flat)), []
    for texts, scores in given:
        group = [next(sequences) for _ in texts]
        if encoding.groups:
            content = b"\0\0".join(e["content"] for e in group)
            length, cut = sum(e["length"] for e in group), any(e["cut"] for e in group)
            made.append({"sequences": group, "scores": scores, "content": content, "length": length, "cut": cut})
        else:
            made.append(group[scores.index(max(scores))])
    return made


def groups_of(run: Run, method: ObjectiveMethod) -> Rows:
    """The training rows as groups.

    Raises:
        DataError: they are no preferences.
    """
    from kdhub.errors import DataError
    from kdhub_lm.rows import COLUMNS, form_of

    rows = run.rows("train", **method.settings(), groups=True)
    columns = rows.table.column_names
    if form_of(columns) not in FORMS:
        needed = " or ".join(", ".join(COLUMNS[form]) for form in FORMS)
        raise DataError(
            f"{method.spec.name} learns from preferences, rows of {needed}, not of {', '.join(columns)}",
            hint="preferences:DATA makes some of prompts: a model answers, a teacher or a verifier judges",
        )
    return rows


def of_groups(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """What a batch of groups has beside its sequences: `groups` (sequences,) int64, `scores` (sequences,) float32."""
    import torch

    sizes = torch.tensor([len(e["sequences"]) for e in examples])
    scores = [score for e in examples for score in e["scores"]]
    return {"groups": torch.repeat_interleave(sizes), "scores": torch.tensor(scores, dtype=torch.float32)}


def pairs(groups: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Every two sequences of one group of which one is better: (better, worse), numbers of sequences (pairs,)."""
    better, worse = ((groups[:, None] == groups) & (scores[:, None] > scores)).nonzero(as_tuple=True)
    return better, worse


def accuracy(out: Outputs) -> float:
    """Share of pairs whose better response has the higher mean log-probability of a token; equal ones are half."""
    import datasets
    import numpy as np

    from kdhub.task import plain_rows
    from kdhub_lm.outputs import Outputs

    flat, groups, scores = [], [], []
    for n, row in enumerate(out.table):
        for text, score in zip(*responses_of(row)):
            flat.append({"prompt": row["prompt"], "response": text})
            groups.append(n)
            scores.append(score)
    table = datasets.Dataset.from_list(flat)
    sizes = np.array([len(e["labels"]) for e in out.encode.prepare(plain_rows(table, range(len(table))))])
    means = np.add.reduceat(Outputs(out.encode, table).tokens.log_p, np.cumsum(sizes) - sizes) / sizes
    ahead = [
        np.sign(means[i] - means[j]) / 2 + 0.5
        for start, stop in zip(*_runs(np.array(groups)))
        for i in range(start, stop)
        for j in range(start, stop)
        if scores[i] > scores[j]
    ]
    return float(np.mean(ahead))


def _runs(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal numbers start and stop."""
    import numpy as np

    edges = np.flatnonzero(np.diff(numbers)) + 1
    return np.append(0, edges), np.append(edges, len(numbers))
