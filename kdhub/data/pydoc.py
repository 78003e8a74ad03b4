"""`pydoc`: documentation strings as data, read from source files with `ast`; nothing is imported or downloaded.

    train        texts       docstrings of kdhub's own required packages: {text, role, source}
    corpus       retrieval   {id, text}: the rest of each held-out docstring (standard library)
    queries      retrieval   {id, text}: its first line
    validation   retrieval   {query_id, corpus_id, score}: one judgement a query, about a third of the modules
    test         retrieval   the same for the other modules

Packages only train, the standard library is only held out, so no module is on both sides; a package text that
also stands in the standard library (a backport, a vendored copy) is dropped. Standard-library modules go to
`validation` or `test` as wholes, by a hash of their top-level name. The rows are a function of the Python version
and of the versions of the packages; both are in the key they are cached under.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdhub.data.dataset import Data
from kdhub.errors import DataError

PACKAGES = (
    "accelerate", "datasets", "filelock", "huggingface-hub", "matplotlib", "numpy", "packaging", "platformdirs",
    "pluggy", "psutil", "pydantic", "pyyaml", "safetensors", "torch", "transformers", "typer",
)  # fmt: skip
"""The distributions that train: kdhub's own requirements. A fixed list: installing a plugin changes no data set."""

RULES = 1
"""Version of the rules below; part of the cache key."""

MAX_CHARACTERS = 1000
MIN_WORDS = 3
MIN_DOCUMENT_WORDS = 15
DENSE_BYTES = 850
"""Package files with fewer triple quotes than one for so many bytes are mostly code and are not parsed: a fifth of
the time, for half of the texts."""

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_WORD = re.compile(r"[^\W_]+")
_RULER = re.compile(r"[-=~^*#+_.]{3,}")
_CODE = (">>>", "...", "$ ", "```")


@cache
def _held_out() -> tuple[list[_Pair], frozenset[str]]:
    """Retrieval pairs of the standard library, and every normalised text that must not be trained on."""
    pairs: list[_Pair] = []
    texts: set[str] = set()
    queries: set[str] = set()
    documents: set[str] = set()
    root = Path(sysconfig.get_path("stdlib"))
    for file in _stdlib_files(root):
        module = _module(file)
        for number, docstring in enumerate(docstrings((root / file).read_bytes())):
            first, blocks = paragraphs(docstring)
            texts.update(map(normal, [first, *blocks]))
            document = _cap(" ".join(blocks))
            texts.add(normal(document))
            # A first line that runs on into the next is half a sentence, and the document its other half.
            whole = docstring.partition("\n")[2].startswith("\n")
            if not whole or not _is_prose(first) or len(_WORD.findall(document)) < MIN_DOCUMENT_WORDS:
                continue
            # One judgement a query is only right when no two queries, and no two documents, are the same.
            query, body = normal(first), normal(document)
            if query in queries or body in documents:
                continue
            queries.add(query)
            documents.add(body)
            pairs.append(_Pair(f"{module}:{number}", module.partition(".")[0], first, document))
    return pairs, frozenset(texts - {""})


@dataclass(frozen=True)
class _Pair:
    id: str
    top: str  # top-level module
    query: str
    document: str

    @property
    def split(self) -> str:
        return held_out_split(self.top)


def held_out_split(top: str) -> str:
    """validation or test: of which split a top-level module of the standard library is."""
    return "validation" if hashlib.sha256(f"held-out:{top}".encode()).digest()[0] % 3 == 0 else "test"


def modules(split: str) -> Iterator[tuple[str, bytes]]:
    """Name and source of each module of `train` (packages), `validation` or `test` (the standard library)."""
    if split == "train":
        for name in PACKAGES:
            for file, place in _package_files(name):
                with suppress(OSError):
                    yield _module(Path(file)), place.read_bytes()
        return
    root = Path(sysconfig.get_path("stdlib"))
    for file in _stdlib_files(root):
        name = _module(file)
        if held_out_split(name.partition(".")[0]) == split:
            yield name, (root / file).read_bytes()


