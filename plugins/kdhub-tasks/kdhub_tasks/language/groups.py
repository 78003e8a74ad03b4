"""Rows with several responses to one prompt, each with a score.

| columns | form | scores |
| --- | --- | --- |
| `prompt`, `chosen`, `rejected` | preferences | 1 and 0 |
| `prompt`, `responses`, `scores` | rankings | as given, higher is better |

By default a row is one example, that of its best response, so such rows can be learnt from as labels too. As a group
(the setting `groups`) an example has all responses as `sequences`; a batch then consists of sequences, and `groups`
says to which row each belongs, `scores` how good it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub.rows import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMS = ("preferences", "rankings")


def responses_of(row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """The responses of a row and their scores."""
    if "chosen" in row:
        return [row["chosen"], row["rejected"]], [1.0, 0.0]
    return list(row["responses"]), [float(score) for score in row["scores"]]


def examples(
    prepare: Callable[[Sequence[Mapping[str, Any]]], list[Example]], rows: Sequence[Mapping[str, Any]], whole: bool
) -> list[Example]:
    """Examples of such rows: those of their best responses, or `whole` groups.

    Args:
        prepare: rows of `prompt` and `response` -> examples.
    """
    found = [responses_of(row) for row in rows]
    flat = [{**row, "response": text} for row, (texts, _) in zip(rows, found) for text in texts]
    sequences, made = iter(prepare(flat)), []
    for texts, scores in found:
        group = [next(sequences) for _ in texts]
        if whole:
            content = b"\0\0".join(e["content"] for e in group)
            length, cut = sum(e["length"] for e in group), any(e["cut"] for e in group)
            made.append({"sequences": group, "scores": scores, "content": content, "length": length, "cut": cut})
        else:
            made.append(group[scores.index(max(scores))])
    return made


def batch_of_groups(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """What a batch of groups has besides its sequences: `groups` (sequences,) int64, `scores` (sequences,) float32."""
    import torch

    sizes = torch.tensor([len(e["sequences"]) for e in examples])
    scores = [score for e in examples for score in e["scores"]]
    return {"groups": torch.repeat_interleave(sizes), "scores": torch.tensor(scores, dtype=torch.float32)}


def pairs(groups: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of sequences of one group with different scores: (better, worse), indices of sequences, (pairs,)."""
    better, worse = ((groups[:, None] == groups) & (scores[:, None] > scores)).nonzero(as_tuple=True)
    return better, worse
