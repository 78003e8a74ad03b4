"""What means harm, or is broken, made from what is whole; and a look at what kdhub did with it.

`mutated` changes a valid file as an attacker or a bad disk would. `watched` sees what a block does that it must not:
modules that nobody asked for, code and processes out of a folder, other addresses.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

LONG = "x" * 5_000
VALUES: list[Any] = [
    None, True, False, 0, -1, 10**400, -(10**19), 2**63, 1e308, float("nan"), float("inf"), "", " ", "x", LONG,
    "\ud800", "\x1b]0;owned\x07\x1b[2J", "\0", "../../etc/passwd", "/etc/passwd", "os.system", "__class__", "{{x}}",
    "\u202etxt", "\ufeff", "1e5", "!!int ''", [], {}, [None], [[]], [{}], {"": None}, {"a": {"b": []}}, ["a", 1],
    {"source": "openai:gpt"}, {"$ref": "#"}, [[[[[[[[[[]]]]]]]]]], list(range(300)),
]  # fmt: skip
"""What stands in the place of a value."""

TEXTS = [
    "!!int ''", "!!bool foo", "!!timestamp x", "!!python/name:os.system", "&a [*a]", "*a", "<<: 7", "? [a]", "- - -",
    "%YAML 9.9\n---\n", "---\n", "...\n", "\ufeff", "\x00", "\x1b[31m", "\t", "'", '"', "{", "[", "]", "}", "|", ">",
    "#", "1" * 500, "1:" * 60, "\u2028", "\U000e0001", "NaN", "-Infinity", "1e999", "\\ud800", "\\u0000", ",", ":",
]  # fmt: skip
"""What stands between, or in the place of, some characters."""


def mutated(content: bytes, draw: random.Random, *, front: bool = False) -> bytes:
    """Another content, near a valid one of JSON, or YAML (`front`: between the two lines of a card)."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        content = draw.choice((_tree, _tree, _tree, _text, _bytes))(content, draw, front)
    return content


def _bytes(content: bytes, draw: random.Random, front: bool) -> bytes:
    made = bytearray(content)
    match draw.randrange(6):
        case 0:
            return bytes(made[: draw.randrange(len(made) + 1)])
        case 1:
            return draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xff")) + content
        case 2:
            return content.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")), "replace")
        case _:
            for _ in range(draw.choice((1, 1, 3, 20))):
                if made:
                    made[draw.randrange(len(made))] = draw.randrange(256)
            return bytes(made)


def _text(content: bytes, draw: random.Random, front: bool) -> bytes:
    text = content.decode("utf-8", "replace")
    at = draw.randrange(len(text) + 1)
    return (text[:at] + draw.choice(TEXTS) + text[at + draw.choice((0, 0, 1, 5)) :]).encode("utf-8", "replace")