def versions() -> dict[str, object]:
    """What the rows depend on."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = ""  # the rows say it when they are asked for
    return {"rules": RULES, "python": platform.python_version(), "packages": packages}


LICENCE = "the licences of Python and of the packages read"


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _stdlib_files(root: Path) -> list[Path]:
    return sorted(
        file
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS & set((file := path.relative_to(root)).parts) and _dotted(file)
    )


def _dotted(file: Path) -> bool:
    """False for what is no importable module: build configuration with platform names, templates."""
    return all(part.isidentifier() for part in file.with_suffix("").parts) and not file.name.startswith("_sysconfig")


def _package_files(name: str) -> list[tuple[str, Path]]:
    """Source files of an installed distribution: (path inside site-packages, place)."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution(name).files
    except PackageNotFoundError:
        files = None
    if not files:
        raise DataError(
            f"pydoc reads the source of {name}, which is not installed here as a package with a list of its files",
            hint=f"pip install {name}",
        )
    return sorted(
        (str(file), Path(file.locate()))
        for file in files
        if file.suffix == ".py" and not _SKIPPED_FOLDERS & set(file.parts) and ".." not in file.parts
    )


def _train() -> Iterator[dict[str, str]]:
    _, held_out = _held_out()
    seen: set[str] = set()
    for name in PACKAGES:
        for _, place in _package_files(name):
            try:
                source = place.read_bytes()
            except OSError:
                continue
            quotes = source.count(b'"""') + source.count(b"'''")
            if len(source) > DENSE_BYTES * quotes:
                continue
            for docstring in docstrings(source):
                first, blocks = paragraphs(docstring)
                for role, text in [("query", first), *(("document", block) for block in blocks)]:
                    key = normal(text)
                    if key in seen or key in held_out or not _is_prose(text):
                        continue
                    seen.add(key)
                    yield {"text": _cap(text), "role": role, "source": name}


def pydoc(argument: str = "") -> Data:
    """The data set `pydoc`."""

    def judgements(split: str) -> Iterator[dict[str, object]]:
        for pair in _held_out()[0]:
            if pair.split == split:
                yield {"query_id": pair.id, "corpus_id": pair.id, "score": 1.0}

    return Data.from_rows(
        "pydoc",
        {
            "train": _train,
            "corpus": lambda: ({"id": p.id, "text": p.document} for p in _held_out()[0]),
            "queries": lambda: ({"id": p.id, "text": p.query} for p in _held_out()[0]),
            "validation": lambda: judgements("validation"),
            "test": lambda: judgements("test"),
            # Held out too, as plain texts: for language models.
            "validation-texts": lambda: ({"text": p.document} for p in _held_out()[0] if p.split == "validation"),
            "test-texts": lambda: ({"text": p.document} for p in _held_out()[0] if p.split == "test"),
        },
        key=versions(),
        format={"train": "texts", "validation-texts": "texts", "test-texts": "texts"},
        licence=LICENCE,
    )


def docstrings(source: bytes) -> list[str]:
    """Documentation strings of a module, its classes and functions; [] when it does not parse."""
    return [text for _, text in documented(source)]


def documented(source: bytes) -> list[tuple[ast.AST, str]]:
    """A module, its classes and functions that have a documentation string, and that; [] when it does not parse."""
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is many small objects and no cycles: a fifth faster
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # templates, other Python versions, odd encodings
    finally:
        if collecting:
            gc.enable()
    found: list[tuple[ast.AST, str]] = []
    blocks: list[list[ast.stmt]] = [tree.body]
    if text := ast.get_docstring(tree):
        found.append((tree, text))
    while blocks:  # only statements hold definitions: expressions, most of the tree, are not walked
        for node in blocks.pop():
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if text := ast.get_docstring(node):
                    found.append((node, text))
            for name in ("body", "orelse", "finalbody"):
                if isinstance(inner := getattr(node, name, None), list):
                    blocks.append(inner)
            blocks.extend(handler.body for handler in getattr(node, "handlers", ()))
    return found


def paragraphs(docstring: str) -> tuple[str, list[str]]:
    """First line and the paragraphs below it: white space collapsed, doctests, code and rulers left out."""
    first, _, rest = docstring.partition("\n")
    blocks = []
    for block in re.split(r"\n[ \t]*\n", rest):
        lines = [line.strip() for line in block.splitlines()]
        if lines and lines[0].startswith(">>>"):
            continue  # a doctest with its output
        lines = [line for line in lines if line and not line.startswith(_CODE) and not _RULER.fullmatch(line)]
        text = " ".join(" ".join(lines).split())
        if _is_prose(text):
            blocks.append(_cap(text))
    return " ".join(first.split()), blocks


def _is_prose(text: str) -> bool:
    words = _WORD.findall(text)
    return len(words) >= MIN_WORDS and sum(map(len, words)) >= 0.6 * len(text)


def _cap(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rsplit(" ", 1)[0]


def normal(text: str) -> str:
    """Letters and digits only, lower case: what two texts have in common when one is a copy of the other."""
    return " ".join(_WORD.findall(text.lower()))
