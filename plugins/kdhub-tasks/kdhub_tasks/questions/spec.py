"""Extractive question answering: the task, and what is provided for it."""

from kdhub import FolderFormat, MetricSpec, TaskSpec
from kdhub_tasks.signals import LAYERED

NAME = "question-answering"
HERE = "kdhub_tasks.questions"
FORMERLY = ("kdhub-text",)

TASKS = (
    TaskSpec(
        name=NAME,
        target=f"{HERE}.task:QuestionAnswering",
        traits=("classes", "labels", "encoder", "layers"),
        signals=("logits", *LAYERED),
        formats=(FolderFormat(heads=("ForQuestionAnswering",)),),
        reads=(("question", "context"),),
        formerly=FORMERLY,
        summary="extractive question answering",
    ),
)


_metric = MetricSpec.shorthand("kdhub_tasks.", tasks=(NAME,), formerly=FORMERLY)
METRICS = (
    _metric("answer-f1", "questions.metrics:answer_f1", "F1 of the words of the answer, as SQuAD counts them"),
    _metric("exact-match", "questions.metrics:exact_match", "share of right answers, as SQuAD compares them"),
    _metric(
        "answer-agreement", "questions.metrics:answer_agreement", "share of answers that match the teacher's",
        fidelity=True,
    ),
    _metric(
        "nll", "classification.metrics:nll", "mean -log probability of first and last token, nats",
        higher_is_better=False,
    ),
    _metric(
        "kl", "classification.metrics:divergence", "mean KL(teacher || student), nats", higher_is_better=False,
        fidelity=True,
    ),
)  # fmt: skip
