"""What kdhub-text provides. No torch, no transformers here."""

from pathlib import Path

from kdhub_logits.plugin import IMAGE, TABLE, TEXT, TOKEN

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

TASK = ("text-embedding",)
FILL = ("fill-mask",)
LONG = ("text-classification", "token-classification", *FILL)


@hookimpl
def kdhub_tasks():
    yield TaskSpec(
        name="text-embedding",
        target="kdhub_text.task:TextEmbedding",
        signals=("embedding",),
        summary="texts to vectors: retrieval and similarity",
    )
    yield TaskSpec(
        name="fill-mask",
        target="kdhub_text.fill_mask:FillMask",
        signals=("logits", "features", "hidden_states"),
        summary="which tokens stood where some were hidden: masked language models",
    )


@hookimpl
def kdhub_methods():
    yield MethodSpec(
        name="leaf",
        target="kdhub_text.leaf:Leaf",
        tasks=TASK,
        needs=("embedding",),
        paper="arXiv:2509.12539",
        summary="the student's vectors in the teacher's own space",
        recipe="leaf",
    )
    yield MethodSpec(
        name="efficient-attention",
        target="kdhub_text.efficient_attention:EfficientAttention",
        tasks=LONG,
        needs=("logits", "hidden_states"),
        paper="arXiv:2311.13657",
        summary="half the layers of a model with sliding-window, sparse or linear attention",
        recipe="efficient-attention",
        tags=("elicitation:feature", "algorithm:divergence"),
    )
    yield MethodSpec(
        name="vidlankd",
        target="kdhub_text.vidlankd:VidLanKd",
        tasks=FILL,
        needs=("logits", "hidden_states"),
        live=True,
        paper="arXiv:2107.02681",
        summary="a language model from text alone, led by the states of a teacher that saw video",
        recipe="vidlankd",
        tags=("elicitation:feature", "algorithm:similarity"),
    )
    yield MethodSpec(
        name="vidlankd-teacher",
        target="kdhub_text.vidlankd:VidLanKdTeacher",
        tasks=FILL,
        uses=("logits", "hidden_states"),
        paper="arXiv:2107.02681",
        summary="a language model from captions, by contrast with their clips: a teacher for vidlankd",
        recipe="vidlankd-teacher",
        tags=("algorithm:similarity",),
    )
    yield MethodSpec(
        name="lelp",
        target="kdhub_text.lelp:Lelp",
        tasks=(IMAGE, TABLE, TEXT),
        needs=("logits", "features"),
        uses=("logits",),
        paper="arXiv:2409.20449",
        summary="a few classes, each split along projections of the teacher's embeddings",
        recipe="lelp",
        tags=("elicitation:feature", "algorithm:divergence"),
    )
    yield MethodSpec(
        name="talking-models",
        target="kdhub_text.talking_models:TalkingModels",
        tasks=(TABLE, IMAGE, TEXT, TOKEN),
        needs=("features",),
        uses=("logits", "features"),
        labels=True,
        live=True,
        paper="arXiv:2310.03188",
        summary="the student asks, the teacher's upper layers answer, in messages that both learn",
        recipe="talking-models",
        tags=("elicitation:feature", "algorithm:similarity"),
    )


@hookimpl
def kdhub_teachers():
    def local(**spec):
        return TeacherSpec(tasks=TASK, gives=("embedding",), **spec)

    yield local(
        name="hf",
        target="kdhub_text.teachers:hub",
        argument="org/name[@revision]",
        live=True,
        summary="a text encoder on the Hugging Face Hub",
    )
    yield local(
        name="path",
        target="kdhub_text.teachers:path",
        argument="FOLDER",
        live=True,
        summary="a SentenceTransformer or transformers encoder folder",
    )
    yield local(
        name="packaged",
        target="kdhub_text.teachers:packaged",
        argument="NAME",
        example="all-minilm-l6-v2",
        live=True,
        summary="an encoder that an installed Python package carries",
    )
    yield local(
        name="openai",
        target="kdhub_text.openai:OpenAI",
        argument="MODEL",
        summary="any OpenAI-compatible embeddings endpoint",
    )

    signals = ("logits", "features", "hidden_states")
    for name, function, argument in (("path", "path", "FOLDER"), ("hf", "hub", "org/name[@revision]")):
        yield TeacherSpec(
            name=name, target=f"kdhub_text.masked_lm:teacher_{function}", tasks=FILL, gives=signals, argument=argument,
            live=True, summary="a masked language model of the transformers library",
        )  # fmt: skip


