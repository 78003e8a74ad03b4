"""Commonsense graphs: what language models write about everyday events."""

from kdhub import DatasetSpec, TeacherSpec

HERE = "kdhub_knowledge.commonsense"

TEACHERS = (
    TeacherSpec(
        name="closed-world", target=f"{HERE}.world:ClosedWorld", tasks=("causal-lm",), gives=("text",),
        summary="writes events and tails of a closed world, and errs at a known rate",
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.data:")
DATASETS = (
    _data("heads", "heads", "events that a teacher makes up like the seeds of a language", argument="LANGUAGE"),
    _data("triples", "triples", "what a teacher writes about events: head, relation, tail", argument="HEADS"),
    _data("cleaned", "cleaned_triples", "triples cleaned, without repetitions, split by event", argument="DATA"),
    _data("critic-pairs", "critic_pairs", "triples as pairs of texts with names, for a critic", argument="TRIPLES"),
    _data("comet", "comet", "triples as prompts and responses of a student", argument="TRIPLES"),
)  # fmt: skip
