"""Causal language modelling, declared: the task, its teachers, students and metrics. No torch, no transformers here."""

from __future__ import annotations

from functools import partial
from typing import Any

from kdhub import ExporterSpec, FolderFormat, MetricSpec, RowForm, StudentSpec, TaskSpec, TeacherSpec

ANSWERED = ("responses", "conversations", "preferences", "rankings")
"""Forms of rows that have an answer."""
COLUMNS = {
    "conversations": ("messages",),
    "texts": ("text",),
    "responses": ("prompt", "response"),
    "preferences": ("prompt", "chosen", "rejected"),
    "rankings": ("prompt", "responses", "scores"),
    "prompts": ("prompt",),
}
"""Form of rows -> the columns that it needs; the first form that fits is a row's."""

SHOWN = ("image", "images")
"""Columns of what a prompt shows beside its text, which tasks that see it read (`vision_language`)."""

_TASK = "causal-lm"
_SHARED: dict[str, Any] = {"tasks": (_TASK,), "formerly": ("kdhub-lm",)}
_WRITING: dict[str, Any] = {**_SHARED, "tasks": (), "traits": ("next-token",)}
"""Of every task whose models write texts."""


def _form(name: str, kind: str, **more: Any) -> RowForm:
    """A form whose columns all hold `kind`, a prompt always text."""
    columns = tuple((column, "text" if column == "prompt" else kind) for column in COLUMNS[name])
    return RowForm(name=name, columns=columns, **more)


TASKS = (
    TaskSpec(
        name=_TASK,
        target="kdhub_tasks.language.task:CausalLanguage",
        traits=("classes", "labels", "words", "next-token", "layers"),
        signals=("logits", "features"),
        writes=("text",),
        formats=(FolderFormat(heads=("ForCausalLM", "LMHeadModel")),),
        forms=(
            _form("conversations", "any", check="kdhub_tasks.language.forms:conversation", early=True),
            _form("responses", "text"),
            _form("preferences", "text"),
            _form("rankings", "any", check="kdhub_tasks.language.forms:ranking"),
        ),
        reads=tuple(COLUMNS.values()),
        summary="next-token prediction",
        formerly=_SHARED["formerly"],
    ),
)

_teacher = TeacherSpec.shorthand("kdhub_tasks.language.", **_SHARED)
TEACHERS = (
    _teacher(
        "openai", "openai:OpenAI", "a language model behind any OpenAI-compatible API", gives=("text", "logits"),
        argument="MODEL", remote=True,
    ),
    TeacherSpec(
        name="prompted", target="kdhub_tasks.language.prompted:Prompted", traits=("shown",), gives=("logits",),
        summary="a language model behind a template and a parser: its `model`",
    ),
)  # fmt: skip

_student = StudentSpec.shorthand("kdhub_tasks.language.students:", **_SHARED)
STUDENTS = (
    _student(
        "llama", "llama", "a fresh Llama with the teacher's tokenizer, or one of bytes",
        argument="width=N,layers=N,heads=N", example="width=16,layers=1,heads=2",
    ),
    StudentSpec(
        name="config", target="kdhub_tasks.language.students:config", **_SHARED,
        summary="a fresh model of a transformers configuration, with the teacher's tokenizer",
        argument="FILE or {...}",
        example='{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
        '"intermediate_size": 16}',
    ),
)  # fmt: skip

EXPORTERS = (
    ExporterSpec(
        name="gguf", target="kdhub_tasks.language.gguf:Gguf", tasks=(_TASK,), quantize=("int8",), requires=("gguf",),
        extra="kdhub-tasks[gguf]", summary="GGUF of a Llama, for llama.cpp and what is built on it",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand("kdhub_tasks.language.", form=(*ANSWERED, "texts"), **_WRITING)
_written = partial(_metric, form=ANSWERED)


def _fidelity(name: str, summary: str, **more: Any) -> MetricSpec:
    return _metric(name, f"metrics:{name.replace('-', '_')}", summary, fidelity=True, **more)


_LOWER = {"higher_is_better": False}

METRICS = (
    _metric("perplexity", "metrics:perplexity", "exp of the mean negative log-likelihood of a token", **_LOWER),
    _metric("bits-per-byte", "metrics:bits_per_byte", "negative log2-likelihood for each byte of text", **_LOWER),
    _metric("nll", "metrics:nll", "mean negative log-likelihood of a token, nats", **_LOWER),
    _metric("accuracy", "metrics:accuracy", "share of tokens that are the model's most probable one"),
    _fidelity("perplexity-ratio", "perplexity over the teacher's", **_LOWER),
    _fidelity("agreement", "share of tokens where student and teacher agree on the most probable one"),
    _fidelity("kl", "mean KL(teacher || student) of a token, nats", **_LOWER),
    _fidelity("head-mass", "student's probability of the teacher's ten most probable tokens"),
    _fidelity("tail-mass", "student's probability of the teacher's least probable fifth of all tokens", **_LOWER),
    _fidelity("draft-acceptance", "share of drafted tokens that the teacher accepts in speculative decoding"),
    _fidelity("draft-tokens", "tokens of a draft of four that the teacher accepts"),
    _written("rouge-l", "metrics:rouge_l", "ROUGE-L of answer and reference, F"),
    _written("exact-match", "metrics:exact_match", "share of answers with the reference's final answer"),
    _written("distinct-1", "metrics:distinct_1", "distinct words over all words of the answers"),
    _written("distinct-2", "metrics:distinct_2", "distinct pairs of words over all pairs of the answers"),
    _written("f1", "skills:f1", "word overlap of answer and reference, F1"),
    _written("pass@1", "skills:pass_at_1", "chance that one answer is right, estimated from several (`samples`)"),
    _written("pass@10", "skills:pass_at_10", "chance that one of ten answers is right"),
    _written("unique-words", "skills:unique_words", "distinct words of an answer", unit="words"),
    _written("mean-length", "metrics:mean_length", "words of an answer", unit="words"),
    _metric(
        "preference-accuracy",
        "metrics:preference_accuracy",
        "share of pairs whose better response is the more probable one",
        form=("preferences", "rankings"),
    ),
    _metric(
        "cache-bytes",
        "metrics:cache_bytes",
        "keys and values kept for each token of a context",
        cost=True,
        unit="bytes",
        **_LOWER,
    ),
    _written("judge", "judge:rating", "mean rating by a judge model, 1 to 10"),
)
