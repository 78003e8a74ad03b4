"""Sets of items: the task, and what is provided for it."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec

NAME = "item-sets"
HERE = "kdhub_knowledge.sets"
TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:ItemSets",
        traits=("classes", "labels", "named-classes", "single-label", "apart"),
        signals=("logits", "features", "belief", "substitution"), reads=(("items",),),
        summary="sets of items to one class of a list",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="evidence-fusion", target="kdhub_knowledge.methods.evidence_fusion:EvidenceFusion", tasks=(NAME,),
        uses=(), labels=True, recipe="evidence-fusion", paper="arXiv:2502.14631",
        summary="labelled sets and experts as belief about which items can replace each other, fused",
    ),
)  # fmt: skip

TEACHERS = (
    TeacherSpec(
        name="experts", target=f"{HERE}.experts:StoredExperts", argument="FILE", example="families", tasks=(NAME,),
        gives=("substitution",), summary="which items can replace each other, by stored answers of experts",
    ),
    TeacherSpec(
        name="prompted-experts", target=f"{HERE}.experts:PromptedExperts", tasks=(NAME,), gives=("substitution",),
        summary="the same, by a language model in the roles of experts",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="belief", target=f"{HERE}.students:Builder", tasks=(NAME,), exposes=("logits", "belief"),
        summary="tables of belief about which items can replace each other",
    ),
    StudentSpec(
        name="bag", target=f"{HERE}.students:bag", tasks=(NAME,), exposes=("logits", "features"), argument="WIDTH,...",
        example="8", summary="a fresh perceptron on which items are there; without WIDTH logistic regression",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="left-out", target=f"{HERE}.data:left_out", argument="DATA", example="families", tasks=(NAME,),
        splits=("train", "test"), summary="another data set of sets, those with one item, or a share of them, held out",
    ),
    DatasetSpec(
        name="families", target=f"{HERE}.data:families", tasks=(NAME,), splits=("train", "test"),
        summary="sets of a closed world: items of four families that can replace each other",
    ),
)  # fmt: skip

METRICS = (
    MetricSpec(
        name="coverage", target=f"{HERE}.metrics:coverage", tasks=(NAME,),
        summary="share of rows about which a model of belief knows anything",
    ),
    MetricSpec(
        name="ignorance", target=f"{HERE}.metrics:ignorance", tasks=(NAME,), higher_is_better=False,
        summary="mean mass that a model of belief gives to neither label",
    ),
)  # fmt: skip
