"""Graphs as files have them, checked: nodes and edges of a folder, of an npz file, or of networkx.

What is wrong is refused with the ids of nodes; what is merely odd is counted, said, and left as it is or left out as
said: nothing is repaired in silence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kdhub_tasks.classes import class_name

from kdhub.data.prepare import BadRow
from kdhub.data.sources import file_source
from kdhub.errors import DataError, UsageError
from kdhub.files import given_or_shared, sha256_file
from kdhub.plain_arrays import read_arrays
from kdhub.plain_yaml import NotPlain

logger = logging.getLogger("kdhub")

PARTS = ("train", "validation", "test")
SHOWN = 5


def first_of(names: Sequence[Any], many: int) -> str:
    """The first of so many names, and how many more there are."""
    more = f" and {many - SHOWN} more" if many > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


@dataclass
class Raw:
    """A graph as it was read.

    Attributes:
        ids: of nodes, as the files have them.
        labels: the class of each, None for none.
        edges: (m, 2) positions of nodes.
        texts: of each, None where the graph has none.
        words: of each the columns that are 1, of `width`; features: (n, width), where they are not words.
        parts: train, validation and test as positions of nodes, where the files say so.
    """

    ids: list[str]
    labels: list[str | None]
    edges: np.ndarray
    texts: list[str] | None = None
    words: list[np.ndarray] | None = None
    width: int = 0
    features: np.ndarray | None = None
    parts: dict[str, np.ndarray] | None = None

    def named(self, found: Sequence[int] | np.ndarray) -> str:
        """Ids of the first of some nodes, or edges (m, 2), and how many more there are."""
        shown = [" ".join(self.ids[n] for n in np.atleast_1d(one)) for one in found[:SHOWN]]
        return first_of(shown, len(found))

    def odd(self, what: str, found: Sequence[int] | np.ndarray) -> None:
        """Count something that is let through, and say so: nodes, or edges (m, 2)."""
        if len(found):
            of = "nodes" if np.ndim(found) == 1 else "edges"
            logger.warning("%d %s (%s %s)", len(found), what, of, self.named(found))


def find(argument: str) -> Path:
    """The folder or file of a graph, as it is named or below KDHUB_DATA.

    Raises:
        UsageError: there is none.
    """
    found = given_or_shared(argument, Path.exists)
    if found is None:
        raise UsageError(
            f"graph:{argument}: there is no such folder or file",
            hint="a folder with nodes.jsonl and edges.tsv, an .npz or a .graphml file; also searched below KDHUB_DATA",
        )
    return found


def digests(path: Path) -> dict[str, str]:
    """Of the files that a graph is read from."""
    files = [path] if path.is_file() else sorted(_files(path).values())
    return {file.name: sha256_file(file) for file in files}


def read(path: Path) -> Raw:
    """Read a graph and check what no reading of it allows.

    Raises:
        DataError: ids twice, edges of unknown nodes, features that are no finite numbers, splits that overlap.
    """
    readers = {".npz": _npz, ".graphml": _networkx_file, ".gml": _networkx_file}
    if path.is_file() and path.suffix not in readers:
        raise UsageError(f"graph:{path}: expected a folder or one of {', '.join(readers)}, not {path.suffix!r}")
    raw = _folder(path) if path.is_dir() else readers[path.suffix](path)
    return checked(raw, path.name)


def checked(raw: Raw, where: str) -> Raw:
    if raw.features is not None and len(bad := np.flatnonzero(~np.isfinite(raw.features).all(1))):
        raise DataError(f"{where}: features of {len(bad)} nodes are NaN or infinite (nodes {raw.named(bad)})")
    for part, nodes in (raw.parts or {}).items():
        if len(bad := nodes[(nodes < 0) | (nodes >= len(raw.ids))]):
            raise DataError(
                f"{where}: {part} has {len(bad)} numbers of no node: {bad[:SHOWN].tolist()} of {len(raw.ids)}"
            )
        if twice := [n for n, many in Counter(nodes.tolist()).items() if many > 1]:
            raise DataError(f"{where}: {len(twice)} nodes are several times in {part} (nodes {raw.named(twice)})")
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")) if raw.parts else ():
        if len(both := np.intersect1d(raw.parts.get(one, []), raw.parts.get(other, [])).astype(int)):
            raise DataError(f"{where}: {len(both)} nodes are in {one} and in {other} (nodes {raw.named(both)})")
    loops = raw.edges[raw.edges[:, 0] == raw.edges[:, 1], 0]
    raw.odd("self-loops, which are left out: every layer reads the node itself", np.unique(loops))
    raw.edges = raw.edges[raw.edges[:, 0] != raw.edges[:, 1]]
    raw.odd("nodes without an edge", np.setdiff1d(np.arange(len(raw.ids)), raw.edges))
    raw.odd(
        "nodes without a label, which are in no split drawn here", [n for n, y in enumerate(raw.labels) if y is None]
    )
    if raw.texts is not None:
        raw.odd("nodes without a text", [n for n, text in enumerate(raw.texts) if not text.strip()])
    return raw


# -- folders --------------------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, Path]:
    """`nodes`, `edges` and splits by name, whatever their format."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        stem = file.name.partition(".")[0]
        if stem in ("nodes", "edges", *PARTS):
            if stem in found:
                raise DataError(f"{folder} has {found[stem].name} and {file.name}: which of them are its {stem}?")
            found[stem] = file
    if missing := {"nodes", "edges"} - set(found):
        raise DataError(f"{folder} has no file {' and no file '.join(sorted(missing))} (.jsonl, .tsv, .csv, .parquet)")
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in file_source(file, str(file)).rows():
        if isinstance(row, BadRow):
            raise DataError(f"{file.name}: row {number}: {row.cause}")
        rows.append(row)
    if not rows:
        raise DataError(f"{file.name} has no rows")
    return rows