@hookimpl
def kdhub_students():
    def builder(**spec):
        return StudentSpec(tasks=TASK, exposes=("embedding",), **spec)

    yield builder(
        name="layers",
        target="kdhub_text.students:layers",
        argument="N",
        example="1",
        from_teacher=True,
        summary="N evenly spaced layers of the teacher",
    )
    yield builder(
        name="hf", target="kdhub_text.students:hub", argument="org/name[@revision]", summary="an encoder on the Hub"
    )
    yield builder(name="path", target="kdhub_text.students:path", argument="FOLDER", summary="an encoder folder")
    yield builder(
        name="config",
        target="kdhub_text.students:config",
        argument="layers=N,hidden_size=N,...",
        example="layers=1,hidden_size=16,heads=2",
        from_teacher=True,
        summary="a fresh BERT-shaped encoder with the teacher's tokenizer",
    )
    yield builder(
        name="static",
        target="kdhub_text.students:static",
        from_teacher=True,
        summary="a token table that starts from the teacher's vectors of its vocabulary",
    )

    def masked(name, argument, summary, **spec):
        target = f"kdhub_text.masked_lm:{'hub' if name == 'hf' else name}"
        exposes = ("logits", "features", "hidden_states")
        return StudentSpec(
            name=name, target=target, tasks=FILL, exposes=exposes, argument=argument, summary=summary, **spec
        )

    yield masked("path", "FOLDER", "a masked language model, or an encoder with a fresh head")
    yield masked("hf", "org/name[@revision]", "a masked language model, or an encoder, on the Hub")
    yield masked("layers", "N", "N evenly spaced layers of the teacher", example="1", from_teacher=True)
    yield masked("config", "layers=N,width=N,heads=N", "a fresh BERT with the teacher's tokenizer, or one from texts")

    def long(name, function, argument, summary, tasks=LONG, module="efficient_attention", **spec):
        target = f"kdhub_text.{module}:{function}"
        exposes = ("logits", "features", "hidden_states")
        return StudentSpec(
            name=name, target=target, tasks=tasks, exposes=exposes, argument=argument, summary=summary, **spec
        )

    yield long("efficient", "efficient", "KIND", "a text model with other attention, for longer texts", example="lsg")
    yield long("half-layers", "half_layers", "alternate|first|random", "half of a text model's layers", example="first")
    yield long(
        "chunked", "chunked", "N", "a tagger that reads long rows in chunks with N tokens in common", LONG[1:2],
        example="4",
    )  # fmt: skip
    yield long("words", "words", "layers=N,width=N,heads=N", "a fresh encoder over the words of some rows",
               module="fresh")  # fmt: skip


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(
        name="long-documents",
        target="kdhub_text.documents:long_documents",
        argument="DATA",
        summary="another data set with consecutive rows joined until they have so many words",
    )
    yield DatasetSpec(
        name="long-range",
        target="kdhub_text.documents:long_range",
        splits=("train", "validation", "test"),
        summary="documents whose first word tells the kind of all names in them, generated",
    )
    for name, splits, summary in (
        ("digit-clips", ("train", "validation"), "clips of moving digits with captions, made of scikit-learn's digits"),
        ("digit-sentences", ("train", "validation", "test"), "sentences that tell no digit from another, generated"),
        ("digit-words", ("test",), "digits in neutral sentences, each with its mean picture"),
    ):
        target = f"kdhub_text.clips:{name.replace('-', '_')}"
        yield DatasetSpec(name=name, target=target, splits=splits, summary=summary)


@hookimpl
def kdhub_metrics():
    def metric(name, function, form, summary, fidelity=False):
        return MetricSpec(
            name=name,
            target=f"kdhub_text.metrics:{function}",
            tasks=TASK,
            form=form,
            summary=summary,
            fidelity=fidelity,
        )

    def of_hidden(name, function, summary, better=True, fidelity=False):
        target = f"kdhub_text.fill_mask:{function}"
        return MetricSpec(
            name=name, target=target, tasks=FILL, summary=summary, higher_is_better=better, fidelity=fidelity
        )

    yield of_hidden("masked-perplexity", "perplexity", "exp of the mean -log p of hidden tokens", better=False)
    yield of_hidden("masked-accuracy", "accuracy", "share of hidden tokens that were told")
    yield of_hidden("masked-agreement", "agreement", "share of hidden tokens told as the teacher does", fidelity=True)

    yield metric("ndcg@10", "ndcg_at_10", "retrieval", "ranking quality of the first ten, graded")
    yield metric("recall@10", "recall_at_10", "retrieval", "share of the relevant documents among the first ten")
    yield metric("recall@100", "recall_at_100", "retrieval", "share of the relevant documents among the first hundred")
    yield metric("mrr@10", "mrr_at_10", "retrieval", "mean reciprocal rank of the first relevant one of ten")
    yield metric("spearman", "spearman", "sts", "rank correlation of cosine and human score")
    yield metric("pearson", "pearson", "sts", "linear correlation of cosine and human score")
    yield metric("cosine", "alignment", "", "mean cosine to the teacher's vector of the same text", fidelity=True)
    same = "mean cosine to the teacher's vector"
    yield metric("cosine-queries", "alignment_queries", "retrieval", f"{same}, queries only", fidelity=True)
    yield metric("cosine-documents", "alignment_documents", "retrieval", f"{same}, documents only", fidelity=True)


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
