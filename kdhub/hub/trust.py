"""What a model folder may hold before anything in it is loaded: safetensors and configuration, no code, no pickle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdhub.errors import UntrustedError
from kdhub.files import once
from kdhub.hub.weights import check_weights
from kdhub.plain_json import read_json
from kdhub.plain_yaml import kind_of, plain_yaml

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CONFIGURATION = ("*.json", "*.txt", "*.model", "*.md", "LICENSE*", "*.jinja")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack")

_DATA = ("tokenizer.json", "vocab.json", "*.index.json", "kdhub.json", "report.json")
"""JSON that no library takes settings from: vocabularies, where a word may be anything, indices, and kdhub's own."""

_RUN = ("auto_map", "custom_generate", "custom_pipelines", "trust_remote_code", "use_kernels", "kernel_config")
"""Keys by which a configuration has Python or a kernel fetched and run."""
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_PLAIN_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Ways to compute attention that come with the libraries; the name of a repository is code from there."""

_REDIRECTING = ("adapter_config.json", "sentence_bert_config.json")
_ELSEWHERE = (
    "base_model_name_or_path",
    "tokenizer_name_or_path",
    "model_name_or_path",
    "pretrained_model_name_or_path",
)
"""Keys by which a library opens another model than the one that was asked for."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_CLASSES = re.compile(
    r"sentence_transformers(?:\.\w+)*\.(?:models|modules)(?:\.\w+)*\.(?:Asym|BoW|CLIPModel|CNN|Dense|Dropout|LSTM|LayerNorm"
    r"|LogitScore|Normalize|Pooling|Router|StaticEmbedding|Transformer|WeightedLayerPooling|WordEmbeddings|WordWeights"
    r"|[A-Z][A-Za-z]*Tokenizer)"
    r"|torch\.nn(?:\.modules\.(?:activation|linear))?\.[A-Z][A-Za-z0-9]*|torch\.[a-z]+[0-9]+[a-z0-9_]*",
    re.ASCII,
)
"""What a configuration may name by its place in a Python package: parts of a SentenceTransformer,
activations, number types."""

_LARGEST = 64 * 2**20

