"""Families of students of many sizes from one training."""

from kdhub import MethodSpec, NetworkSpec, StudentSpec

PAPER = "arXiv:2312.05743"
IMAGE = "image-classification"

_network = NetworkSpec.shorthand("kdhub_search.families.pool:")
NETWORKS = (
    _network("vit-pool", "PoolVit", "vision transformers of several widths, and stitches between them"),
    _network("stitched-vit", "StitchedVit", "the first blocks of one vision transformer, the last of a wider one"),
)

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
)

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
)
