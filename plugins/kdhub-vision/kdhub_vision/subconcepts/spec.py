"""Items found by queries: what is provided for them."""

from kdhub import DatasetSpec, MethodSpec

PAPER = "arXiv:2101.03713"

DATASETS = (
    DatasetSpec(
        name="sub-pseudo", target="kdhub_vision.subconcepts.data:sub_pseudo", argument="DATA",
        summary="another data set's items with labels made of their query and what a teacher sees in them",
    ),
    DatasetSpec(
        name="query-videos", target="kdhub_vision.subconcepts.data:query_videos", splits=("train", "clean", "test"),
        summary="500 videos of digits under ten queries, half of whose clips show something else",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="spl", target="kdhub_vision.methods.spl:Spl", needs=("logits",), uses=("features",), labels=True,
        traits=("classes", "named-classes", "single-label", "apart"), paper=PAPER, recipe="spl",
        summary="pre-training on items found by queries, whose labels are pairs of query and teacher's class",
        tags=("algorithm:supervised",),
    ),
)  # fmt: skip
