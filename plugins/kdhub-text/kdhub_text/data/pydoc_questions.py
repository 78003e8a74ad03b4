"""`pydoc-questions`: which function of a module does what, from documentation strings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import Any

from kdhub.data.dataset import Data
from kdhub.data.pydoc import LICENCE, documented, modules, normal, paragraphs, versions
from kdhub.errors import UsageError

SPLITS = ("train", "validation", "test")


def pydoc_questions(*, functions: int = 8) -> Data:
    """Rows of `question`, `context` and `answers`: the first line of a function's documentation string, the signatures
    of some functions of its module (`isdir(s)`, one after the other), and its name.

    As in `pydoc`, packages that kdhub needs are for training, and modules of the standard library are held out.
    Held-out questions are not trained on, and no question occurs twice.

    Args:
        functions: signatures in a context, at most.
    """
    if not isinstance(functions, int) or functions < 2:
        raise UsageError(f"pydoc-questions: functions must be a whole number from 2 (functions={functions!r})")
    key = {"kind": "pydoc-questions", "functions": functions, "version": 1, **versions()}
    splits = {split: (lambda split=split: rows(split, functions)) for split in SPLITS}
    return Data.from_rows("pydoc-questions", splits, key=key, licence=LICENCE)


def rows(split: str, functions: int) -> Iterator[dict[str, Any]]:
    """The rows of one split; the other functions in a context are drawn from the module's name and the question."""
    seen = set()
    if split == "train":
        seen = {
            normal(question)
            for other in SPLITS[1:]
            for _, source in modules(other)
            for _, _, question in _signatures(source)
        }
    for name, source in modules(split):
        described = _signatures(source)
        for number, (_, _, question) in enumerate(described):
            if (plain := normal(question)) in seen:
                continue
            seen.add(plain)
            drawn = int.from_bytes(hashlib.sha256(f"{name}:{question}".encode()).digest()[:4], "little")
            first = max(0, min(number - drawn % functions, len(described) - functions))
            chosen = described[first : first + functions]
            if len(chosen) < 2:
                continue
            context = " ".join(signature for _, signature, _ in chosen)
            start = sum(len(signature) + 1 for _, signature, _ in chosen[: number - first])
            yield {
                "question": question,
                "context": context,
                "answers": {"text": [described[number][0]], "answer_start": [start]},
            }


def _signatures(source: bytes) -> list[tuple[str, str, str]]:
    """Name, signature and first line of the functions of a module whose documentation starts with one sentence; no name
    twice."""
    found: dict[str, tuple[str, str, str]] = {}
    for node, text in documented(source):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        question, _ = paragraphs(text)
        if len(question.split()) >= 4 and question[0].isalpha():
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            arguments = [a for a in arguments if a not in ("self", "cls")]
            found.setdefault(node.name, (node.name, f"{node.name}({', '.join(arguments[:3])})", question))
    return list(found.values())