def _folder(folder: Path) -> Raw:
    files = _files(folder)
    rows = _rows(files["nodes"])
    if "id" not in rows[0]:
        raise DataError(f"{files['nodes']}: nodes have no column 'id', only {', '.join(rows[0])}")
    at = _positions([str(row.get("id")) for row in rows], files["nodes"].name)
    texts = [str(row.get("text") or "") for row in rows] if any("text" in row for row in rows) else None
    given = _numbers(rows, list(at), files["nodes"].name) if any("features" in row for row in rows) else None
    if texts is None and given is None:
        raise DataError(f"{files['nodes']}: nodes have neither 'text' nor 'features', only {', '.join(rows[0])}")
    listed = _rows(files["edges"])
    if more := list(listed[0])[2:]:
        logger.warning("%s: columns after the first two are not read (%s)", files["edges"].name, ", ".join(more))
    pairs = [tuple(row.values())[:2] for row in listed]
    if short := [n for n, pair in enumerate(pairs, 1) if len(pair) < 2]:
        raise DataError(f"{files['edges'].name}: row {short[0]} has one column, and an edge is two ids")
    edges = _known(pairs, at, files["edges"].name)
    parts = {
        part: _known([(row.get("id"),) for row in _rows(files[part])], at, files[part].name)[:, 0]
        for part in PARTS
        if part in files
    }
    raw = Raw(list(at), [class_name(row.get("label")) for row in rows], edges, texts, parts=parts or None)
    if given is not None:
        raw.features, raw.width = given, given.shape[1]
    return raw


def _numbers(rows: Sequence[Mapping[str, Any]], ids: Sequence[str], where: str) -> np.ndarray:
    """(nodes, width), what the rows have as `features`."""
    made: list[np.ndarray] = []
    for name, row in zip(ids, rows):
        try:
            made.append(np.asarray(row.get("features"), np.float32))
        except (TypeError, ValueError, OverflowError):
            made.append(np.zeros(()))
        if made[-1].ndim != 1 or len(made[-1]) != len(made[0]):
            given = (
                f"{len(made[-1])} features, others have {len(made[0])}" if made[-1].ndim == 1 else "no list of numbers"
            )
            raise DataError(f"{where}: node {name} has {given}: features are equally many numbers for each node")
    return np.stack(made)


def _positions(ids: Sequence[str], where: str) -> dict[str, int]:
    twice = [name for name, many in Counter(ids).items() if many > 1]
    if twice:
        raise DataError(f"{where}: {len(twice)} ids are of several nodes ({', '.join(twice[:SHOWN])})")
    return {name: n for n, name in enumerate(ids)}


def _known(rows: Sequence[Sequence[Any]], at: Mapping[str, int], where: str) -> np.ndarray:
    """Positions of the nodes that rows name."""
    unknown = [(n, str(name)) for n, row in enumerate(rows, 1) for name in row if str(name) not in at]
    if unknown:
        named = ", ".join(f"{name!r} in row {n}" for n, name in unknown[:SHOWN])
        raise DataError(
            f"{where}: {len(unknown)} ids are of no node: {named}", hint="ids are those of the column id of the nodes"
        )
    return np.asarray([[at[str(name)] for name in row] for row in rows], np.int64).reshape(len(rows), -1)


