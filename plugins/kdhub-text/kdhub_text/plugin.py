"""What kdhub-text provides. No torch, no transformers here."""

from pathlib import Path

from kdhub_logits.plugin import IMAGE, QUESTIONS, TABLE, TEXT, TOKEN

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

TASK = ("text-embedding",)
FILL = ("fill-mask",)
ASK = (QUESTIONS,)
LONG = (TEXT, TOKEN, *FILL, *ASK)
PAIRS = ("text-pairs",)


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
    yield TaskSpec(
        name=QUESTIONS,
        target="kdhub_text.question_answering:QuestionAnswering",
        signals=("logits", "hidden_states", "attentions"),
        summary="questions to the words of a text that answer them",
    )
    yield TaskSpec(
        name="text-pairs",
        target="kdhub_text.pairs:TextPairs",
        signals=("logits", "features", "embeddings", "hidden_states", "attentions"),
        summary="pairs of texts to a class or a score",
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
        name="dse",
        target="kdhub_text.dse:Dse",
        tasks=PAIRS,
        needs=("logits",),
        uses=("logits", "embeddings"),
        paper="arXiv:1908.05161",
        summary="a cross-encoder's scores into two towers, whose vectors can be kept",
        recipe="dse",
        tags=("elicitation:feature", "algorithm:similarity"),
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
        needs=("hidden_states",),
        uses=("logits", "hidden_states"),
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
        name="multi-teacher",
        target="kdhub_text.multi_teacher:MultiTeacher",
        tasks=(*FILL, TEXT, TOKEN, "text-pairs"),
        needs=("logits",),
        paper="arXiv:2112.12650",
        summary="soft targets, labels and states of several teachers at once, also with other tokens",
        recipe="multi-teacher",
        tags=("elicitation:feature", "algorithm:divergence"),
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

    def of_pairs(**spec):
        gives = ("logits", "features", "hidden_states", "attentions")
        return TeacherSpec(tasks=PAIRS, gives=gives, live=True, **spec)

    yield of_pairs(name="path", target="kdhub_text.pairs:path", argument="FOLDER", summary="a cross-encoder's folder")
    yield of_pairs(
        name="hf",
        target="kdhub_text.pairs:hub",
        argument="org/name[@revision]",
        summary="a cross-encoder on the Hugging Face Hub",
    )

    signals = ("logits", "features", "hidden_states")
    for name, function, argument in (("path", "path", "FOLDER"), ("hf", "hub", "org/name[@revision]")):
        yield TeacherSpec(
            name=name, target=f"kdhub_text.masked_lm:teacher_{function}", tasks=FILL, gives=signals, argument=argument,
            live=True, summary="a masked language model of the transformers library",
        )  # fmt: skip

    of_reader = ("logits", "hidden_states", "attentions")
    for name, function, argument in (("path", "path", "FOLDER"), ("hf", "hub", "org/name[@revision]")):
        yield TeacherSpec(
            name=name, target=f"kdhub_text.reader:{function}", tasks=ASK, gives=of_reader, argument=argument,
            live=True, summary="a model of the transformers library that answers questions",
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
    yield builder(
        name="words",
        target="kdhub_text.fresh:words",
        argument="layers=N,width=N,heads=N",
        summary="a fresh encoder over the words of some rows",
    )

    layered = ("logits", "features", "hidden_states", "attentions")

    def of_pairs(name, target, argument, summary, exposes=layered, **spec):
        return StudentSpec(
            name=name, target=target, tasks=PAIRS, exposes=exposes, argument=argument, summary=summary, **spec
        )

    yield of_pairs(
        "towers", "kdhub_text.towers:towers", "ENCODER|teacher", "two towers: one encoder reads each text alone",
        ("logits", "embeddings"), example="layers:1",
    )  # fmt: skip
    yield of_pairs(
        "packaged", "kdhub_logits.students:packaged", "NAME", "a cross-encoder from an encoder that a package carries",
        example="all-minilm-l6-v2",
    )  # fmt: skip
    yield of_pairs("hf", "kdhub_logits.students:hub", "org/name[@revision]", "a cross-encoder from a model on the Hub")
    yield of_pairs("path", "kdhub_logits.students:path", "FOLDER", "a folder of a model of pairs, or an encoder")
    yield of_pairs(
        "layers", "kdhub_logits.students:layers", "N", "N evenly spaced layers of the cross-encoder", example="1",
        from_teacher=True,
    )  # fmt: skip
    yield of_pairs(
        "words", "kdhub_text.fresh:words", "layers=N,width=N,heads=N", "a fresh cross-encoder over words",
    )  # fmt: skip

    def reader(name, argument, summary, **spec):
        target = f"kdhub_logits.students:{'hub' if name == 'hf' else name}"
        exposes = ("logits", "hidden_states", "attentions")
        return StudentSpec(
            name=name, target=target, tasks=ASK, exposes=exposes, argument=argument, summary=summary, **spec
        )

    yield reader("path", "FOLDER", "a model that answers questions, or an encoder with a fresh head")
    yield reader("hf", "org/name[@revision]", "a model that answers questions, or an encoder, on the Hub")
    yield reader("packaged", "NAME", "an encoder that an installed package carries", example="all-minilm-l6-v2")
    yield reader("layers", "N", "N evenly spaced layers of the teacher", example="1", from_teacher=True)

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
        "chunked", "chunked", "N", "a tagger that reads long rows in chunks with N tokens in common", (TOKEN,),
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
        name="pydoc-questions",
        target="kdhub_text.pydoc_questions:pydoc_questions",
        splits=("train", "validation", "test"),
        summary="which function of a module does what: questions of documentation strings, and heads of functions",
    )
    yield DatasetSpec(
        name="scenes",
        target="kdhub_text.scenes:scenes",
        splits=("train", "validation", "test"),
        summary="pairs of sentences with graded likeness, generated",
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

    def of_answers(name, target, summary, better=True, fidelity=False):
        return MetricSpec(
            name=name, target=f"kdhub_{target}", tasks=ASK, summary=summary, higher_is_better=better, fidelity=fidelity
        )

    asked = "text.question_answering"
    yield of_answers("answer-f1", f"{asked}:answer_f1", "F1 of the words of the answer, as SQuAD counts them")
    yield of_answers("exact-match", f"{asked}:exact_match", "share of answers that are right, as SQuAD compares them")
    yield of_answers(
        "answer-agreement", f"{asked}:answer_agreement", "share of answers that are the teacher's", fidelity=True
    )
    yield of_answers("nll", "logits.metrics:nll", "mean -log probability of first and last token, nats", better=False)
    yield of_answers(
        "kl", "logits.metrics:divergence", "mean KL(teacher || student), nats", better=False, fidelity=True
    )

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

    def of_pairs(name, target, form, summary, **spec):
        return MetricSpec(name=name, target=f"kdhub_{target}", tasks=PAIRS, form=form, summary=summary, **spec)

    own, known, values, classes = "text.pair_metrics", "logits.metrics", "sts", ("rows", "texts")
    yield of_pairs("pearson", f"{own}:pearson", values, "linear correlation of value and human score")
    yield of_pairs("spearman", f"{own}:spearman", values, "rank correlation of value and human score")
    yield of_pairs("accuracy", f"{known}:accuracy", classes, "share of pairs whose most probable class is right")
    yield of_pairs("f1", f"{own}:f1", classes, "F1 of the second of two classes")
    yield of_pairs("macro-f1", f"{known}:macro_f1", classes, "F1 of each class, unweighted mean")
    yield of_pairs("auroc", f"{known}:auroc", classes, "area under the ROC curve, two classes")
    yield of_pairs(
        "nll", f"{known}:nll", classes, "mean -log probability of the right class, nats", higher_is_better=False
    )
    to_teacher = {"fidelity": True}
    yield of_pairs("agreement", f"{known}:agreement", classes, "share of pairs both choose one class of", **to_teacher)
    yield of_pairs(
        "loyalty", f"{known}:probability_loyalty", classes, "1 - root of the Jensen-Shannon divergence, mean",
        **to_teacher,
    )  # fmt: skip
    yield of_pairs(
        "regression-loyalty", f"{known}:regression_loyalty", "", "Pearson's correlation with the teacher's scores",
        **to_teacher,
    )  # fmt: skip
    yield of_pairs(
        "score-rmse", f"{own}:score_rmse", "", "root of the mean squared difference to the teacher's scores",
        higher_is_better=False, **to_teacher,
    )  # fmt: skip
    yield of_pairs(
        "degradation", f"{own}:degradation", "", "100 (teacher - student) / teacher of Pearson or accuracy", unit="%",
        higher_is_better=False, **to_teacher,
    )  # fmt: skip


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
