"""What kdhub-logits provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import (
    DatasetSpec,
    MethodSpec,
    MetricSpec,
    NetworkSpec,
    Role,
    SamplerSpec,
    StudentSpec,
    TeacherSpec,
    hookimpl,
)

SURVEY = "arXiv:2402.13116"
LABELS, VALUES = "multi_label_classification", "regression"
"""Forms of classification besides one class a row (`kdhub_tasks.classes`)."""


TAGGER = Role(
    name="tagger", summary="a classifier of words; one is private as far as it is not O",
    tasks=("token-classification",), optional=True,
)  # fmt: skip


def algorithm(name):
    """The survey's two tags of a method that learns from a teacher's logits or features."""
    return "elicitation:feature", f"algorithm:{name}"


@hookimpl
def kdhub_methods():
    def method(name, target, summary, paper, **spec):
        given = {"traits": ("classes",), "needs": ("logits",), "recipe": name, "tags": algorithm("divergence")} | spec
        return MethodSpec(
            name=name, target=f"kdhub_logits.methods.{target}", summary=summary, paper=paper, **given
        )  # fmt: skip

    def divergence(name, cls, summary, paper, problems=(LABELS,)):
        return method(name, f"soft_targets:{cls}", summary, paper, problems=problems)

    yield divergence("kd", "Kd", "soft targets with the labels", "arXiv:1503.02531", (LABELS, VALUES))
    yield divergence("reverse-kl", "ReverseKl", "soft targets by KL(student || teacher)", "arXiv:2306.08543")
    yield divergence("sym", "Sym", "soft targets by a weighted sum of both KLs", "arXiv:2402.03898")
    yield divergence("jsd", "Jsd", "soft targets by the generalised Jensen-Shannon divergence", "arXiv:2306.13649")
    yield divergence("tvd", "Tvd", "soft targets by total variation", "arXiv:2307.15190")
    yield divergence("skew-kl", "SkewKl", "soft targets by a skewed KL", "arXiv:2402.03898")
    yield divergence("akl", "Akl", "soft targets by forward and reverse KL, head against tail", "arXiv:2404.02657")
    yield method(
        "dkd", "soft_targets:Dkd", "the target class and the other classes decoupled", "arXiv:2203.08679", labels=True
    )
    of_features = {"needs": ("features",), "uses": ("logits", "features"), "tags": algorithm("similarity")}
    of_features["problems"] = (LABELS, VALUES)
    yield method("feature", "similarity:Feature", "the teacher's features, through a linear map", SURVEY, **of_features)
    yield method(
        "mmd", "similarity:Mmd", "the distribution of the teacher's features", "arXiv:1707.01219", **of_features
    )
    yield method(
        "rank", "similarity:Rank", "the teacher's ranking of its most probable classes", SURVEY,
        tags=algorithm("rank-optimisation"),
    )  # fmt: skip
    yield method(
        "pld", "pld:Pld", "the teacher's ranking, true class first", "arXiv:2506.12542", labels=True,
        tags=algorithm("rank-optimisation"),
    )  # fmt: skip
    yield method(
        "mixkd", "mixkd:MixKd", "soft targets on partly mixed inputs, with a temperature for each row",
        "arXiv:2211.03946", traits=("arrays",), live=True, labels=True,
    )  # fmt: skip
    yield method(
        "trg", "trg:Trg", "soft targets, and the graph of tokens across images", "arXiv:2306.12442",
        needs=("logits", "tokens"),
    )  # fmt: skip
    yield method(
        "self-distillation", "self_distillation:SelfDistillation",
        "the same model again and again, on true targets and its own predictions", "arXiv:2102.13088",
        traits=("arrays",), needs=(), uses=("logits",), labels=True,
        tags=("elicitation:self-knowledge", "algorithm:divergence"),
    )  # fmt: skip
    yield method(
        "pcoreset", "pcoreset:PCoreSet", "active learning: which rows to have labelled next, with a few-shot teacher",
        "arXiv:2506.00910", traits=("arrays",), labels=True, uses=("logits", "features"), aliases=("activekd",),
    )  # fmt: skip
    yield method(
        "swing", "swing:Swing", "soft targets whose temperature rises with privacy risk", "arXiv:2212.08349",
        traits=("words",), live=True, roles=(TAGGER,),
    )  # fmt: skip


@hookimpl
def kdhub_teachers():
    teacher = TeacherSpec.shorthand("kdhub_logits.teachers:", gives=("logits",))
    yield teacher(
        "prototypes", "Prototypes", "cosine to the mean of a few labelled rows of each class", traits=("arrays",),
        argument="DATA", example="digits",
    )  # fmt: skip
    yield teacher(
        "zero-shot", "ZeroShot", "cosine of a text's embedding to those of the classes' descriptions",
        tasks=("text-classification",), argument="ENCODER",
    )  # fmt: skip


@hookimpl
def kdhub_students():
    student = StudentSpec.shorthand("kdhub_logits.", traits=("arrays",), exposes=("logits",))
    yield student("kernel", "kernel:kernel", "a kernel machine, which self-distillation fits")


@hookimpl
def kdhub_networks():
    network = NetworkSpec.shorthand("kdhub_logits.")
    yield network("kernel", "kernel:KernelRidge", "kernel machine")
    yield network("rescaled", "wrappers:Rescaled", "logits over their deviation across classes", wraps=True)
    yield network("two-heads", "wrappers:TwoHeads", "a second head for the teacher's predictions", wraps=True)


@hookimpl
def kdhub_samplers():
    rule = SamplerSpec.shorthand("kdhub_logits.queries:", traits=("named-classes",), selects=True)
    farthest = "label next: rows whose {} lie farthest from those of labelled ones"
    yield rule("pcoreset", "pcoreset", farthest.format("probabilities"))
    yield rule("coreset", "coreset", farthest.format("features"))
    yield rule("entropy", "entropy", "label next: rows that the student is least sure of")
    yield rule(
        "badge", "badge", "label next: rows whose last layer's gradients lie far from each other, the longest first"
    )
    yield rule("class-balanced", "class_balanced", "label next: rows of predicted classes that few labelled rows have")
    yield rule("random", "random", "label next: any rows")


@hookimpl
def kdhub_datasets():
    data = DatasetSpec.shorthand("kdhub_logits.data.", formerly=("kdhub-lm",))
    yield data(
        "canaries", "canaries:canaries",
        "texts of another data set with secrets planted in them, whose exposure can be measured", argument="DATA",
        example="pydoc",
    )  # fmt: skip


@hookimpl
def kdhub_metrics():
    of_canaries = MetricSpec.shorthand(
        "kdhub_logits.data.canaries:", tasks=("causal-lm",), form="rows", rows=("words", "secret"),
        outputs="kdhub_logits.data.canaries:measure", higher_is_better=False, formerly=("kdhub-lm",),
    )  # fmt: skip
    yield of_canaries("exposure", "exposure", "log2 of candidates over the secret's rank, mean over canaries")
    yield of_canaries("extraction", "extraction", "share of canaries whose secret is the most probable")


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