ALLOW_PATTERNS = [*WEIGHTS, *CONFIGURATION]
"""What is fetched from a model repository: never pickles, never Python."""


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        ValueError: there is no front matter, or it is not a YAML mapping.
    """
    text, body = front_and_body(card)
    if text is None:
        raise ValueError("the card does not begin with front matter between two lines of ---")
    try:
        front = plain_yaml(text, stranger=True)
    except ValueError as error:
        raise ValueError(f"the front matter is not valid YAML: {error}") from error
    if not isinstance(front, dict):
        raise ValueError(f"the front matter is {kind_of(front)}, not a mapping of keys")
    return front, body


def front_and_body(card: str) -> tuple[str | None, str]:
    """The text of the front matter, None where a card has none, and what comes after it."""
    found = re.match(r"---\r?\n(.*?\n)---\r?\n", card, re.DOTALL)
    return (found[1], card[found.end() :]) if found else (None, card)


def check_model_folder(folder: Path, *, name: str | None = None, allow_remote_code: bool = False) -> None:
    """Refuse a folder that would run code when loaded. Free where this process did so before, and nobody touched it.

    Args:
        folder: a transformers or SentenceTransformer folder.
        name: what errors call it; the folder by default.
        allow_remote_code: the explicit flag for repositories with code of their own. There is none for pickles.

    Raises:
        UntrustedError: weights only as pickles; code asked for in a configuration; a module class from elsewhere.
    """
    _check(folder, name or str(folder), allow_remote_code)


@once
def _check(folder: Path, name: str, allow_remote_code: bool) -> None:
    if not any(folder.rglob("*.safetensors")):
        pickles = sorted(p.name for p in folder.rglob("*") if p.suffix in PICKLES)
        if pickles:
            raise UntrustedError(
                f"{name} has its weights only as pickles ({', '.join(pickles[:3])}), which can run code when loaded",
                hint="convert them to safetensors; kdhub does not load pickles",
            )
        raise UntrustedError(f"{name} holds no safetensors weights", hint="expected at least one *.safetensors file")
    for path in sorted(folder.rglob("modules.json")):  # each module has its weights in a folder of its own
        for module in _modules(path, name):
            part = path.parent / str(module.get("path", ""))
            pickles = sorted(p.name for p in part.glob("*") if p.suffix in PICKLES)
            if pickles and not any(part.glob("*.safetensors")):
                raise UntrustedError(
                    f"{name} has {part.name} only as a pickle ({pickles[0]}), which can run code when loaded",
                    hint="convert them to safetensors; kdhub does not load pickles",
                )
    check_configuration(folder, name=name, allow_remote_code=allow_remote_code)
    check_weights(folder, name)


def check_configuration(folder: Path, *, name: str, allow_remote_code: bool = False) -> None:
    """Refuse configurations that lead outside the folder or ask for code, whatever the weights are.

    Raises:
        UntrustedError: as `check_model_folder`.
    """
    _check_configuration(folder, name, allow_remote_code)


@once
def _check_configuration(folder: Path, name: str, allow_remote_code: bool) -> None:
    for path in sorted(folder.rglob("*.json")):
        if path.name == "modules.json":
            for module in _modules(path, name):
                if allow_remote_code:
                    continue
                kind = str(module.get("type", ""))
                if not _CLASSES.fullmatch(kind):
                    raise UntrustedError(
                        f"{name}: modules.json asks for the class {kind[:200]!r}, which is code of its own",
                        hint="only known modules are loaded; trust_remote_code: true if you trust it",
                    )
        elif path.name.endswith(".index.json"):
            index = _read(path, name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            for shard in set(map(str, shards.values())) if isinstance(shards, dict) else ():
                if not _inside(path.parent, shard):
                    raise UntrustedError(f"{name}: {path.name} leads outside the folder ({shard[:200]!r})")
        elif not allow_remote_code and not any(path.match(pattern) for pattern in _DATA):
            for key, value in _settings(_read(path, name)):
                if key.rpartition(".")[2] in _RUN and value:
                    raise UntrustedError(
                        f"{name}: {path.name} has {key}, which runs Python from a repository",
                        hint="set trust_remote_code: true on the teacher or student if you have read that code",
                    )
                if path.name in _REDIRECTING and key.rpartition(".")[2] in _ELSEWHERE and value:
                    raise UntrustedError(
                        f"{name}: {path.name} has {key}={str(value)[:200]!r}: other files are opened in its place",
                        hint="nobody checked those; merge an adapter into its model, and keep what belongs together",
                    )
                if key.rpartition(".")[2] == "transformers_weights" and not str(value).endswith(".safetensors"):
                    raise UntrustedError(f"{name}: {path.name} has {key}={str(value)[:200]!r}, which is no safetensors")
                said = "id2label" in key or key.endswith(".content")  # names of classes, and tokens
                if not said and _names_code(value):
                    raise UntrustedError(
                        f"{name}: {path.name} has {key}={value[:200]!r}, which is code of an installed package",
                        hint="no known part of a model is named so; trust_remote_code: true if you trust it",
                    )
                if key.rpartition(".")[2] in _ATTENTION and isinstance(value, str) and value not in _PLAIN_ATTENTION:
                    raise UntrustedError(
                        f"{name}: {path.name} has {key}={value[:60]!r}, which may be a kernel from a repository",
                        hint=f"expected one of {', '.join(_PLAIN_ATTENTION)}; trust_remote_code: true if you trust it",
                    )


def _names_code(value: Any) -> bool:
    """Whether it is the name of something in a package that is installed here, other than the parts of models that
    configurations name so: a library may import and call what it reads."""
    if not isinstance(value, str) or len(value) > 500 or not _DOTTED.fullmatch(value) or _CLASSES.fullmatch(value):
        return False
    return find_spec(value.partition(".")[0]) is not None


def _settings(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration at any depth, with the keys above it, and its value. Each entry of a mapping for
    parts of a model stands also below the mapping's own key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{at}{key}", inner
            if key in _ATTENTION and isinstance(inner, dict):  # one for each part
                yield from ((f"{at}{key}.{part}.{key}", one) for part, one in inner.items())
            yield from _settings(inner, f"{at}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield at.rstrip("."), inner
            yield from _settings(inner, at)


def _modules(path: Path, name: str) -> list[dict]:
    modules = _read(path, name)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise UntrustedError(f"{name}: modules.json is not a list of modules")
    for module in modules:
        if not _inside(path.parent, str(module.get("path", ""))):
            raise UntrustedError(f"{name}: modules.json leads outside the folder ({str(module['path'])[:200]!r})")
    return modules


def _inside(folder: Path, name: str) -> bool:
    """Whether a name that a file gives is of something in its folder."""
    if len(name) > 1000 or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/")):
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read(path: Path, name: str):
    try:
        return read_json(path, most=_LARGEST)
    except (ValueError, OSError) as error:
        raise UntrustedError(f"{name}: {path.name} is not readable JSON ({error})") from error
