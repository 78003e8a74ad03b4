"""Measures of graphs, pooled and for each relation. All but `tails_accepted` read a graph's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.dataset_student import splits_in
from kdhub.metric import Part
from kdhub_knowledge.commonsense.comet import tail_of
from kdhub_knowledge.commonsense.critic import VALID, interval
from kdhub_knowledge.commonsense.oracles import valid_tails
from kdhub_knowledge.commonsense.rows import COLUMNS

if TYPE_CHECKING:
    from kdhub_tasks.language.outputs import Outputs

    from kdhub.task import Encoder

RELATION = "relation"


def _rows(folder: Path, *columns: str) -> Any:
    """These columns of all splits as one Arrow table; None where one is missing."""
    import pyarrow as pa

    tables = [table.data.table for table in splits_in(folder).values()]
    if not tables or any(set(columns) - set(table.column_names) for table in tables):
        return None
    return pa.concat_tables([table.select(list(columns)) for table in tables])


def _of_relations(folder: Path, column: str, how: str) -> list[Part]:
    """An aggregate of a column, pooled and for each relation."""
    if (table := _rows(folder, RELATION, column)) is None:
        return []
    whole = table.group_by([]).aggregate([(column, how)])
    of = table.group_by(RELATION).aggregate([(column, how)])
    name = f"{column}_{how}"
    return [
        Part(whole[name][0].as_py()),
        *(Part(n, variant={RELATION: one}) for one, n in zip(of[RELATION].to_pylist(), of[name].to_pylist())),
    ]


def triples(folder: Path) -> list[Part]:
    """Triples, also of each split."""
    counted = _of_relations(folder, "tail", "count")
    return [*counted, *(Part(len(table), split) for split, table in splits_in(folder).items() if counted)]


unique_heads = partial(_of_relations, column="head", how="count_distinct")
unique_tails = partial(_of_relations, column="tail", how="count_distinct")


def acceptance(folder: Path) -> list[Part]:
    """The share of triples that are valid in the closed world; nothing for graphs of other events."""
    if (table := _rows(folder, *COLUMNS)) is None:
        return []
    found, relations = [], []
    for head, relation, tail in zip(*(table[name].to_pylist() for name in COLUMNS)):
        if (valid := valid_tails(head, relation)) is None:
            return []
        found.append(tail in valid)
        relations.append(relation)
    return list(_shares(np.array(found), np.array(relations), lambda valid, n: valid / n))


def _annotated(of: Callable[[int, int], float], folder: Path) -> list[Part]:
    if (table := _rows(folder, RELATION, "label")) is None:
        return []
    valid = np.array([label == VALID for label in table["label"].to_pylist()])
    return list(_shares(valid, np.array(table[RELATION].to_pylist()), of))


def _shares(valid: np.ndarray, relations: np.ndarray, of: Callable[[int, int], float]) -> Iterator[Part]:
    yield Part(of(int(valid.sum()), len(valid)))
    for one in np.unique(relations):
        mine = valid[relations == one]
        yield Part(of(int(mine.sum()), len(mine)), variant={RELATION: str(one)})


accepted = partial(_annotated, lambda valid, n: valid / n)
accepted_low = partial(_annotated, lambda valid, n: interval(valid, n)[0])
accepted_high = partial(_annotated, lambda valid, n: interval(valid, n)[1])


# -- what the student writes ------------------------------------------------------------------------------------------


class Written:
    """A student's greedy tails for some events and relations, and those that are accepted."""

    def __init__(self, outputs: Outputs, accepted: list[set[str]]):
        self.outputs, self.accepted, self.examples = outputs, accepted, len(accepted)


def written(encode: Encoder, table: Any) -> Written:
    """Outputs of `tails-accepted` (`MetricSpec.outputs`): rows have `prompt` and `accepted_tails`."""
    from kdhub_tasks.language.generation import Generation
    from kdhub_tasks.language.outputs import Outputs

    how = Generation(max_new_tokens=MOST_TOKENS)
    made = Outputs(encode, table.select_columns(["prompt"])).writing(how, len(table))
    return Written(made, [set(tails) for tails in table["accepted_tails"]])


MOST_TOKENS = 32
"""Of a tail."""


def tails_accepted(found: Written) -> float | None:
    """The share of greedy tails, cut at the first full stop, that are accepted; None for other rows."""
    if not isinstance(found, Written):
        return None
    hits = [tail_of(text) in tails for text, tails in zip(found.outputs.texts.answers, found.accepted)]
    return float(np.mean(hits))
