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

_teacher = TeacherSpec.shorthand(f"{HERE}.", tasks=(NAME,), gives=("embedding",), formerly=FORMERLY)
TEACHERS = (
    _teacher("openai", "openai:OpenAI", "an embedding model behind an OpenAI-compatible API", argument="MODEL"),
)

_student = StudentSpec.shorthand(
    f"{HERE}.students:", tasks=(NAME,), exposes=("embedding",), from_teacher=True, formerly=FORMERLY
)
STUDENTS = (
    _student(
        "config", "config", "a fresh BERT-shaped encoder with the teacher's tokenizer",
        argument="layers=N,hidden_size=N,...", example="layers=1,hidden_size=16,heads=2",
    ),
    _student("static", "static", "a token table that starts from the teacher's vectors of its vocabulary"),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,), formerly=FORMERLY)
_retrieval, _sts = partial(_metric, form="retrieval"), partial(_metric, form="sts")
_fidelity = {"fidelity": True}
METRICS = (
    _retrieval("ndcg@10", "ndcg_at_10", "ranking quality of the first ten documents, graded"),
    _retrieval("recall@10", "recall_at_10", "share of the relevant documents among the first ten"),
    _retrieval("recall@100", "recall_at_100", "share of the relevant documents among the first hundred"),
    _retrieval("mrr@10", "mrr_at_10", "mean reciprocal rank of the first relevant document, up to rank ten"),
    _sts("spearman", "spearman", "rank correlation of cosine and human score"),
    _sts("pearson", "pearson", "linear correlation of cosine and human score"),
    _metric("cosine", "alignment", "mean cosine to the teacher's vector of the same text", **_fidelity),
    _retrieval("cosine-queries", "alignment_queries", "mean cosine to the teacher's vector, queries only", **_fidelity),
    _retrieval(
        "cosine-documents", "alignment_documents", "mean cosine to the teacher's vector, documents only", **_fidelity
    ),
    _metric(
        "vector-bytes",
        "vector_bytes",
        "room of a text's vector in an index, float32",
        cost=True,
        unit="bytes",
        higher_is_better=False,
    ),
)
