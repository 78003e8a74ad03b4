"""What kdhub-text provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, NetworkSpec, StudentSpec, hookimpl

FILL, PAIRS = "fill-mask", "text-pairs"
LONG = ("text-classification", "token-classification", FILL, "question-answering")


@hookimpl
def kdhub_methods():
    def method(name, target, summary, paper, algorithm="divergence", **spec):
        tags = ("elicitation:feature", f"algorithm:{algorithm}")
        return MethodSpec(
            name=name, target=f"kdhub_text.methods.{target}", summary=summary, paper=paper, recipe=name,
            **{"tags": tags} | spec,
        )  # fmt: skip

    yield method(
        "leaf", "leaf:Leaf", "the student's vectors in the teacher's own space", "arXiv:2509.12539",
        tasks=("text-embedding",), needs=("embedding",), tags=(),
    )  # fmt: skip
    yield method(
        "dse", "dse:Dse", "a cross-encoder's scores into two towers, whose vectors can be stored", "arXiv:1908.05161",
        "similarity", tasks=(PAIRS,), needs=("logits",), uses=("logits", "embeddings"),
    )  # fmt: skip
    yield method(
        "efficient-attention", "efficient_attention:EfficientAttention",
        "half the layers of a model with sliding-window, sparse or linear attention", "arXiv:2311.13657",
        tasks=LONG, needs=("logits", "hidden_states"),
    )  # fmt: skip
    yield method(
        "vidlankd", "vidlankd:VidLanKd", "a language model from text, guided by the states of a teacher that saw video",
        "arXiv:2107.02681", "similarity", tasks=(FILL,), needs=("hidden_states",), uses=("logits", "hidden_states"),
        live=True,
    )  # fmt: skip
    yield method(
        "vidlankd-teacher", "vidlankd_teacher:VidLanKdTeacher",
        "a language model from captions, by contrast with their clips: a teacher for vidlankd", "arXiv:2107.02681",
        tasks=(FILL,), uses=("logits", "hidden_states"), tags=("algorithm:similarity",),
    )  # fmt: skip
    yield method(
        "multi-teacher", "multi_teacher:MultiTeacher",
        "soft targets, labels and states of several teachers at once, whatever their vocabularies", "arXiv:2112.12650",
        tasks=(FILL, PAIRS), traits=("named-classes",), needs=("logits",),
    )  # fmt: skip
    yield method(
        "lelp", "lelp:Lelp", "a few classes, each split along projections of the teacher's embeddings",
        "arXiv:2409.20449", traits=("single-label", "apart"), needs=("logits", "features"), uses=("logits",),
    )  # fmt: skip
    yield method(
        "talking-models", "talking_models:TalkingModels",
        "the student sends messages, the teacher's upper layers answer them, and both learn to understand",
        "arXiv:2310.03188", "similarity", traits=("named-classes", "apart"), needs=("features",),
        uses=("logits", "features"), labels=True, live=True,
    )  # fmt: skip


@hookimpl
def kdhub_students():
    student = StudentSpec.shorthand(
        "kdhub_text.students.efficient:", tasks=LONG, exposes=("logits", "features", "hidden_states")
    )
    yield student(
        "efficient", "efficient", "a text model with another attention, for longer texts", argument="KIND",
        example="lsg",
    )  # fmt: skip
    yield student(
        "half-layers", "half_layers", "half of a text model's layers", argument="alternate|first|random",
        example="first",
    )  # fmt: skip
    yield student(
        "chunked", "chunked", "a token classifier that reads long rows in chunks with N tokens in common",
        argument="N", example="4", tasks=("token-classification",),
    )  # fmt: skip


@hookimpl
def kdhub_networks():
    network = NetworkSpec.shorthand("kdhub_text.")
    yield network("subclasses", "subclasses:Subclasses", "several outputs for each class", wraps=True)


@hookimpl
def kdhub_datasets():
    data = DatasetSpec.shorthand("kdhub_text.data.", splits=("train", "validation", "test"))
    yield data(
        "long-documents", "documents:long_documents", "another data set with consecutive rows joined into long ones",
        argument="DATA", splits=(),
    )  # fmt: skip
    yield data(
        "pydoc-questions", "pydoc_questions:pydoc_questions",
        "which function of a module does what: documentation strings as questions, function signatures as texts",
    )  # fmt: skip
    yield data("scenes", "scenes:scenes", "pairs of sentences with graded similarity, generated")
    yield data(
        "long-range", "documents:long_range", "documents whose first word decides the class of all names, generated"
    )
    yield data(
        "digit-clips", "clips:digit_clips", "clips of moving digits with captions, made from scikit-learn's digits",
        splits=("train", "validation"),
    )  # fmt: skip
    yield data(
        "digit-sentences", "clips:digit_sentences", "sentences that say nothing about how digits look, generated"
    )
    yield data(
        "digit-words", "clips:digit_words", "digits in neutral sentences, each with its mean picture",
        splits=("test",),
    )  # fmt: skip


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
