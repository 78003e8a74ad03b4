"""What kdhub-logits provides. No torch, no transformers here."""

from functools import partial
from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, NetworkSpec, SamplerSpec, StudentSpec, TeacherSpec, hookimpl

SURVEY = "arXiv:2402.13116"
LABELS, VALUES = "multi_label_classification", "regression"
"""Forms of classification besides one class a row (`kdhub_tasks.classes`)."""


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
        "trg", "trg:Trg", "soft targets, and the graph of tokens across images", "arXiv:2306.12442", traits=(),
        tasks=("image-classification",), needs=("logits", "tokens"),
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
        traits=("words",), live=True,
    )  # fmt: skip


@hookimpl
def kdhub_teachers():
    yield TeacherSpec(
        name="prototypes",
        target="kdhub_logits.teachers:Prototypes",
        traits=("arrays",),
        gives=("logits",),
        argument="DATA",
        example="digits",
        summary="cosine to the mean of a few labelled rows of each class",
    )
    yield TeacherSpec(
        name="zero-shot",
        target="kdhub_logits.teachers:ZeroShot",
        tasks=("text-classification",),
        gives=("logits",),
        argument="ENCODER",
        summary="cosine of a text's embedding to those of the classes' descriptions",
    )


@hookimpl
def kdhub_students():
    yield StudentSpec(
        name="kernel",
        target="kdhub_logits.kernel:kernel",
        traits=("arrays",),
        exposes=("logits",),
        summary="a kernel machine, which self-distillation fits",
    )


@hookimpl
def kdhub_networks():
    wrapper = partial(NetworkSpec, wraps=True)
    yield NetworkSpec(name="kernel", target="kdhub_logits.kernel:KernelRidge", summary="kernel machine")
    yield wrapper(
        name="rescaled", target="kdhub_logits.wrappers:Rescaled", summary="logits over their deviation across classes"
    )
    yield wrapper(
        name="two-heads", target="kdhub_logits.wrappers:TwoHeads", summary="a second head for the teacher's predictions"
    )


@hookimpl
def kdhub_samplers():
    def rule(name, summary):
        target = f"kdhub_logits.queries:{name.replace('-', '_')}"
        return SamplerSpec(
            name=name, target=target, traits=("named-classes",), selects=True, summary=f"label next: {summary}"
        )

    yield rule("pcoreset", "rows whose probabilities lie farthest from those of labelled ones")
    yield rule("coreset", "rows whose features lie farthest from those of labelled ones")
    yield rule("entropy", "rows that the student is least sure of")
    yield rule("badge", "rows whose last layer's gradients lie farthest from those of labelled ones")
    yield rule("class-balanced", "rows of predicted classes with few labelled rows")
    yield rule("random", "any rows")


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(
        name="canaries",
        target="kdhub_logits.data.canaries:canaries",
        argument="DATA",
        example="pydoc",
        formerly=("kdhub-lm",),
        summary="texts of another data set with secrets planted in them, whose exposure can be measured",
    )


@hookimpl
def kdhub_metrics():
    def of_canaries(name, summary):
        return MetricSpec(
            name=name,
            target=f"kdhub_logits.data.canaries:{name}",
            tasks=("causal-lm",),
            form="rows",
            rows=("words", "secret"),
            outputs="kdhub_logits.data.canaries:measure",
            higher_is_better=False,
            formerly=("kdhub-lm",),
            summary=summary,
        )

    yield of_canaries("exposure", "log2 of candidates over the secret's rank, mean over canaries")
    yield of_canaries("extraction", "share of canaries whose secret is the most probable")


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
