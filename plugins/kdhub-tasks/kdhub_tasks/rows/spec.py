"""Data sets as students: the task, and what is provided for every task whose students are rows (trait `rows`)."""

from kdhub import MethodSpec, MetricSpec, StudentSpec, TaskSpec

NAME = "data-set"
HERE = "kdhub_tasks.rows"
ROWS = ("rows",)

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:DataSet", traits=ROWS, summary="rows to train on: the student is a data set"
    ),
)

METHODS = (
    MethodSpec(
        name="as-data", target="kdhub_tasks.methods.as_data:AsData", traits=ROWS, uses=(), recipe="as-data",
        paper="arXiv:2402.13116",
        summary="no training: the recipe's rows as a data set of its own, measured and with a card",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="rows", target=f"{HERE}.task:Builder", traits=ROWS, exposes=(), summary="no rows yet: the method adds them"
    ),
)

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", traits=ROWS, files=True)
METRICS = (
    _metric("distinct-rows", "distinct_rows", "distinct rows, over all rows"),
    _metric("distinct-2", "distinct_2", "distinct pairs of neighbouring words in its texts, over all pairs"),
    _metric(
        "shared-rows", "shared_rows", "share of the evaluation rows that are among its rows", files=False,
        higher_is_better=False,
    ),
)  # fmt: skip
