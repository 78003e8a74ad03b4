"""Training by modules: what is provided for it."""

from kdhub import MethodSpec, NetworkSpec, StudentSpec, TeacherSpec

PAPER = "arXiv:2402.16918"
IMAGE = "image-classification"
SIGNALS = ("logits", "features")
HERE = "kdhub_vision.modules."

_network = NetworkSpec.shorthand(HERE)
NETWORKS = (
    _network("moe-vit", "experts:MoeVit", "small vision transformer of mixtures of experts"),
    _network("spliced", "hybrid:SplicedNetwork", "a module of a student in a frozen meta model"),
    _network("stitched", "hybrid:Stitched", "stitches between the modules of a student", wraps=True),
)

TEACHERS = (
    TeacherSpec(
        name="spliced", target=f"{HERE}teacher:Spliced", tasks=(IMAGE,), gives=("logits",), live=True,
        summary="a teacher's module in the place of one block of a meta model",
    ),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}students:", tasks=(IMAGE,), exposes=SIGNALS)
STUDENTS = (
    _student(
        "moe-vit", "moe_vit", "a fresh vision transformer of mixtures of experts", exposes=(*SIGNALS, "tokens"),
        argument="patch=N,width=N,layers=N,heads=N,experts=N,top=N",
        example="patch=4,width=8,layers=1,heads=2,experts=3",
    ),
    _student(
        "module", "module", "one module of a fresh student in its teacher's meta model", argument="SOURCE",
        from_teacher=True,
    ),
    _student("assembled", "assembled", "a student from modules that were trained apart"),
)  # fmt: skip

_method = MethodSpec.shorthand(
    "kdhub_vision.methods.m2mkd:", tasks=(IMAGE,), uses=("logits",), paper=PAPER, tags=("algorithm:divergence",)
)
METHODS = (
    _method(
        "m2mkd-module", "M2mkdModule", "one module of a student, by the logits that the teacher's gives there",
        needs=("logits",), recipe="m2mkd-module",
    ),
    _method(
        "m2mkd", "M2mkd", "a student assembled from modules that learnt apart, then trained whole by labels",
        labels=True, recipe="m2mkd",
    ),
)  # fmt: skip