def _tree(content: bytes, draw: random.Random, front: bool) -> bytes:
    text = content.decode("utf-8", "replace")
    before, after = "", ""
    if front:
        _, _, rest = text.partition("---\n")
        text, mark, after = rest.partition("\n---\n")
        before, after = "---\n", mark + after
    try:
        value = json.loads(text)
        write = json.dumps
    except (ValueError, RecursionError):
        try:
            value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except Exception:
            return _text(content, draw, front)

        def write(value):
            return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)

    try:
        places = list(_places(value))
    except RecursionError:  # an earlier change put a value into itself
        return _text(content, draw, front)
    if not places:
        return json.dumps(draw.choice(VALUES)).encode()
    holder, key = draw.choice(places)
    match draw.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(["", "x", LONG[:300], "\x1b[1m", "__proto__", 7, None])] = holder.pop(key)
        case 2:
            holder[key] = [holder[key]]
        case 3:
            other, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[name], default=str)) if name in _keys(other) else None
        case 4 if isinstance(holder, dict):
            holder[draw.choice(["trust_remote_code", "auto_map", "source", "x"])] = draw.choice(VALUES)
        case _:
            holder[key] = draw.choice(VALUES)
    try:
        return (before + write(value) + after).encode("utf-8", "replace")
    except Exception:  # what YAML cannot write
        return (before + json.dumps(value, default=str, skipkeys=True) + after).encode("utf-8", "replace")


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value inside, as the mapping or list that holds it, and its key there."""
    if isinstance(value, (dict, list)):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)


# -- what was done with it ------------------------------------------------------------------------------------


@dataclass
class Watched:
    """What happened in a block that must not.

    Attributes:
        done: one sentence each.
        seconds: that it took this process, whatever others did meanwhile.
    """

    known: frozenset[str]
    done: list[str] = field(default_factory=list)
    seconds: float = 0.0


_watched: list[Watched] = []
_HARMFUL = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
    "urllib.Request",
)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    here = _watched[-1]
    if event == "import" and (top := str(arguments[0]).partition(".")[0]) not in here.known:
        here.done.append(f"imported {arguments[0]} ({top})")
    elif event == "socket.connect" and not str(arguments[1]).startswith(("('127.0.0.1'", "('::1'", "/")):
        here.done.append(f"connected to {arguments[1]}")
    elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1", None):
        here.done.append(f"looked up {arguments[0]}")
    elif event in _HARMFUL and arguments[0] != "git":  # which a run asks for the commit of the folder it stands in
        here.done.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def watched(*more: str) -> Iterator[Watched]:
    """Look at a block. Modules may be imported from packages that were imported before, when a valid one was opened,
    or are named."""
    seen = Watched(frozenset(name.partition(".")[0] for name in (*sys.modules, *more)))
    _watched.append(seen)
    began = time.process_time()
    try:
        yield seen
    finally:
        seen.seconds = time.process_time() - began
        _watched.remove(seen)


# -- the corpus -----------------------------------------------------------------------------------------------

RUNS_CODE = ("auto_map", "custom_generate", "custom_pipelines", "trust_remote_code", "use_kernels", "kernel_config")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
FILES = (
    "config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json", "adapter_config.json",
    "preprocessor_config.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
CLASSES = (
    "pickle", "torch", "json", "shutil", "importlib", "os", "os.system", "subprocess.Popen", "builtins.eval",
    "torch.hub.load", "torch.load", "torch.nn", "torch.nn.modules.module.register_module_forward_hook",
    "sentence_transformers", "sentence_transformers.models", "sentence_transformers.models.Evil",
    "sentence_transformers.models.Transformer.load", "sentence_transformers.util.import_from_string",
    "evil_canary", "evil_canary.Model", "transformers.AutoModel", "kdhub.load", "", " ", "..", "x/y", "torch .nn.ReLU",
    "torch.nn.ReLU\n", "\ud800", "__main__.x",
)  # fmt: skip
NO_JSON = {
    "nothing": b"", "half": b'{"a": ', "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 100_000, "deep and closed": b'{"a":' * 500 + b"1" + b"}" * 500, "twice": b'{"a": 1, "a": 2}',
    "digits": b'{"a": ' + b"1" * 5_000 + b"}", "half a character": b'{"a": "\\ud800"}', "python": b"{'a': 1}",
    "a zero byte": b'{"a": 1}\0', "two": b"{} {}", "a comment": b"{} // x", "yaml": b"a: 1",
}  # fmt: skip


def models() -> Iterator[tuple[str, str, bytes]]:
    """Name, file and content of what makes a model's folder one that runs code, leads elsewhere, or is none."""

    def of(value: Any) -> bytes:
        return json.dumps(value).encode()

    for key in RUNS_CODE:
        for file in FILES:
            yield f"{key} in {file}", file, of({key: {"AutoModel": "evil_canary.Model"}})
        yield f"{key} inside", "config.json", of({"text_config": {"parts": [{key: "evil/repo--x.Model"}]}})
    for key in ATTENTION:
        for value in (
            "evil/kernel",
            "evil/kernel@main:f",
            {"": "evil/kernel"},
            {"text": "evil/kernel"},
            "paged|evil/k",
        ):
            yield f"{key}={value}", "config.json", of({key: value})
            yield f"{key}={value} inside", "config.json", of({"vision_config": {key: value}})
        yield f"{key} among arguments", "sentence_bert_config.json", of({"model_args": {key: "evil/kernel"}})
    for name in CLASSES:
        yield f"module {name!r}", "modules.json", of([{"idx": 0, "name": "0", "path": "", "type": name}])
    for path in ("../x", "/etc", "a/../../x", "../", "x" * 5_000, "a\0b"):
        kind = "sentence_transformers.models.Pooling"
        yield f"module at {path}", "modules.json", of([{"path": path, "type": kind}])
    for value in ({}, [1], ["x"], [[]], None, "x", 7, [{"path": ["x"], "type": {}}]):
        yield f"modules {value!r}", "modules.json", of(value)
    for name in ("os.system", "subprocess.run", "evil_canary.f", "torch.hub.load", "builtins.exec", "shutil.rmtree"):
        for key in ("activation_fn", "hidden_act", "architectures", "tokenizer_class", "quant_method", "peft_type"):
            yield f"{key}={name}", "config.json", of({key: [name] if key == "architectures" else name})
    for name, content in NO_JSON.items():
        for file in ("config.json", "tokenizer_config.json", "modules.json"):
            yield f"{file}, {name}", file, content
    for key in ("num_hidden_layers", "n_layer", "encoder_layers", "hidden_size", "vocab_size", "d_model", "ffn_dim"):
        for value in (10**7 if "layer" in key else 10**12, 10**30):
            yield f"{key}={value}", "config.json", of({key: value})
        yield f"{key} inside", "config.json", of({"text_config": {key: 10**15}})
    for place in ("evil/base", "/etc", "../other", "./"):
        yield f"adapter of {place}", "adapter_config.json", of({"peft_type": "LORA", "base_model_name_or_path": place})
        yield f"tokens of {place}", "sentence_bert_config.json", of({"tokenizer_name_or_path": place})
        yield f"weights {place}", "config.json", of({"transformers_weights": place + "model.bin"})
    yield "layer types", "config.json", of({"layer_types": ["full_attention"] * 100_000})
    for path in ("/etc/passwd", "../x.safetensors", "a/../../x", "x" * 5_000, "a\0b"):
        yield f"shard {path}", "model.safetensors.index.json", of({"weight_map": {"a": path}})


