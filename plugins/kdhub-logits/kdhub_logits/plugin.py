"""What kdhub-logits provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

IMAGE, TABLE, TEXT = "image-classification", "tabular-classification", "text-classification"
TOKEN = "token-classification"
TASKS = (IMAGE, TABLE, TEXT, TOKEN)
LM = "causal-lm"  # of kdhub-lm
PAIRS, FILL, QUESTIONS = "text-pairs", "fill-mask", "question-answering"  # of kdhub-text
SURVEY = "arXiv:2402.13116"
SIGNALS = ("logits", "features")
LAYERED = {"hidden_states": -2, "attentions": -1}
"""Signals of each layer of a network, and the axis of the layers."""


@hookimpl
def kdhub_tasks():
    def task(name, cls, summary, signals=SIGNALS):
        return TaskSpec(name=name, target=f"kdhub_logits.tasks:{cls}", signals=signals, summary=summary)

    yield task(IMAGE, "ImageClassification", "images to one class of a list", (*SIGNALS, "tokens", *LAYERED))
    yield task(TABLE, "TabularClassification", "rows of numbers to one class of a list")
    yield task(TEXT, "TextClassification", "texts to one class of a list", (*SIGNALS, *LAYERED))
    yield task(TOKEN, "TokenClassification", "each word of a text to one class of a list", (*SIGNALS, *LAYERED))


def algorithm(name):
    """The survey's two tags of a method that learns from a teacher's logits or features."""
    return "elicitation:feature", f"algorithm:{name}"


@hookimpl
def kdhub_methods():
    def method(name, target, summary, paper, **spec):
        return MethodSpec(
            name=name,
            target=f"kdhub_logits.{target}",
            summary=summary,
            paper=paper,
            **{"tasks": (*TASKS, LM), "needs": ("logits",), "recipe": name, "tags": algorithm("divergence")} | spec,
        )

    soft = "soft_targets"
    yield method(
        "supervised", "supervised:Supervised", "labels alone: the baseline, and how teachers are made", SURVEY,
        tasks=(*TASKS, LM, PAIRS, FILL, QUESTIONS), needs=(), uses=("logits",), labels=True, aliases=("ce", "sft"),
        tags=("algorithm:supervised",),
    )  # fmt: skip

    def divergence(name, cls, summary, paper):
        return method(name, f"{soft}:{cls}", summary, paper, tasks=(*TASKS, LM, FILL, QUESTIONS))

    yield divergence("kd", "Kd", "the teacher's soft targets beside the labels", "arXiv:1503.02531")
    yield divergence("reverse-kl", "ReverseKl", "soft targets by KL(student || teacher)", "arXiv:2306.08543")
    yield divergence("jsd", "Jsd", "soft targets by the generalised Jensen-Shannon divergence", "arXiv:2306.13649")
    yield divergence("tvd", "Tvd", "soft targets by total variation", "arXiv:2307.15190")
    yield divergence("skew-kl", "SkewKl", "soft targets by a skewed KL", "arXiv:2402.03898")
    yield divergence("akl", "Akl", "soft targets by forward and reverse KL, head against tail", "arXiv:2404.02657")
    yield method("dkd", f"{soft}:Dkd", "target class and other classes apart", "arXiv:2203.08679", labels=True)
    yield method(
        "feature", "similarity:Feature", "the teacher's features, through a linear map", SURVEY, needs=("features",),
        uses=("logits", "features"), tags=algorithm("similarity"),
    )  # fmt: skip
    yield method(
        "mmd", "similarity:Mmd", "the distribution of the teacher's features", "arXiv:1707.01219", needs=("features",),
        uses=("logits", "features"), tags=algorithm("similarity"),
    )  # fmt: skip
    yield method(
        "rank", "similarity:Rank", "the teacher's order of the most probable classes", SURVEY,
        tags=algorithm("rank-optimisation"),
    )  # fmt: skip
    yield method(
        "mixkd", "mixkd:MixKd", "soft targets on partly mixed inputs, each row with its own temperature",
        "arXiv:2211.03946", tasks=(IMAGE, TABLE), live=True, labels=True,
    )  # fmt: skip
    yield method(
        "trg", "trg:Trg", "soft targets, and the graph of tokens across images", "arXiv:2306.12442", tasks=(IMAGE,),
        needs=("logits", "tokens"),
    )  # fmt: skip
    yield method(
        "self-distillation", "self_distillation:SelfDistillation",
        "the same model again and again, on true targets and on its own predictions", "arXiv:2102.13088",
        tasks=(IMAGE, TABLE), needs=(), uses=("logits",), labels=True,
        tags=("elicitation:self-knowledge", "algorithm:divergence"),
    )  # fmt: skip
    yield method(
        "pcoreset", "pcoreset:PCoreSet", "which rows to have labelled next, with a teacher that knows a little",
        "arXiv:2506.00910", tasks=(IMAGE, TABLE), labels=True, uses=("logits", "features"), aliases=("activekd",),
    )  # fmt: skip
    yield method(
        "pld", "pld:Pld", "the teacher's ranking, true class first", "arXiv:2506.12542", labels=True,
        tags=algorithm("rank-optimisation"),
    )  # fmt: skip
    yield method(
        "swing", "swing:Swing", "soft targets, the warmer the likelier a token is private", "arXiv:2212.08349",
        tasks=(LM, TOKEN), live=True,
    )  # fmt: skip


@hookimpl
def kdhub_teachers():
    def local(**spec):
        return TeacherSpec(tasks=TASKS, gives=(*SIGNALS, "tokens", *LAYERED), live=True, **spec)

    yield local(name="path", target="kdhub_logits.teachers:path", argument="FOLDER", summary="a classifier folder")
    for task in (*TASKS, PAIRS, FILL):
        yield TeacherSpec(
            name="ensemble",
            target=f"kdhub_logits.ensemble:{task.replace('-', '_')}",
            tasks=(task,),
            gives=("logits",),
            live=True,
            summary="several teachers behind one: its `members`",
        )
    yield TeacherSpec(
        name="prototypes",
        target="kdhub_logits.teachers:Prototypes",
        tasks=(IMAGE, TABLE),
        gives=("logits",),
        argument="DATA",
        example="digits",
        summary="cosine to the mean of a few labelled rows of each class",
    )
    yield TeacherSpec(
        name="zero-shot",
        target="kdhub_logits.teachers:ZeroShot",
        tasks=(TEXT,),
        gives=("logits",),
        argument="ENCODER",
        summary="cosine of a text's embedding to those of the classes' descriptions",
    )
    yield TeacherSpec(
        name="hf",
        target="kdhub_logits.teachers:hub",
        tasks=(IMAGE, TEXT, TOKEN),
        gives=(*SIGNALS, *LAYERED),
        argument="org/name[@revision]",
        live=True,
        summary="a transformers classifier, or a timm network, on the Hugging Face Hub",
    )


@hookimpl
def kdhub_students():
    def builder(name, function, tasks, argument, summary, exposes=SIGNALS, **spec):
        target = f"kdhub_logits.students:{function}"
        return StudentSpec(
            name=name, target=target, tasks=tasks, exposes=exposes, argument=argument, summary=summary, **spec
        )

    arrays, tokens, layered = (IMAGE, TABLE), (*SIGNALS, "tokens"), (*SIGNALS, *LAYERED)
    yield builder("mlp", "mlp", arrays, "WIDTH,...", "a fresh multilayer perceptron", example="8")
    yield builder("resnet", "resnet", (IMAGE,), "DEPTH", "a fresh ResNet for small images", tokens, example="8")
    yield builder(
        "resnet-checkpoint",
        "resnet_checkpoint",
        (IMAGE,),
        "FILE",
        "a ResNet for CIFAR from a PyTorch checkpoint",
        tokens,
    )
    yield builder(
        "vit", "vit", (IMAGE,), "patch=N,width=N,layers=N,heads=N", "a fresh small vision transformer",
        (*tokens, *LAYERED),
        example="patch=2,width=8,layers=1,heads=2",
    )  # fmt: skip
    yield builder(
        "timm", "timm", (IMAGE,), "NAME", "a fresh network of the timm library, an extra (kdhub-logits[timm])"
    )  # fmt: skip
    yield builder("kernel", "kernel", arrays, "", "a kernel machine, which self-distillation fits", ("logits",))
    yield builder("path", "path", TASKS, "FOLDER", "a classifier folder", (*tokens, *LAYERED))
    yield builder(
        "hf", "hub", (IMAGE, TEXT, TOKEN), "org/name[@revision]", "a model of transformers, or timm's, on the Hub",
        layered,
    )  # fmt: skip
    yield builder(
        "packaged", "packaged", (TEXT, TOKEN), "NAME", "an encoder that an installed package carries", layered,
        example="all-minilm-l6-v2",
    )  # fmt: skip
    yield builder(
        "layers",
        "layers",
        (IMAGE, TEXT, TOKEN),
        "N",
        "N evenly spaced layers of the teacher",
        layered,
        example="1",
        from_teacher=True,
    )


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(
        name="digits",
        target="kdhub_logits.data:digits",
        splits=("train", "validation", "test"),
        summary="1797 handwritten digits of 8 x 8 pixels, as scikit-learn has them",
    )
    yield DatasetSpec(
        name="labels",
        target="kdhub_logits.data:labels",
        argument="DATA",
        example="digits",
        summary="another data set with classes joined, a long tail, wrong labels, few labels or none",
    )


@hookimpl
def kdhub_samplers():
    def rule(name, summary):
        target = f"kdhub_logits.queries:{name.replace('-', '_')}"
        return SamplerSpec(name=name, target=target, tasks=TASKS, selects=True, summary=f"to label next: {summary}")

    yield rule("pcoreset", "rows whose probabilities lie farthest from those of labelled ones")
    yield rule("coreset", "rows whose features lie farthest from those of labelled ones")
    yield rule("entropy", "rows that the student is least sure of")
    yield rule("badge", "rows whose last layer's gradients lie farthest from those of labelled ones")
    yield rule("class-balanced", "rows of predicted classes that few labelled rows are of")
    yield rule("random", "any rows")


@hookimpl
def kdhub_metrics():
    def metric(name, function, summary, better=True, fidelity=False):
        return MetricSpec(
            name=name,
            target=f"kdhub_logits.metrics:{function}",
            tasks=TASKS,
            summary=summary,
            higher_is_better=better,
            fidelity=fidelity,
        )

    yield metric("accuracy", "accuracy", "share of rows whose most probable class is right")
    yield metric("accuracy@5", "top_5", "share of rows whose class is among the five most probable")
    yield metric("macro-f1", "macro_f1", "F1 of each class, unweighted mean")
    yield MetricSpec(
        name="entity-f1",
        target="kdhub_logits.metrics:entity_f1",
        tasks=(TOKEN,),
        summary="F1 of whole entities, where the classes are BIO",
    )
    yield metric("nll", "nll", "mean -log probability of the right class, nats", better=False)
    yield metric("brier", "brier", "mean squared error of the probabilities, summed over classes", better=False)
    yield metric("ece", "calibration_error", "gap between confidence and accuracy, 15 bins", better=False)
    yield metric("auroc", "auroc", "area under the ROC curve, two classes")
    yield metric("auprc", "auprc", "average precision, two classes")
    yield metric("agreement", "agreement", "share of rows where student and teacher choose one class", fidelity=True)
    yield metric("kl", "divergence", "mean KL(teacher || student), nats", better=False, fidelity=True)
    yield metric("loyalty", "probability_loyalty", "1 - root of the Jensen-Shannon divergence, mean", fidelity=True)
    yield metric("loyalty-nats", "natural_loyalty", "the same with natural logarithms, as published", fidelity=True)
    yield metric(
        "regression-loyalty", "regression_loyalty", "correlation of the scores of each class over rows, mean",
        fidelity=True,
    )  # fmt: skip


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
