"""Commonsense graphs: what language models write about everyday events."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec, NetworkSpec, Role, StudentSpec, TaskSpec, TeacherSpec

NAME = "commonsense-graph"
HERE = "kdhub_knowledge.commonsense"
PAPER = "arXiv:2110.07178"

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:Graph", traits=("rows",), summary="triples of events: the student is a graph"
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_knowledge.methods.", paper=PAPER, uses=())
METHODS = (
    _method(
        "annotate", "annotate:Annotate", "labels for a sample of triples, by people or by an oracle", tasks=(NAME,),
        recipe="symbolic-kd-annotations",
    ),
    _method(
        "critic", "critic:Critic", "a classifier of valid and invalid triples, from annotated ones", labels=True,
        tasks=("text-pairs",), uses=("logits",), recipe="symbolic-kd-critic",
    ),
    _method(
        "critic-filter", "critic_filter:CriticFilter", "the triples that a critic scores above a threshold",
        tasks=(NAME,), recipe="symbolic-kd-graph",
        roles=(
            Role(name="critic", tasks=("text-pairs",), needs=("logits",), optional=True, summary="scores triples"),
        ),
    ),
    _method(
        "symbolic-kd", "symbolic_kd:SymbolicKd", "a small language model from a graph that a large one wrote",
        tasks=("causal-lm",), uses=("logits",), recipe="symbolic-kd",
    ),
)  # fmt: skip

TEACHERS = (
    TeacherSpec(
        name="closed-world", target=f"{HERE}.world:ClosedWorld", tasks=("causal-lm",), gives=("text",),
        summary="writes events and tails of a closed world, and errs at a known rate",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="comet", target=f"{HERE}.comet:build", tasks=("causal-lm",), argument="width=N,layers=N,heads=N",
        example="width=16,layers=1,heads=2,vocabulary=300",
        summary="a fresh GPT-2 whose tokenizer is made from the graph, with COMET's marks as tokens",
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(
        name="critic-head", target=f"{HERE}.head:CriticHead", wraps=True, summary="one score by a layer of GELU units"
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.data:")
DATASETS = (
    _data("heads", "heads", "events that a teacher makes up like the seeds of a language", argument="LANGUAGE"),
    _data("triples", "triples", "what a teacher writes about events: head, relation, tail", argument="HEADS"),
    _data("cleaned", "cleaned_triples", "triples cleaned, without repetitions, split by event", argument="DATA"),
    _data("critic-pairs", "critic_pairs", "triples as pairs of texts with names, for a critic", argument="TRIPLES"),
    _data("closed-world", "closed_world", "a few labelled triples of the closed world", splits=("train",)),
    _data("comet", "comet", "triples as prompts and responses of a student", argument="TRIPLES"),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,), files=True)
METRICS = (
    _metric("triples", "triples", "triples, also of each split and relation"),
    _metric("unique-heads", "unique_heads", "distinct events, also of each relation"),
    _metric("unique-tails", "unique_tails", "distinct tails, also of each relation"),
    _metric("acceptance", "acceptance", "share of triples that are valid in the closed world"),
    _metric("accepted", "accepted", "share of annotated triples that are valid"),
    _metric("accepted-low", "accepted_low", "lower end of Wilson's 95 % interval of that share"),
    _metric("accepted-high", "accepted_high", "upper end of Wilson's 95 % interval of that share"),
    MetricSpec(
        name="tails-accepted", target=f"{HERE}.metrics:tails_accepted", tasks=("causal-lm",),
        rows=("prompt", "accepted_tails"), outputs=f"{HERE}.metrics:written",
        summary="share of a student's greedy tails that are accepted",
    ),
)  # fmt: skip