def weights(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Contents of a safetensors file that is none."""
    size = int.from_bytes(whole[:8], "little")
    header, numbers = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    name = next(name for name in header if name != "__metadata__")

    def made(header: Any, numbers: bytes = numbers) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + numbers

    def changed(**of: Any) -> bytes:
        return made({**header, name: {**header[name], **of}})

    yield "nothing", b""
    yield "half", whole[: len(whole) // 2]
    yield "more", whole + b"PK\3\4"
    yield "a byte less", whole[:-1]
    yield "a long header", (2**63 - 1).to_bytes(8, "little") + whole[8:]
    yield "no header", bytes(8) + whole[8:]
    for value in ([], "x", 7, None, {name: []}, {name: {}}, {name: {**header[name], "shape": None}}):
        yield f"header {value!r:.60}", made(value)
    for text in (b"{", b"\xff\xff", b'{"a": ' + b"9" * 5_000 + b"}", b"[" * 50_000):
        yield f"header {text[:20]!r}", made(text)
    for shape in ([-1], [10**30], ["x"], [1.5], [2**63, 2**63], [2**62, 2**62], "12", [[1]], [True]):
        yield f"shape {shape}", changed(shape=shape)
    for offsets in ([0], [], [0, 10**18], [-8, 0], [8, 0], ["a", "b"], [0, 1, 2]):
        yield f"offsets {offsets}", changed(data_offsets=offsets)
    for dtype in ("F128", "", 7, None, "os.system", "F16"):
        yield f"dtype {dtype}", changed(dtype=dtype)


YAML = {
    "nothing": "", "a list": "- a\n", "a text": "x", "a number": "7", "half": "a: [", "twice": "a: 1\na: 2\n",
    "an alias": "a: &a [1]\nb: *a\n", "int": "a: !!int ''\n", "bool": "a: !!bool foo\n", "time": "a: !!timestamp x\n",
    "python": "a: !!python/object/apply:os.system ['true']\n", "a tag": "a: !evil x\n",
    "directive": "%YAML 9.9\n---\na: 1\n",
    "two documents": "a: 1\n---\nb: 2\n", "deep": "[" * 5_000, "tab": "a:\n\t- b\n", "zero": "a: \0\n",
    "bell": "a: \x07\n",
    "merge": "<<: 7\n", "a key of keys": "? [a]\n: b\n", "a key of a mapping": "? {a: 1}\n: b\n",
}  # fmt: skip
"""Files of YAML that are no mapping of plain values, also none of ours."""

FRONT = {
    "tags": [7, "kdhub", {"a": 1}, [7], [None]], "license": [7, [], {"a": 1}, True], "base_model": [7, {"a": 1}, [7]],
    "model-index": ["x", 7, {}, [7], [{"results": 7}], [{"results": [{}]}], [{"results": [{"dataset": [],
    "metrics": []}]}],
                    [{"results": [{"dataset": {"name": "a"}, "metrics": [{"type": "x", "value": "1"}]}]}],
                    [{"results": [{"dataset": {"name": 7}, "metrics": []}]}],
                    [{"results": [{"dataset": {"name": "a"}, "metrics": [{"type": "x", "value": 1,
                    "args": {"member": []}}]}]}]],
    "kdhub": ["x", [], {"method": "x"}, {"members": []}, {"members": {"a": 7}}, {"cost": []}, {"cost": {"disk": "x"}},
              {"recipe_sha256": 7}, {"kind": []}],
}  # fmt: skip
"""Key of a card's front matter -> what may not stand there."""

REPORT = {
    "measures": ["x", {}, 7, [7], [{}], [{"metric": 7, "subject": "student"}], [{"metric": "x", "subject": []}],
                 [{"metric": "x", "subject": "student", "value": "1"}], [{"metric": "x", "subject": "student",
                 "value": True}],
                 [{"metric": "x", "subject": "student", "value": 1, "variant": []}],
                 [{"metric": "x", "subject": "student", "value": 1, "variant": {"a": [1]}}],
                 [{"metric": "x", "subject": "student", "value": 1, "dataset": 7}],
                 [{"metric": "x", "subject": "student", "value": 1, "examples": "x"}],
                 [{"metric": "x", "subject": "student", "value": 1, "higher_is_better": "x"}],
                 [{"metric": "x", "subject": "student", "value": 1, "low": "x"}],
                 [{"metric": "x", "subject": "student", "value": 1, "unit": 7}]],
    "notes": ["x", {}], "schema": [2, "1", None, []],
    "facts": ["x", [], {"primary": 7}, {"primary": {"rows": 7}}, {"truncated": []}, {"skipped": {"a": "x"}}],
}  # fmt: skip
"""The same of a report."""

MANIFEST = {
    "schema": [2, "1", None, []], "task": [7, "", None, []], "kind": ["space", 7, None], "name": [7, []],
    "files": [{}, [], "x", {"x": 7}, {"../x": {"size": 1, "sha256": "0" * 64}}, {"/x": {"size": 1, "sha256": "0" * 64}},
              {"a.json": {"size": "1", "sha256": "0" * 64}}, {"a.json": {"size": 1, "sha256": "0"}},
              {"a.json": {"size": True, "sha256": "0" * 64}}, {".ssh/x": {"size": 1, "sha256": "0" * 64}}],
    "provided_by": ["x", [], {"distribution": 7}], "method": ["x", {"name": 7}], "teacher": [7, {"id": []}],
    "withheld": ["x", [7]], "data": [{}, "x", [7], [{"name": 7}], [{"fingerprint": []}]],
}  # fmt: skip

PROVENANCE = {
    "student": ["x", [], {"start": "x"}, {"start": {"base_model": 7}}, {"usage": 7}, {"limits": "x"}, {"members": []},
                {"front_matter": []}, {"withheld": [7]}, {"parameters": "x"}],
    "teacher": ["x", {"id": 7}, {"terms": 7}, {"members": [7]}], "method": ["x", {"name": 7}, {"tags": "x"}],
    "data": ["x", [], {"use": "x"}, {"use": [7]}, {"use": [{"rows": "x"}]}, {"use": [{"tags": "x"}]}],
    "spent": ["x", {"logits": "x"}, {"logits": {"requests": "x"}}], "signals": [[], {"x": 7}, {"x": {"computed": "x"}}],
    "training": ["x", {"steps": "x"}, {"seconds": "x"}], "environment": ["x", {"versions": []}, {"hardware": "x"}],
    "lineage": ["x", [7], [{"via": "x"}]], "pictures": ["x", [7], [{"file": 7}]], "chained": ["x", {"a": 7}],
    "seed": ["x", [], 1.5], "language": [7, [7]],
}  # fmt: skip

RECIPE = {
    "schema": [2, "x", []], "task": [7, [], "", "no-such-task"], "method": [7, {}, "no-such-method"], "seed": ["x",
    -1, 10**30, []],
    "teacher": [7, [], "", {"source": 7}, {"source": ""}, "no-such-teacher", "no:such", {"source": "linear:1",
    "x": 1},
                "linear:x", "linear:", {"source": "roles"}, {"source": "roles", "a": 7}],
    "student": [7, [], "no-such", "mlp:x", "mlp:", {"source": "mlp:6", "x": 1}, {"source": "mlp:6", "dtype": "x"}],
    "data": [7, [], {"train": 7}, {"train": [7]}, {"train": "no-such"}, {"train": {"source": "toy-points",
    "split": []}},
             {"train": {"source": "toy-points", "limit": "x"}}, {"train": {"source": "toy-points", "x": 1}}],
    "options": [7, [], {"batch_size": 0}, {"batch_size": "x"}, {"no_such": 1}, {"lr": "x"}, {"epochs": -1},
    {"epochs": []}],
    "evaluation": [7, [], {"data": 7}, {"x": 1}, {"options": 7}, {"options": {"x": 1}}, {"cost": "x"}],
    "on_bad_rows": ["x", 7], "summary": [7, []], "no_such_key": [1],
}  # fmt: skip


def replaced(whole: dict[str, Any], wrong: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A whole mapping with one key as it may not be."""
    for key, values in wrong.items():
        for value in values:
            yield f"{key}={value!r:.60}", {**whole, key: value}


# -- files of data --------------------------------------------------------------------------------------------


class Pickled:
    """Unpickled, it imports what must not be imported."""

    def __reduce__(self) -> Any:
        return __import__, ("evil_canary",)


def npy(values: Any) -> bytes:
    made = io.BytesIO()
    np.save(made, np.asarray(values))
    return made.getvalue()


def npz(arrays: dict[str, Any]) -> bytes:
    """Of arrays, or of what stands in their place as bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            archive.writestr(f"{name}.npy", values if isinstance(values, bytes) else npy(values))
    return made.getvalue()


def _headed(shape: str) -> bytes:
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(8)


ARRAYS = {
    "nothing": b"", "pickled": npy(np.array([Pickled()], object)), "a pickle": pickle.dumps(Pickled()),
    "many": _headed("(1000000000000,)"), "fewer than none": _headed("(-1,)"), "more": _headed("(7,)"),
    "code": _headed("__import__('evil_canary')"), "deep": _headed("(" * 300), "no shape": _headed("'x'"),
    "half": npy([1, 2, 3])[:-9], "version 9": b"\x93NUMPY\x09" + npy([1])[7:], "mapping": _headed("{}"),
}  # fmt: skip
"""Contents of `.npy` files that are none, or hold more than numbers."""


def archives(whole: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Contents of `.npz` files that are damaged, or hold such arrays."""
    content = npz(whole)
    yield from (("nothing", b""), ("half", content[: len(content) // 2]), ("text", b"x" * 500), *ARRAYS.items())
    listed = content.index(b"PK\1\2")
    for name, at, value in (("locked", 8, b"\1"), ("packed otherwise", 10, b"\x63"), ("a bomb", 24, b"\0\0\0\xef")):
        yield name, content[: listed + at] + value + content[listed + at + len(value) :]
    for name in whole:
        for what, values in ARRAYS.items():
            yield f"{name}, {what}", npz({**whole, name: values})


GRAPH = {
    "edges": [[0, 1], [1, 2], [2, 3]], "y": [0, 1, 0, 1], "features": np.eye(4), "train": [0, 1], "val": [2],
    "test": [3],
}  # fmt: skip
NO_GRAPH = {
    "edges": [[[0, 1]], [0, 1], [[0, 9]], [[-1, 0]], [[0, 1, 2]], [["a", "b"]], [[0.5, 1]], 7],
    "y": [7, [[0], [1], [0], [1]], [0], np.zeros(4, "V3")],
    "features": [[1], [["a"]] * 4, [[np.nan]] * 4, np.zeros((4, 1, 1)), np.zeros((3, 2)), np.zeros((4, 2), "V2")],
    "train": [[0, 0], [9], [-1], 7, [[0]], [0.5], ["a"], [0, 2]], "texts": [["a"], 7, [1, 2, 3, 4]],
}  # fmt: skip
WORDS = {"feat_indices": [0, 1, 2, 0], "feat_indptr": [0, 1, 2, 3, 4], "num_features": 3}
NO_WORDS = {
    "feat_indices": [[0, 1, 2, 9], [0, 1, 2, -1], [[0]], ["a"]], "num_features": [[3], "x", 2.5, 2],
    "feat_indptr": [[0, 4], [0, 3, 2, 1, 4], [0, 1, 2, 3, 99], [-1, 1, 2, 3, 4], [0, 1, 2, 3, 2**62], 7],
}  # fmt: skip
XML = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{}<graph edgedefault="directed">{}</graph></graphml>'
_LAUGHS = "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefghi", "bcdefghij"))
NETWORKS = {
    "nothing": "", "half": "<graphml>", "no graph": "<graphml/>", "no node": XML.format("", ""),
    "laughs": f"<!DOCTYPE x [<!ENTITY a 'ha'>{_LAUGHS}]>" + XML.format("", '<node id="&j;"/>'),
    "a file": '<!DOCTYPE x [<!ENTITY a SYSTEM "/etc/passwd">]>' + XML.format("", '<node id="&a;"/>'),
    "unknown key": XML.format("", '<node id="0"><data key="d">x</data></node>'),
    "unknown type": XML.format('<key id="d" for="node" attr.name="text" attr.type="os.system"/>', ""),
    "no text": XML.format("", '<node id="0"/><node id="1"/><edge source="0" target="1"/>'),
    "deep": "<a>" * 50_000, "not UTF-8": b"<graphml>\xff</graphml>".decode("latin-1"),
}  # fmt: skip

POINTS = [[[1]], [["a", "b"]], [{"x": 1}], {"points": "x"}, {}, None, "x", True, -1, [[9, 9]], [[1, 2, 3]], [[[1, 2]]],
          [[float("nan"), 1]], [[float("inf"), 1]], [None], float("inf"), {"count": "7"}]  # fmt: skip
LINES = {
    "not UTF-8": b"\xff\xfe1", "one column": b"x,y\n1\n", "three": b"1,2,3\n", "no x": b"y\n1\n", "NaN": b"nan,1\n",
    "beyond": b"1e400,1\n", "outside": b"9,9\n", "text": b"x,y\na,b\n", "long": b'"' + b"x" * 200_000,
    "a zero byte": b"1\0,2\n",
}  # fmt: skip
DENSITIES = {**ARRAYS, "texts": npy([["a"]]), "below zero": npy([[-1.0]]), "NaN": npy([[np.nan]]), "flat": npy([1.0]),
             "empty": npy(np.zeros((0, 2))), "deeper": npy([[[1.0]]]), "structures": npy(np.zeros((2, 2), "V3")),
}  # fmt: skip


def matlab() -> Iterator[tuple[str, bytes]]:
    """Contents of `.mat` files without points, damaged, or that claim more than they hold."""
    from scipy.io import savemat

    def made(**values: Any) -> bytes:
        file = io.BytesIO()
        savemat(file, values)
        return file.getvalue()

    cells, deep = np.array([[1.0, 2.0]], object), np.array([[1.0]])
    for _ in range(30):
        deep, inner = np.empty((1, 1), object), deep
        deep[0, 0] = inner
    whole, of_cells, head = made(annPoints=[[1.0, 2.0]]), made(annPoints=cells), made(a=1)[:128]
    yield from (("nothing", b""), ("half", whole[:-20]), ("text", b"x" * 500), ("a pickle", pickle.dumps(Pickled())))
    yield "bomb", head + struct.pack("<II", 15, len(bomb := zlib.compress(bytes(2**21)))) + bomb
    for sizes in ((2**30, 1), (2**30, 2**30), (-1, 2)):
        yield f"cells {sizes}", of_cells.replace(struct.pack("<2i", 1, 2), struct.pack("<2i", *sizes), 1)
    yield "version 7.3", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n\x1a\n"
    for name, values in {
        "deep": {"annPoints": deep}, "text": {"annPoints": "x"}, "three": {"annPoints": [1, 2, 3]},
        "NaN": {"annPoints": [[np.nan, 1]]}, "other": {"x": 1}, "no structure": {"image_info": 7},
        "no location": {"image_info": {"x": 1}}, "outside": {"annPoints": [[9, 9]]},
        "no numbers": {"image_info": {"location": "x"}}, "cells": {"annPoints": np.array([[deep, deep]], object)},
    }.items():  # fmt: skip
        yield f"of {name}", made(**values)


# -- folders of students --------------------------------------------------------------------------------------

STUDENTS: dict[str, list[dict[str, Any]]] = {
    "node-classification": [{"network": "gcn", "graph": "0" * 32, "columns": "", "inputs": 4, "width": 8, "layers": 2,
                             "heads": 1, "dropout": 0.1, "classes": ["a", "b"]}],
    "counting": [{"counter": {"network": "csrnet", "front": [2, "M", 2, "M", 2, "M"], "back": [2], "scale": 1.0}}],
    "image-generation": [{"network": "denoiser-mlp", "settings": {"width": 8, "blocks": 1}, "shape": [1, 4, 4],
                          "prediction": "v", "classes": ["a"], "has_null": True, "steps": 4, "guidance": 1.0}],
    "image-classification": [
        {"network": name, "shape": [1, 8, 8], "classes": ["a", "b"], **more} for name, more in {
            "vit": {"patch": 2, "width": 8, "layers": 1, "heads": 2},
            "vit-pool": {"widths": [8, 16], "heads": 2, "layers": 2, "patch": 2, "window": 2, "all_pairs": True},
            "nested-vit": {"patch": 2, "width": 8, "layers": 2, "heads": 2,
                           "spaces": {"a": {"layers": [1, 2], "hidden": [4, 8], "ratio": [1], "heads": [1]}}},
            "resnet": {"depths": [1, 1, 1], "width": 4}, "mlp": {"hidden": [8]}, "timm": {"name": "resnet18"},
        }.items()],
    "item-sets": [{"belief": 1, "items": ["a", "b"], "classes": ["a", "b"], "options": {}, "sources": ["x"],
                   "trust": {}},
                  {"network": "mlp", "shape": [2], "hidden": [4], "items": ["a", "b"], "classes": ["a", "b"]}],
    "sequential-recommendation": [{"network": "thought-space", "items": ["a", "b"], "texts": ["a", "b"], "text": None},
                       {"network": "popularity", "items": ["a", "b"]}],
    "fill-mask": [{"network": "nested-text", "source": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "vocab_size": 20}, "classes": 20, "spaces": {"a": {"layers": [1, 2],
                   "hidden": [4], "ratio": [1], "heads": [1]}}}],
    "relation-extraction": [{"extractor": {"network": "lstm", "words": ["a"], "letters": ["a"],
                             "sizes": {"width": 8, "words": 4, "chars": 4, "dropout": 0.3}}}],
}  # fmt: skip
"""Task -> configurations of its students that are kdhub's own."""
NO_VALUES: list[Any] = [
    10**7, 10**12, 2**62, -1, 0.5, "os.system", None, {"x": 1}, [10**6, 10**6, 10**6], ["M"] * 5_000, [10**9], [],
    {"a": {"layers": list(range(1, 300)), "hidden": list(range(1, 300)), "ratio": list(range(1, 300)), "heads": [1]}},
]  # fmt: skip


def students() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, task and configuration of students that cannot be, whatever their weights are."""
    for task, configs in STUDENTS.items():
        for config in configs:
            of = config.get("network", "")
            for place, (_, key) in enumerate(_places(config)):
                for value in NO_VALUES:
                    made = copy.deepcopy(config)
                    holder, _ = list(_places(made))[place]
                    holder[key] = value
                    yield f"{task}, {of} {key}={value!r:.40}", task, {"kdhub": 1, "task": task, **made}


PIPELINE = {
    "model_index.json": {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"],
                         "scheduler": ["diffusers", "DDIMScheduler"]},
    "unet/config.json": {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1,
                         "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types":
                         ["UpBlock2D"] * 2, "layers_per_block": 1, "norm_num_groups": 4},
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "num_train_timesteps": 10},
}  # fmt: skip
NO_PIPELINE: dict[str, dict[str, list[Any]]] = {
    "model_index.json": {"unet": [7, [], ["os", "system"], ["evil_canary", "Model"], ["diffusers", "UNet3D"]],
                         "scheduler": [None, ["diffusers", "UNet2DModel"], ["diffusers", 7], ["os", "system"]],
                         "vae": [["evil_canary", "X"], ["diffusers", "AutoencoderKL"], "x"], "auto_map": ["x"],
                         "text_encoder": [["transformers", "AutoModel"], ["transformers", "CLIPTextModel"]]},
    "unet/config.json": {"block_out_channels": [[10**9], 7, [], ["x"]], "layers_per_block": [10**8, "x", -1],
                         "sample_size": ["x", []], "down_block_types": [["os.system"], 7, ["DownBlock2D"] * 10**5],
                         "num_class_embeds": [10**12], "quantization_config": [{"quant_method": "evil_canary"}, 7],
                         "auto_map": [{"AutoModel": "evil_canary.Model"}], "act_fn": ["os.system", 7]},
    "scheduler/scheduler_config.json": {"num_train_timesteps": [10**12, 10**9, "x", -1, None], "trained_betas":
                                        ["x", [2, 2], {}], "beta_schedule": ["os.system", 7], "prediction_type": [7]},
    "drawing.json": {"steps": ["x"], "classes": [7]},
}  # fmt: skip
