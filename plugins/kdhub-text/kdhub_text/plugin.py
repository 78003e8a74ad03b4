"""What kdhub-text provides. No torch, no transformers here."""

from kdhub import MethodSpec, MetricSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

TASK = ("text-embedding",)


@hookimpl
def kdhub_tasks():
    yield TaskSpec(
        name="text-embedding",
        target="kdhub_text.task:TextEmbedding",
        signals=("embedding",),
        summary="texts to vectors: retrieval and similarity",
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
