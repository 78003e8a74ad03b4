"""Text embedding: the task, and what is provided for it."""

from functools import partial

from kdhub import FolderFormat, MetricSpec, RowForm, StudentSpec, TaskSpec, TeacherSpec

NAME = "text-embedding"
HERE = "kdhub_tasks.embedding"
FORMERLY = ("kdhub-text",)

TASKS = (
    TaskSpec(
        name=NAME,
        target=f"{HERE}.task:TextEmbedding",
        traits=("encoder", "layers"),
        signals=("embedding",),
        formats=(FolderFormat(file="modules.json"), FolderFormat(heads=("Model",), sure=False)),
        forms=(
            RowForm(
                name="sts",
                columns=(("sentence1", "text"), ("sentence2", "text"), ("score", "number")),
                texts=("sentence1", "sentence2"),
            ),
        ),
        reads=(("sentence1", "sentence2", "score"), ("query_id", "corpus_id", "score")),
        formerly=FORMERLY,
        summary="texts to vectors: retrieval and similarity",
    ),
)

TEACHERS = (
    TeacherSpec(
        name="openai",
        target=f"{HERE}.openai:OpenAI",
        tasks=(NAME,),
        gives=("embedding",),
        argument="MODEL",
        formerly=FORMERLY,
        summary="an embedding model behind an OpenAI-compatible API",
    ),
)

_student = partial(StudentSpec, tasks=(NAME,), exposes=("embedding",), from_teacher=True, formerly=FORMERLY)
STUDENTS = (
    _student(
        name="config",
        target=f"{HERE}.students:config",
        argument="layers=N,hidden_size=N,...",
        example="layers=1,hidden_size=16,heads=2",
        summary="a fresh BERT-shaped encoder with the teacher's tokenizer",
    ),
    _student(
        name="static",
        target=f"{HERE}.students:static",
        summary="a token table that starts from the teacher's vectors of its vocabulary",
    ),
)


def _metric(name: str, function: str, form: str, summary: str, **spec: object) -> MetricSpec:
    target = f"{HERE}.metrics:{function}"
    return MetricSpec(name=name, target=target, tasks=(NAME,), form=form, summary=summary, formerly=FORMERLY, **spec)


_retrieval = partial(_metric, form="retrieval")
METRICS = (
    _retrieval("ndcg@10", "ndcg_at_10", summary="ranking quality of the first ten documents, graded"),
    _retrieval("recall@10", "recall_at_10", summary="share of the relevant documents among the first ten"),
    _retrieval("recall@100", "recall_at_100", summary="share of the relevant documents among the first hundred"),
    _retrieval("mrr@10", "mrr_at_10", summary="mean reciprocal rank of the first relevant document, up to rank ten"),
    _metric("spearman", "spearman", "sts", "rank correlation of cosine and human score"),
    _metric("pearson", "pearson", "sts", "linear correlation of cosine and human score"),
    _metric("cosine", "alignment", "", "mean cosine to the teacher's vector of the same text", fidelity=True),
    _retrieval(
        "cosine-queries",
        "alignment_queries",
        summary="mean cosine to the teacher's vector, queries only",
        fidelity=True,
    ),
    _retrieval(
        "cosine-documents",
        "alignment_documents",
        summary="mean cosine to the teacher's vector, documents only",
        fidelity=True,
    ),  # fmt: skip
)
