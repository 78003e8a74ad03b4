"""Families of students of many sizes from one training."""

from kdhub import MethodSpec, NetworkSpec, StudentSpec

PAPER = "arXiv:2312.05743"
IMAGE, TEXT = "image-classification", "fill-mask"

_network = NetworkSpec.shorthand("kdhub_search.families.")
NETWORKS = (
    _network("vit-pool", "pool:PoolVit", "vision transformers of several widths, and stitches between them"),
    _network("stitched-vit", "pool:StitchedVit", "the first blocks of one vision transformer, the last of a wider one"),
    _network("nested-text", "nested_text:NestedText", "masked language models of many sizes, slices of one"),
    _network("nested-vit", "nested_vit:NestedVit", "vision transformers of many sizes, slices of one"),
    _network("narrow-vit", "nested_vit:NarrowVit", "a vision transformer whose heads keep their width"),
)

_NESTED = "slices of the teacher of many sizes, or of another model: a family"
_SOURCE = {"argument": "[SOURCE]"}
STUDENTS = (
    StudentSpec(
        name="pool",
        target="kdhub_search.families.students:pool",
        summary="fresh vision transformers of several widths that can be stitched, a family of many sizes",
        tasks=(IMAGE,),
        exposes=("logits", "features", "tokens"),
        argument="patch=N,layers=N,heads=N",
        example="patch=4,layers=2,heads=2",
    ),
    StudentSpec(
        name="nested", target="kdhub_search.families.nested_text:nested", tasks=(TEXT,), summary=_NESTED,
        exposes=("logits", "features"), **_SOURCE,
    ),
    StudentSpec(
        name="nested", target="kdhub_search.families.nested_vit:nested", tasks=(IMAGE,), summary=_NESTED,
        exposes=("logits", "features", "tokens"), **_SOURCE,
    ),
    StudentSpec(
        name="untrained", target="kdhub_search.families.students:untrained", argument="SOURCE",
        traits=("classes",), summary="the architecture of a student, with random weights",
        exposes=("logits", "features"),
    ),
)  # fmt: skip

_SHARED = {"tasks": (IMAGE,), "needs": ("logits",), "uses": ("logits",), "paper": PAPER}
METHODS = (
    MethodSpec(
        name="learngene",
        target="kdhub_search.methods.learngene:Learngene",
        summary="logits, and a transformer's blocks and attention through maps that are learned along",
        recipe="learngene",
        tags=("elicitation:feature",),
        **_SHARED,
    ),
    MethodSpec(
        name="learngene-pool",
        target="kdhub_search.methods.learngene_pool:LearngenePool",
        summary="distil one transformer into several widths and stitch them: many sizes from one training",
        recipe="learngene-pool",
        tags=("elicitation:feature",),
        **_SHARED,
    ),
    MethodSpec(
        name="autodistil",
        target="kdhub_search.methods.autodistil:AutoDistil",
        summary="students of many sizes from one training without labels, and the best within a budget",
        tasks=(TEXT, IMAGE),
        live=True,
        uses=(),
        recipe="autodistil",
        paper="arXiv:2201.12507",
        tags=("algorithm:architecture-search", "algorithm:relation"),
    ),
)
