"""Tasks of lm-evaluation-harness (`pip install 'kdhub-lm[lm-eval]'`) as data to evaluate on.

    evaluation: {data: [{source: "lm-eval:arc_easy", options: {limit: 200}}]}

The harness brings its own data, prompts and scoring; the data set here has one row, with the task's name and settings.
It needs local weights: models behind an API and teachers with stored signals get no such number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import UnavailableError, UsageError
from kdhub.task import Encoder

SCORES = ("acc_norm", "acc", "exact_match", "f1", "pass@1", "mc2", "bleu")
"""The harness's metrics, the one that stands for a task first."""


@dataclass
class Score:
    """Attributes:
    value: None without local weights; name: the harness's own name of the metric.
    examples: rows that it was measured on.
    """

    value: float | None
    name: str
    examples: int


def tasks(
    argument: str, *, limit: int | None = None, shots: int = 0, folder: str = "",
    options: Mapping[str, Any] | None = None,
) -> Data:  # fmt: skip
    """`lm-eval:TASK`: the split `test`, one row.

    Args:
        argument: a task of the harness, or of `folder`.
        limit: most rows of it.
        shots: examples in the prompt.
        folder: of further tasks, in the harness's own format; tasks with local data files need no network.

    Raises:
        UsageError: no task, or a setting out of range. UnavailableError: lm-eval is not installed.
    """
    from importlib.util import find_spec

    if not argument:
        raise UsageError("lm-eval needs a task", hint="lm-eval:arc_easy; `lm-eval ls tasks` lists all")
    if (limit is not None and limit < 1) or shots < 0:
        raise UsageError(
            f"lm-eval:{argument} needs a limit of at least 1 and shots of at least 0 (limit={limit}, shots={shots})"
        )
    if folder and not Path(folder).expanduser().is_dir():
        raise UsageError(f"lm-eval:{argument}: folder {folder} does not exist")
    if find_spec("lm_eval") is None:
        raise UnavailableError(
            f"lm-eval:{argument} needs the package lm-eval",
            hint="pip install 'kdhub-lm[lm-eval]', or mark the data set optional: true",
        )
    row = {"harness": argument, "limit": limit or 0, "shots": shots, "folder": folder}
    name = f"lm-eval:{argument}"
    return Data.from_rows(name, {"test": lambda: iter([row])}, key={**row, "version": 2})


def measure(encode: Encoder, table: Any) -> Score:
    """The harness's score of a model."""
    if encode.model is None:
        return Score(None, "", 0)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    row = table[0]
    model = HFLM(pretrained=encode.model.module.model, tokenizer=encode.model.tokenizer, batch_size=encode.model.batch)
    results = simple_evaluate(
        model=model, tasks=[row["harness"]], num_fewshot=row["shots"] or None, limit=row["limit"] or None,
        task_manager=TaskManager(include_path=str(Path(row["folder"]).expanduser()) if row["folder"] else None),
    )  # fmt: skip
    return score(results, row["harness"])


def score(results: Mapping[str, Any], task: str) -> Score:
    """The number that stands for a task among the harness's results (`{"acc,none": 0.3, "acc_stderr,none": ...}`)."""
    found = {name.partition(",")[0]: value for name, value in results["results"][task].items() if "," in name}
    plain = {name: value for name, value in found.items() if not name.endswith("_stderr")}
    name = next((name for name in SCORES if name in plain), next(iter(plain), ""))
    counted = results.get("n-samples", {}).get(task, {})
    return Score(plain.get(name), name, int(counted.get("effective", 0)))


def value(out: Any) -> float | None:
    """The harness's number for its task: normalised accuracy, accuracy, exact match, the first that the task has."""
    return out.value if isinstance(out, Score) else None