# -- other files ----------------------------------------------------------------------------------------------


def _npz(path: Path) -> Raw:
    """`edges` (m, 2), `y`; `features`, or words as `feat_indices`, `feat_indptr` and `num_features`; perhaps `texts`,
    `train`, `val` and `test`. Nodes are numbers."""
    try:
        given = read_arrays(path)
    except NotPlain as error:
        raise DataError(f"{path.name}: {error}") from error
    if missing := {"edges", "y"} - set(given):
        raise DataError(f"{path.name} has no array {' and no '.join(sorted(missing))}; it has {', '.join(given)}")

    def of(name: str, axes: int, kinds: str = "iu") -> np.ndarray:
        """An array, of whole numbers unless other kinds are named."""
        array = given[name]
        if array.ndim != axes or array.dtype.kind not in kinds:
            wanted = "whole numbers" if kinds == "iu" else "numbers" if "f" in kinds else "values"
            raise DataError(
                f"{path.name}: {name} must be {wanted} of {axes} axes, and is {array.dtype} of {list(array.shape)}"
            )
        return array

    labels = [class_name(y) for y in of("y", 1, "iufbUS").tolist()]
    ids = [str(n) for n in range(len(labels))]
    ends = of("edges", 2).astype(np.int64)
    if ends.shape[1] != 2:
        raise DataError(f"{path.name}: an edge is two numbers of nodes, and edges is {list(ends.shape)}")
    if len(bad := ends[(ends < 0) | (ends >= len(ids))]):
        raise DataError(f"{path.name}: {len(bad)} edges are of no node: {bad[:SHOWN].tolist()} of {len(ids)}")
    raw = Raw(ids, labels, ends)
    if "features" in given:
        raw.features = of("features", 2, "iufb").astype(np.float32)
        raw.width = raw.features.shape[1]
    elif missing := {"feat_indices", "feat_indptr", "num_features"} - set(given):
        raise DataError(f"{path.name} has neither an array features nor words ({', '.join(sorted(missing))})")
    else:
        words, at, raw.width = of("feat_indices", 1), of("feat_indptr", 1), int(of("num_features", 0))
        if len(at) != len(ids) + 1 or at[0] != 0 or at[-1] != len(words) or (at[1:] < at[:-1]).any():
            raise DataError(f"{path.name}: feat_indptr must rise from 0 to {len(words)} in {len(ids)} steps")
        raw.words = np.split(words, at[1:-1].astype(np.int64))
        if len(bad := words[(words < 0) | (words >= raw.width)]):
            raise DataError(f"{path.name}: {len(bad)} words are none of {raw.width}: {bad[:SHOWN].tolist()}")
    if (many := len(raw.features if raw.words is None else raw.words)) != len(ids):
        raise DataError(f"{path.name}: features are of {many} nodes, and y is of {len(ids)}")
    if "texts" in given:
        raw.texts = [str(text) for text in of("texts", 1, "US")]
        if len(raw.texts) != len(ids):
            raise DataError(f"{path.name}: texts are of {len(raw.texts)} nodes, and y is of {len(ids)}")
    named = {"train": "train", "validation": "val", "test": "test"}
    raw.parts = {part: of(name, 1).astype(int) for part, name in named.items() if name in given} or None
    return raw


def _networkx_file(path: Path) -> Raw:
    import networkx

    try:
        graph = (networkx.read_graphml if path.suffix == ".graphml" else networkx.read_gml)(path)
    except Exception as error:  # networkx raises many kinds of errors for files that are none
        raise DataError(f"{path.name} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    return of_networkx(graph)


def of_networkx(graph: Any) -> Raw:
    """A `networkx` graph whose nodes have `label`, and `text` or `features`.

    Raises:
        DataError: some nodes have neither.
    """
    at = _positions([str(node) for node in graph.nodes], "the networkx graph")
    rows = [values for _, values in graph.nodes(data=True)]
    edges = np.asarray([(at[str(u)], at[str(v)]) for u, v in graph.edges()], np.int64).reshape(-1, 2)
    raw = Raw(list(at), [class_name(row.get("label")) for row in rows], edges)
    if all("features" in row for row in rows):
        raw.features = _numbers(rows, raw.ids, "the networkx graph")
        raw.width = raw.features.shape[1]
    if any("text" in row for row in rows):
        raw.texts = [str(row.get("text", "")) for row in rows]
    elif raw.features is None:
        raise DataError("nodes of the networkx graph have neither 'text' nor 'features'")
    return raw
