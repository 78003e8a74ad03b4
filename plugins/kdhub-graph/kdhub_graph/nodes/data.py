"""Graphs as data sets: splits `nodes`, `edges`, `train`, `validation` and `test`, whose rows name graph and node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.data.shared import Shared
from kdhub.errors import DataError, UsageError
from kdhub_graph.nodes import reading
from kdhub_graph.nodes.reading import PARTS, Raw

VERSION = 1
DRAWN = ("random", "stratified")


def graph(argument: str, **options: Any) -> Data:
    """A graph of files: a folder with `nodes` (`id`, `text` or `features`, `label`) and `edges` (two columns of ids),
    as JSONL, TSV, CSV or Parquet, and perhaps the ids of `train`, `validation` and `test`; an npz or graphml file.

    Args:
        argument: folder or file, also below KDHUB_DATA. options: see `of_raw`.
    """
    path = reading.find(argument)
    key = {"files": reading.digests(path)}
    return of_raw(f"graph:{argument}", lambda: _read(path, str(key)), key, **options)


@lru_cache(4)
def _read(path: Path, _: str) -> Raw:
    return reading.read(path)


def of_networkx(network: Any, name: str = "networkx", **options: Any) -> Data:
    """A `networkx` graph as a data set, for Python: nodes have `label`, and `text` or `features`."""
    import hashlib

    raw = reading.checked(reading.of_networkx(network), name)
    content = repr([raw.ids, raw.labels, raw.texts, raw.edges.tolist(), None if raw.features is None else
                    raw.features.tolist()])  # fmt: skip
    return of_raw(name, lambda: raw, {"content": hashlib.sha256(content.encode()).hexdigest()}, **options)


def of_raw(
    name: str,
    read: Callable[[], Raw],
    key: dict[str, Any],
    *,
    split: str | None = None,
    sizes: Sequence[float] = (0.6, 0.2),
    seed: int = 0,
    words: int | None = None,
    masked: float = 0.0,
    inductive: bool = False,
    directed: bool = False,
    licence: str = "",
) -> Data:
    """
    Args:
        split: public, the files' own; random; or stratified, with the same shares of each class. If unset public where
            the files have one, else random.
        sizes: of train and validation where the split is drawn, shares below 1 or numbers of nodes; the rest is test.
        seed: of the split and of what is masked.
        words: features are only the so many most frequent words; of a graph with texts alone, 1000 unless stated.
        masked: share of the training labels that are withheld, from 0 to below 1; their rows stay.
        inductive: rows of train name a graph of the training nodes alone; others the whole.
        directed: an edge carries messages from its first node to its second one alone, not both ways.

    Raises:
        UsageError: an option out of its range. DataError: no such split, or a class that is in test alone.
    """
    if split not in (None, "public", *DRAWN):
        raise UsageError(f"{name}: split must be public, random or stratified (split={split!r})")
    if not 0 <= masked < 1:
        raise UsageError(f"{name}: masked must be at least 0 and below 1 (masked={masked})")
    if len(sizes) != 2 or min(sizes) < 0 or sum(size for size in sizes if size < 1) >= 1:
        raise UsageError(f"{name}: sizes are of train and validation and leave some for test (sizes={list(sizes)})")
    if words is not None and words < 1:
        raise UsageError(f"{name}: words must be at least 1 (words={words})")
    shaping = {"version": VERSION, **key, "words": words, "directed": directed}
    drawing = {"split": split, "sizes": list(sizes), "seed": seed}
    whole = Shared(shaping, lambda: arrays_of(read(), words, directed))

    @lru_cache(1)
    def parts() -> dict[str, np.ndarray]:
        return parts_of(read(), name, split, sizes, seed)

    def of_training() -> dict[str, np.ndarray]:
        return _within(arrays_of(read(), words, directed), parts()["train"])

    part = Shared({**shaping, "drawn": drawing, "inductive": True}, of_training) if inductive else whole

    def nodes() -> Iterator[dict[str, Any]]:
        raw = read()
        for n, (known, label) in enumerate(zip(raw.ids, raw.labels)):
            yield {"graph": whole.name, "node": n, "id": known, "label": label}

    def edges() -> Iterator[dict[str, Any]]:
        raw = read()
        yield from ({"source": raw.ids[u], "target": raw.ids[v]} for u, v in raw.edges.tolist())

    def rows(of: str) -> Iterator[dict[str, Any]]:
        labels, chosen = read().labels, parts()[of]
        hidden = set()
        if of == "train" and masked:
            draw = np.random.default_rng([seed, 1])
            hidden = set(draw.choice(chosen, round(masked * len(chosen)), replace=False).tolist())
        for n, node in enumerate(chosen.tolist()):
            named = {"graph": part.name, "node": n if inductive else node} if of == "train" else {"graph": whole.name}
            yield {"node": node, **named, "label": None if node in hidden else labels[node]}

    splits = {"nodes": nodes, "edges": edges, **{of: lambda of=of: rows(of) for of in PARTS}}
    made = {**shaping, "drawn": drawing, "masked": masked, "inductive": inductive}
    used = [whole, part] if inductive else [whole]
    return Data.from_rows(name, splits, key=made, licence=licence, shared=used, format="rows")


def arrays_of(raw: Raw, words: int | None, directed: bool) -> dict[str, np.ndarray]:
    """The arrays of `kdhub_graph.nodes.graphs`."""
    n, ends = len(raw.ids), raw.edges
    if not directed:
        ends = np.concatenate([ends, ends[:, ::-1]])
    order = np.lexsort((ends[:, 0], ends[:, 1]))
    ends = ends[order]
    kept = np.ones(len(ends), bool)
    kept[1:] = (ends[1:] != ends[:-1]).any(1)
    # Of edges that go both ways each is there twice where files list both directions: that is no doubled edge.
    listed, many = np.unique(raw.edges, axis=0, return_counts=True)
    raw.odd("edges that are listed more than once, which count once", listed[many > 1])
    if not directed:
        pairs, times = np.unique(np.sort(listed, axis=1), axis=0, return_counts=True)
        if both := int((times > 1).sum()):
            said = "all carry messages both ways (directed: true keeps directions)"
            raw.odd(f"edges in one direction, and {both} in both: {said}", pairs[times == 1])
    ends = ends[kept]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ends[:, 1], minlength=n))]).astype(np.int64)
    made = {"indptr": indptr, "indices": ends[:, 0].astype(np.int32), **_features(raw, words)}
    texts = raw.texts
    if texts is None and raw.words is not None:
        texts = [" ".join(f"w{w}" for w in row) for row in raw.words]
    if texts is not None:
        each = [text.encode() for text in texts]
        made["text"] = np.frombuffer(b"".join(each) or b" ", np.uint8)
        made["text_at"] = np.concatenate([[0], np.cumsum([len(one) for one in each])]).astype(np.int64)
    return made


def _features(raw: Raw, words: int | None) -> dict[str, np.ndarray]:
    """What students see of nodes: given numbers, or which words they have (the most frequent ones, by number of nodes;
    equally frequent ones in their order)."""
    if raw.features is not None:
        if words is None:
            whole = (raw.features == raw.features.astype(np.uint8)).all() if raw.features.min() >= 0 else False
            return {"features": raw.features.astype(np.uint8) if whole else raw.features}
        if not set(np.unique(raw.features)) <= {0, 1}:
            raise UsageError("words chooses among features that are 0 or 1, and these are others", hint="leave it out")
        rows: Sequence[Sequence[Any]] = [np.flatnonzero(row).tolist() for row in raw.features]
    elif raw.words is not None:
        rows, words = [row.tolist() for row in raw.words], words or raw.width
    else:
        rows, words = [sorted(set(text.lower().split())) for text in raw.texts], words or 1000
    if raw.words is not None and words >= raw.width:
        chosen = list(range(raw.width))
    else:
        many = Counter(word for row in rows for word in row)
        chosen = sorted(sorted(many, key=lambda w: (-many[w], w))[:words])
    at = {word: i for i, word in enumerate(chosen)}
    made = np.zeros((len(rows), len(chosen)), np.uint8)
    for n, row in enumerate(rows):
        made[n, [at[word] for word in row if word in at]] = 1
    return {"features": made, "columns": np.frombuffer("\n".join(map(str, chosen)).encode(), np.uint8)}


def _within(arrays: dict[str, np.ndarray], nodes: np.ndarray) -> dict[str, np.ndarray]:
    """The graph of some nodes and the edges between them; they are numbered in the order given."""
    at = np.full(len(arrays["indptr"]) - 1, -1)
    at[nodes] = np.arange(len(nodes))
    degrees = np.diff(arrays["indptr"])
    source, target = at[arrays["indices"]], at[np.repeat(np.arange(len(degrees)), degrees)]
    inside = (source >= 0) & (target >= 0)
    order = np.lexsort((source[inside], target[inside]))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(target[inside], minlength=len(nodes)))]).astype(np.int64)
    made = {**arrays, "indptr": indptr, "indices": source[inside][order].astype(np.int32)}
    made["features"] = arrays["features"][nodes]
    if "text" in arrays:
        blob, ends = arrays["text"].tobytes(), arrays["text_at"]
        each = [blob[ends[n] : ends[n + 1]] for n in nodes]
        made["text"] = np.frombuffer(b"".join(each) or b" ", np.uint8)
        made["text_at"] = np.concatenate([[0], np.cumsum([len(one) for one in each])]).astype(np.int64)
    return made


def parts_of(raw: Raw, name: str, split: str | None, sizes: Sequence[float], seed: int) -> dict[str, np.ndarray]:
    """Positions of the nodes of train, validation and test.

    Raises:
        DataError: the files have no split of their own, or one without a class that is in test.
    """
    split = split or ("public" if raw.parts else "random")
    if split == "public":
        if not raw.parts or "train" not in raw.parts:
            raise DataError(f"{name} has no split of its own", hint="options: {split: random}")
        parts = {part: raw.parts.get(part, np.zeros(0, int)) for part in PARTS}
    else:
        parts = _drawn(raw, sizes, seed, split == "stratified")
    if none := [part for part in PARTS if not len(parts[part])]:
        raise DataError(f"{name}: the split leaves no nodes for {', '.join(none)}", hint="other sizes")
    known = {raw.labels[n] for n in parts["train"]}
    for part in PARTS[1:]:
        if alone := [n for n in parts[part] if raw.labels[n] is not None and raw.labels[n] not in known]:
            classes = ", ".join(sorted({str(raw.labels[n]) for n in alone}))
            raise DataError(
                f"{name}: no node of train has the classes {classes}, which {part} has (nodes {raw.named(alone)})",
                hint="split: stratified, or another seed",
            )
    return parts


def _drawn(raw: Raw, sizes: Sequence[float], seed: int, stratified: bool) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    labelled = np.asarray([n for n, label in enumerate(raw.labels) if label is not None], int)
    classes = sorted({raw.labels[n] for n in labelled})
    groups = [[n for n in labelled if raw.labels[n] == c] for c in classes] if stratified else [labelled]
    found: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for group in groups:
        order, share = draw.permutation(group), len(group) / max(1, len(labelled))
        first, second = (round(size * len(group) if size < 1 else size * share) for size in sizes)
        for part, some in zip(PARTS, np.split(order, [first, first + second])):
            found[part].append(some)
    return {part: np.sort(np.concatenate(some)).astype(int) for part, some in found.items()}


def papers(
    nodes: int = 240, classes: int = 3, degree: float = 4.0, homophily: float = 0.8, features: int = 24,
    texts: bool = True, world: int = 0, **options: Any,
) -> Data:  # fmt: skip
    """A generated graph of texts: papers with a few words of their field among many others, which mostly cite papers of
    their field.

    Args:
        nodes: of all fields; classes: fields.
        degree: edges of a node, in the mean; homophily: share of the edges that are drawn within a field.
        features: most frequent words that students see; texts have 40 words of each field and 40 of none.
        texts: whether nodes have texts. A graph of 200,000 nodes for trials of speed needs none.
        world: seed of the graph; options: see `of_raw`.

    Raises:
        UsageError: an option out of its range.
    """
    if nodes < 8 * classes or classes < 2 or degree <= 0 or not 0 <= homophily <= 1 or features < 1:
        raise UsageError(
            "papers takes at least 8 nodes a class, 2 classes, 1 feature, a degree above 0 and a homophily from 0 to 1 "
            f"(nodes={nodes}, classes={classes}, features={features}, degree={degree}, homophily={homophily})"
        )
    key = {"papers": [nodes, classes, degree, homophily, features, texts, world], "version": VERSION}

    @lru_cache(1)
    def made() -> Raw:
        return _generated(nodes, classes, degree, homophily, features, texts, np.random.default_rng(world))

    options = {"words": features, **options} if texts else options
    return of_raw("papers", made, key, licence="cc0-1.0", **options)


def hop_prompts(
    argument: str, *, form: str = "text", options: dict[str, Any] | None = None, reader: str = "", **how: Any
) -> Data:
    """The prompts of a graph's labelled nodes as texts with their classes, to tune a reader on (`teachers.Hops`): one
    row for each node, number of hops and order of neighbours, equal ones once.

    Args:
        argument: the graph, as `--data` takes it; options: its own.
        form: text, rows of `text` and `label`; or response, `prompt` and `response` for language models.
        reader: the start of the model that is tuned, whose tokens the budget counts; words if empty.
        how: see `prompts.Prompting`.

    Raises:
        UsageError: an unknown form or option.
    """
    from pydantic import ValidationError

    from kdhub import open_data, open_student
    from kdhub_graph.nodes.graphs import open_graph
    from kdhub_graph.nodes.prompts import Prompter, Prompting, tokens_of, words_in

    if form not in ("text", "response"):
        raise UsageError(f"hop-prompts:{argument}: form must be text or response (form={form!r})")
    try:
        prompting = Prompting(**how)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"hop-prompts:{argument}: {first['loc'][0]}: {first['msg']}") from None
    data = open_data(argument, options=dict(options or {}))
    named = ("text", "label") if form == "text" else ("prompt", "response")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        table = data.split(split)
        of_rows = "causal-lm" if form == "response" else "text-classification"
        classes = sorted({label for label in data.split("train")["label"] if label is not None})
        start = open_student(reader, of_rows, facts={"classes": classes}) if reader else None
        count = tokens_of(start.tokenizer) if start else words_in
        made: dict[str, Prompter] = {}
        for row in table:
            if row["label"] is None:
                continue
            if row["graph"] not in made:
                said = classes if form == "response" else None
                made[row["graph"]] = Prompter(open_graph(row["graph"]), prompting, count, said)
            for text in dict.fromkeys(t for hop in made[row["graph"]].of(row["node"]) for t in hop):
                yield dict(zip(named, (text, row["label"])))

    key = {"how": prompting.model_dump(), "form": form, "reader": reader, "version": VERSION}
    key["of"] = {part: data.fingerprint(part) for part in PARTS}
    splits = {part: lambda part=part: rows(part) for part in PARTS}
    return Data.from_rows(f"hop-prompts:{argument}", splits, key=key, licence=data.licence)


LENGTH, OWN = 12, 40
"""Words of a text, and of a field."""


def _generated(
    nodes: int, classes: int, degree: float, homophily: float, features: int, texts: bool, draw: np.random.Generator
) -> Raw:
    labels = draw.permutation(np.arange(nodes) % classes)
    of = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[of], np.arange(classes + 1))
    source = draw.integers(nodes, size=round(nodes * degree / 2))
    mine = labels[source]
    near = of[starts[mine] + (draw.random(len(source)) * (starts[mine + 1] - starts[mine])).astype(int)]
    target = np.where(draw.random(len(source)) < homophily, near, draw.integers(nodes, size=len(source)))
    edges = np.unique(np.sort(np.stack([source, target], 1)[source != target], 1), axis=0)
    raw = Raw([f"p{n}" for n in range(nodes)], [f"field-{c}" for c in labels], edges)
    if not texts:
        raw.features = (draw.normal(size=(nodes, features)) + 0.5 * np.eye(classes, features)[labels]).astype(
            np.float32
        )
        raw.width = features
        return raw
    own = draw.random((nodes, LENGTH)) < 0.25
    words = draw.integers(OWN, size=(nodes, LENGTH)) + np.where(own, labels[:, None] + 1, 0) * OWN
    raw.texts = [" ".join(f"w{w}" for w in row) for row in words.tolist()]
    return raw
