"""Typed heads of commonsense graphs, negated ones among them."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec, Role, TeacherSpec

HERE = "kdhub_knowledge.commonsense"

METHODS = (
    MethodSpec(
        name="snowman", target="kdhub_knowledge.methods.snowman:Snowman", tasks=("data-set",), uses=(),
        recipe="snowman", paper="arXiv:2306.10241", tags=("elicitation:expansion", "elicitation:self-knowledge"),
        summary="heads of a commonsense graph, unreliable types filtered by the model itself",
        roles=(
            Role(name="judge", tasks=("causal-lm",), summary="judges heads, and writes the tails of the pilot"),
            Role(
                name="annotator", tasks=("causal-lm",), optional=True,
                summary="labels the triples of the pilot in place of people",
            ),
        ),
    ),
)  # fmt: skip

TEACHERS = (
    TeacherSpec(
        name="closed-world-zh", target=f"{HERE}.world_zh:ClosedWorldZh", tasks=("causal-lm",), gives=("text",),
        summary="writes typed heads and tails of a closed world in Chinese, and judges heads as is assumed of it",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="typed-heads", target=f"{HERE}.heads:typed_heads", argument="LANGUAGE", tags=("elicitation:expansion",),
        summary="heads by type, polarity and topic that a teacher writes, negated ones among them",
    ),
    DatasetSpec(
        name="sentence-heads", target=f"{HERE}.heads:sentence_heads", argument="DATA", splits=("positive", "negative"),
        summary="the clauses of plain texts as heads, by their polarity",
    ),
    DatasetSpec(
        name="typed-triples", target=f"{HERE}.typed_tails:typed_triples", argument="HEADS",
        tags=("elicitation:expansion",), summary="what a teacher writes about typed heads, by relations that fit them",
    ),
    DatasetSpec(
        name="closed-world-zh", target=f"{HERE}.world_zh:closed_world_zh", splits=("anchors",),
        summary="judged negative heads of a closed world in Chinese",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.typed_metrics:", traits=("rows",), files=True)
METRICS = (
    _metric("valid-heads", "valid_heads", "share of the heads of each split that are valid in the closed world"),
    _metric("valid-heads-kept", "valid_heads_kept", "share of the valid heads that a filter kept"),
)  # fmt: skip
