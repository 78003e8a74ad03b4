"""`pydoc-questions`: questions of which function of a module does what, from documentation strings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import Any

from kdhub.data import Data
from kdhub.errors import UsageError
from kdhub.pydoc_data import LICENCE, documented, modules, normal, paragraphs, versions

SPLITS = ("train", "validation", "test")


def pydoc_questions(*, functions: int = 8) -> Data:
    """Rows of `question`, `context` and `answers`: the first line of a function's documentation string, the heads of
    some functions of its module (`isdir(s)`, one after the other), and its name.

    Packages that kdhub needs train, the standard library is held out, by module; as in `pydoc`. No question that is
    held out is trained on, nor one twice.

    Args:
        functions: heads of a context, at most.
    """
    if not isinstance(functions, int) or functions < 2:
        raise UsageError(f"pydoc-questions: a context has 2 functions or more, not {functions!r}")
    key = {"kind": "pydoc-questions", "functions": functions, "version": 1, **versions()}
    splits = {split: (lambda split=split: rows(split, functions)) for split in SPLITS}
    return Data.from_rows("pydoc-questions", splits, key=key, licence=LICENCE)


def rows(split: str, functions: int) -> Iterator[dict[str, Any]]:
    """Those of one split; which functions stand beside one is drawn from its own name and question."""
    seen = set()
    if split == "train":
        seen = {normal(said) for other in SPLITS[1:] for _, source in modules(other) for _, _, said in _heads(source)}
    for name, source in modules(split):
        asked = _heads(source)
        for number, (_, _, said) in enumerate(asked):
            if (plain := normal(said)) in seen:
                continue
            seen.add(plain)
            drawn = int.from_bytes(hashlib.sha256(f"{name}:{said}".encode()).digest()[:4], "little")
            first = max(0, min(number - drawn % functions, len(asked) - functions))
            beside = asked[first : first + functions]
            if len(beside) < 2:
                continue
            context = " ".join(head for _, head, _ in beside)
            start = sum(len(head) + 1 for _, head, _ in beside[: number - first])
            yield {
                "question": said,
                "context": context,
                "answers": {"text": [asked[number][0]], "answer_start": [start]},
            }


def _heads(source: bytes) -> list[tuple[str, str, str]]:
    """Name, head and first line of the functions of a module that say what they do in one sentence; no name twice."""
    found: dict[str, tuple[str, str, str]] = {}
    for node, text in documented(source):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        said, _ = paragraphs(text)
        if len(said.split()) >= 4 and said[0].isalpha():
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            arguments = [a for a in arguments if a not in ("self", "cls")]
            found.setdefault(node.name, (node.name, f"{node.name}({', '.join(arguments[:3])})", said))
    return list(found.values())
