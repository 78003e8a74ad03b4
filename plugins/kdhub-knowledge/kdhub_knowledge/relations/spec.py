"""Relations between things that a sentence names: the task, and what is provided for it."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec

NAME = "relation-extraction"
HERE = "kdhub_knowledge.relations"

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:RelationExtraction", traits=("encoder",), signals=("pairs",),
        formats=(FolderFormat(keys=("extractor",)),), reads=(("text", "pairs"),),
        summary="pairs of a head and a tail that a sentence relates, such as a drug and an adverse event",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="ade", target="kdhub_knowledge.methods.ade:Ade", tasks=(NAME,), needs=("pairs",), recipe="ade",
        paper="arXiv:2307.06439", summary="a language model's labels of pairs in sentences into a small extractor",
    ),
)  # fmt: skip

_teacher = TeacherSpec.shorthand(f"{HERE}.teachers:", tasks=(NAME,), gives=("pairs",))
TEACHERS = (
    _teacher("cues", "Cues", "pairs by the words between them (X-induced Y), without a model"),
    _teacher("prompted-relations", "Prompted", "pairs by a language model, a template and a parser: its `model`"),
)

STUDENTS = (
    StudentSpec(
        name="relations-lstm", target=f"{HERE}.students:lstm", tasks=(NAME,), argument="width=N,words=N,chars=N",
        example="width=8,words=8,chars=4", summary="a fresh bidirectional LSTM over words and their letters",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="relation-corpus", target=f"{HERE}.data:corpus", argument="DATA", tasks=(NAME,),
        splits=("train", "test"), summary="a corpus of one pair a row, grouped by sentence, then split",
    ),
    DatasetSpec(
        name="relations", target=f"{HERE}.data:labelled", argument="DATA", example="adverse-events", tasks=(NAME,),
        splits=("train",), summary="the sentences of another data set with the pairs that a teacher finds in them",
    ),
    DatasetSpec(
        name="adverse-events", target=f"{HERE}.data:adverse_events", tasks=(NAME,), splits=("train", "test"),
        summary="sentences of a small world of invented drugs and their adverse events",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,))
METRICS = (
    *(
        _metric(f"{kind}-{name}", f"{kind}_{name}", f"{what} of pairs, {how}")
        for kind, how in (("strict", "both sides equal"), ("lenient", "both sides share a word"))
        for name, what in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
    ),
    _metric("sentence-f1", "sentence_f1", "strict F1 of a sentence, mean over sentences; 1 where there is no pair"),
    _metric(
        "unreachable", "unreachable", "share of right pairs that no tagging can give: overlapping or not in the text",
        higher_is_better=False,
    ),
)  # fmt: skip


def card(run, sections):
    """What a card says of every student of pairs."""
    if run.recipe.task == NAME:
        from kdhub_knowledge.relations.card import say

        say(run, sections)
