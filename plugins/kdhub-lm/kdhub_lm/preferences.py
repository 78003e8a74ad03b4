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
    import torch
    from torch import Tensor

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
