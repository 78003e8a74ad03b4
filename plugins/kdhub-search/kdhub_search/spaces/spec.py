"""Spaces of students: what can be chosen, and searched."""

from kdhub import MethodSpec, StudentSpec

PAPER = "arXiv:2303.15678"
IMAGE = "image-classification"

_space = StudentSpec.shorthand("kdhub_search.spaces.students:", argument="NAME or SOURCE")
_SAID = "a student to be found: a named space, or any student's source with {choices} in it"
STUDENTS = (
    _space("space", "space", _SAID, traits=("arrays",), example="mlp"),
    _space("space", "space", _SAID, traits=("encoder",)),
)

_SHARED = {"tasks": (IMAGE,), "needs": ("logits",), "uses": ("logits",), "paper": PAPER}
METHODS = (
    MethodSpec(
        name="diswot",
        target="kdhub_search.methods.diswot:Diswot",
        summary="find the student that suits a teacher without training one, then distil it",
        recipe="diswot",
        tags=("algorithm:architecture-search",),
        **_SHARED,
    ),
    MethodSpec(
        name="diswot-dagger",
        target="kdhub_search.methods.diswot_dagger:DiswotDagger",
        summary="soft targets, and the distance of class maps and of relations between images",
        recipe="diswot-dagger",
        tags=("algorithm:relation",),
        **_SHARED,
    ),
)
