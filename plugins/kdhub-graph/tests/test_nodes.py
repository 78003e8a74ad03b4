"""Graphs as data sets, batches of nodes, and hop prompts."""

from __future__ import annotations

import json
import logging
import zlib

import numpy as np
import pytest
import torch
from kdhub_graph.methods.lingugkd import LinguGkd
from kdhub_graph.nodes.data import of_networkx
from kdhub_graph.nodes.graphs import open_graph
from kdhub_graph.nodes.prompts import Prompter, Prompting, tokens_of, words_in
from kdhub_graph.nodes.students import _built

import kdhub
from kdhub.errors import DataError, TeacherError, UsageError
from kdhub.student import BuildContext

KINDS = ("gcn", "sage", "gat", "gin", "node-mlp")


def folder_of(path, nodes, edges, **splits):
    path.mkdir(exist_ok=True)
    (path / "nodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nodes))
    head = "source\ttarget\n" if len(edges[0]) == 2 else "source\n"
    (path / "edges.tsv").write_text(head + "".join("\t".join(edge) + "\n" for edge in edges))
    for name, ids in splits.items():
        (path / f"{name}.tsv").write_text("id\n" + "".join(f"{i}\n" for i in ids))
    return path


def nodes(n=12, **first):
    rows = [{"id": f"n{i}", "text": f"word{i} {'red' if i % 2 else 'blue'}", "label": "ab"[i % 2]} for i in range(n)]
    rows[0] |= first
    return rows


RING = [(f"n{i}", f"n{(i + 1) % 12}") for i in range(12)]
SPLIT = {"train": ["n0", "n1", "n2"], "validation": ["n3"], "test": ["n4", "n5"]}


def test_a_folder_is_a_graph_with_its_own_split(tmp_path, caplog):
    edges = [*RING, ("n3", "n3"), ("n0", "n1"), ("n1", "n0")]
    given = nodes(13, label=-1)  # the last one has no edge
    given[2]["text"] = ""
    with caplog.at_level(logging.WARNING, "kdhub"):
        data = kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', given, edges, **SPLIT)}", options={"words": 2})
        row = data.split("train")[0]
    graph = open_graph(row["graph"])
    assert (row["node"], row["label"]) == (0, None) and data.split("test")["node"] == [4, 5]
    assert graph.neighbours(0).tolist() == [1, 11] and graph.degrees.tolist() == [2] * 12 + [0]
    assert graph.features.tolist()[:2] == [[1, 0], [0, 1]] and graph.text(1) == "word1 red"
    for said in (
        "1 self-loops, which are left out: every layer reads the node itself (nodes n3)",
        "1 nodes without an edge (nodes n12)",
        "1 nodes without a label, which are in no split drawn here (nodes n0)",
        "1 nodes without a text (nodes n2)",
        "1 edges that are listed more than once, which count once (edges n0 n1)",
        "11 edges in one direction, and 1 in both: all carry messages both ways (directed: true keeps directions) "
        "(edges n0 n11, n1 n2, n2 n3, n3 n4, n4 n5 and 6 more)",
    ):
        assert said in caplog.text
    assert data.split("edges")[0] == {"source": "n0", "target": "n1"}


@pytest.mark.parametrize(
    "given, edges, split, says",
    [
        (nodes(), [*RING, ("n1", "x")], {}, "edges.tsv: 1 ids are of no node: 'x' in row 13"),
        (nodes(id="n1"), RING, {}, "1 ids are of several nodes .n1"),
        (nodes(), RING, {**SPLIT, "test": ["n2", "n4"]}, "1 nodes are in train and in test .nodes n2"),
        (nodes(), RING, {**SPLIT, "train": ["n2", "n1", "n2"]}, "1 nodes are several times in train .nodes n2"),
        (nodes(), [("n1",)], {}, "edges.tsv: row 1 has one column"),
        (nodes(label="c"), RING, {**SPLIT, "train": ["n1", "n2"], "test": ["n0"]}, "classes c, which test has .*n0"),
        ([{"id": "a", "features": [1.0]}, {"id": "b", "features": None}], [("a", "b")], {}, "node b has no list of"),
        ([{"id": "a", "features": [1]}, {"id": "b", "features": [1, 2]}], [("a", "b")], {}, "node b has 2 features"),
        (nodes(), RING, {"train": ["n1"], "validation": ["x"]}, "validation.tsv: 1 ids are of no node: 'x' in row 1"),
        ([{"id": "a", "label": "x"}], [], {}, "neither 'text' nor 'features'"),
        ([{"id": "a", "features": [1.0]}, {"id": "b", "features": [float("nan")]}], [("a", "b")], {}, "nodes b"),
    ],
)
def test_what_no_reading_allows_is_refused_by_id(tmp_path, given, edges, split, says):
    edges = edges or [("a", "a")]
    with pytest.raises(DataError, match=says):
        kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', given, edges, **split)}").split("train")


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({}, "neither an array features nor words"),
        ({"features": np.eye(2)}, "features are of 2 nodes, and y is of 3"),
        ({"features": np.eye(3), "edges": [[0, 9]]}, "1 edges are of no node: .9. of 3"),
        ({"features": np.eye(3), "train": [0, 7]}, "train has 1 numbers of no node: .7. of 3"),
        ({"feat_indices": [0, 9], "feat_indptr": [0, 1, 2, 2], "num_features": 3}, "1 words are none of 3: .9."),
        ({"features": np.eye(3), "y": [-1, -1, -1]}, "leaves no nodes for train, validation, test"),
    ],
)
def test_what_arrays_do_not_hold_is_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "g.npz", **{k: np.asarray(v) for k, v in {"edges": [[0, 1]], "y": [0, 1, 0], **arrays}.items()})
    with pytest.raises(DataError, match=says):
        kdhub.open_data(f"graph:{tmp_path / 'g.npz'}").split("train")


@pytest.mark.parametrize(
    "options, says",
    [
        ({"split": "half"}, "public, random or stratified"),
        ({"masked": 1}, "masked=1"),
        ({"sizes": [0.6, 0.5]}, "leave some for test"),
        ({"words": 0}, "words=0"),
        ({"nodes": 5}, "nodes=5"),
    ],
)
def test_wrong_options_of_a_graph(options, says):
    with pytest.raises(UsageError, match=says):
        kdhub.open_data("papers", options=options).split("train")


def test_splits_follow_their_seed_and_masked_labels_are_gone_from_train_alone():
    def parts(**options):
        data = kdhub.open_data("papers", options={"nodes": 60, "split": "stratified", **options})
        return {part: data.split(part)[:] for part in ("train", "validation", "test")}

    one, two, other = parts(), parts(masked=0.5), parts(seed=1)
    assert one["train"]["node"] == two["train"]["node"] != other["train"]["node"]
    assert two["train"]["label"].count(None) == 18 and None not in two["test"]["label"]
    assert {c: one["train"]["label"].count(c) for c in set(one["train"]["label"])} == dict.fromkeys(
        ["field-0", "field-1", "field-2"], 12
    )
    within = kdhub.open_data("papers", options={"nodes": 60, "inductive": True}).split("train")
    assert len(open_graph(within[0]["graph"])) == 36 and sorted(within["node"]) == list(range(36))


def test_networkx():
    import networkx

    network = networkx.path_graph(12)
    for n in network:
        network.nodes[n].update(label="ab"[n % 2], features=[float(n), 0.5])
    data = of_networkx(network, split="stratified")
    graph = open_graph(data.split("test")[0]["graph"])
    assert graph.features[3].tolist() == [3, 0.5] and graph.neighbours(1).tolist() == [0, 2]


# -- batches ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import os

    folder = str(tmp_path_factory.mktemp("world"))
    was, os.environ["KDHUB_HOME"] = os.environ.get("KDHUB_HOME"), folder
    data = kdhub.open_data("papers", options={"nodes": 300, "degree": 3.0})
    task = kdhub.open_task("node-classification")
    table, facts = data.split("test")[:], task.survey([(data, "train")])
    graph = open_graph(facts["graph"])
    graph.whole  # noqa: B018
    if was is None:
        del os.environ["KDHUB_HOME"]
    else:
        os.environ["KDHUB_HOME"] = was
    return graph, task, facts, table["node"]


@pytest.mark.parametrize("kind", KINDS)
def test_complete_batches_are_the_whole_graph(world, kind, monkeypatch):
    graph, task, facts, test = world
    student = _built(kind, "width=8,layers=2", BuildContext(task, None, 0, facts=facts))
    chosen = np.asarray(test[:20])
    student.module.eval()
    given = []
    for batch, at in (
        (graph.whole, chosen),
        (graph.around(np.unique(chosen), [None] * student.layers_read), np.searchsorted(np.unique(chosen), chosen)),
    ):
        student.module.zero_grad()
        out = student.module({**batch, "row_at": torch.from_numpy(at)})
        torch.nn.functional.cross_entropy(out["logits"], torch.arange(len(chosen)) % 3).backward()
        given.append([out["logits"], out["hop_states"], *(p.grad for p in student.module.parameters())])
    assert len(graph.around(chosen, [None] * 2)["x"]) < len(graph)
    for n, (one, two) in enumerate(zip(*given)):
        torch.testing.assert_close(one, two, atol=1e-5 if n < 2 else 1e-4, rtol=1e-4)
    # What it takes without kdhub is a plain layer stack of torch_geometric.
    lines = student.usage().replace('load_file("{path}/model.safetensors")', "state")
    space = {"state": student.module.state_dict()}
    exec(lines, space)
    alone = space["net"](graph.whole["x"], graph.whole["edge_index"])[chosen]
    torch.testing.assert_close(alone, given[0][0], atol=1e-5, rtol=1e-4)


def test_neighbours_are_drawn_at_most_so_many_and_the_same_again(world):
    graph, *_ = world
    seeds = np.argsort(-graph.degrees)[:5]
    batch = graph.around(seeds, [2, None])
    targets = batch["edge_index"][1]
    assert torch.bincount(targets)[:5].tolist() == [2] * 5
    again = graph.around(seeds, [2, None])
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    # Weights of drawn edges grow as others are left out: their sum over many draws is that of all.
    assert batch["norm"][0] > graph.around(seeds, [None, None])["norm"][: graph.degrees[seeds[0]]].min()


# -- prompts ------------------------------------------------------------------------------------------------------


def test_prompts_go_breadth_first_within_the_budget(tmp_path):
    edges = [("n0", "n1"), ("n0", "n2"), ("n1", "n3"), ("n2", "n3"), ("n4", "n5")]
    data = kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', nodes(), edges)}")
    graph = open_graph(data.split("train")[0]["graph"])
    prompts = Prompter(graph, Prompting(budget=64))
    assert prompts.of(0) == [
        ["word0 blue"],
        ["word0 blue\nneighbour 1: word1 red\nneighbour 1: word2 blue"],
        ["word0 blue\nneighbour 1: word1 red\nneighbour 1: word2 blue\nneighbour 2: word3 red"],
    ]
    assert prompts.of(4)[1] == prompts.of(4)[2] != prompts.of(4)[0], "an empty hop has the prompt of the one before"
    assert prompts.of(6)[0] == prompts.of(6)[2], "so has a node without an edge"
    several = Prompter(graph, Prompting(budget=64, prompts=5)).of(0)[1]
    assert len(several) == 5 and len(set(several)) == 2, "orders differ, texts do not"
    assert all(words_in([p])[0] <= 16 for hop in Prompter(graph, Prompting(budget=16)).of(0) for p in hop)
    assert not prompts.cut and not prompts.crowded
    assert Prompter(graph, Prompting(), classes=["a", "b"]).of(6)[0][0].endswith("\n\nResponse: ")


def test_labels_of_test_nodes_are_in_no_prompt_and_an_edge_touches_what_it_changes(tmp_path):
    reader = {"source": f"path:{tiny(tmp_path)}"}

    def contents(given, edges):
        data = kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', given, edges, **SPLIT)}")
        teacher = kdhub.open_teacher({"source": "hops", "reader": reader, "budget": 40}, "node-classification")
        name = data.split("train")[0]["graph"]
        return [teacher.content_of(name, n) for n in range(12)], name

    before, graph = contents(nodes(), RING)
    other = [{**row, "label": "b" if row["id"] == "n4" else row["label"]} for row in nodes()]
    assert contents(other, RING) == (before, graph), "the label of a test node changes neither prompts nor graph"
    after, _ = contents(nodes(), [*RING, ("n0", "n6")])
    changed = [n for n in range(12) if before[n] != after[n]]
    assert changed == [0, 1, 5, 6, 7, 11], "two hops read the new edge from its ends and their neighbours"


def test_parts_of_what_one_pass_gives_are_the_signals_asked_alone(tmp_path):
    hops = {"source": "hops", "reader": {"source": f"path:{tiny(tmp_path)}"}, "budget": 40}
    teacher = kdhub.open_teacher(hops, "node-classification")
    rows = kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', nodes(), RING, **SPLIT)}").split("test")
    examples = kdhub.open_task("node-classification").preparer(None, teacher)(list(rows))
    stored = teacher.signals(examples, "hops")
    for kind in ("hop_states", "hop_logits", "features", "logits"):
        assert teacher.stored_in(kind) == "hops"
        (alone,), (part,) = teacher.signals(examples, kind).values(), teacher.part(kind, stored).values()
        np.testing.assert_allclose(part, alone, atol=1e-5)
    with pytest.raises(TeacherError, match="whole, not 'logits:top-1'"):
        teacher.layout(teacher.stored_in("logits:top-1"))


def test_what_a_prompt_has_no_room_for_is_counted_by_node(tmp_path, caplog):
    """A node with ten thousand neighbours, and one whose own text is longer than its prompt."""
    many = [{"id": f"n{i}", "text": f"word{i} ab", "label": "ab"[i % 2]} for i in range(10_002)]
    many[7]["text"] = "long " * 300
    split = {"train": ["n0", "n7", "n10001"], "validation": ["n1"], "test": ["n2"]}
    star = folder_of(tmp_path / "star", many, [("n0", f"n{i}") for i in range(1, 10_001)], **split)
    rows = list(kdhub.open_data(f"graph:{star}", options={"words": 5}).split("train"))
    hops = {"source": "hops", "reader": {"source": f"path:{tiny(tmp_path)}"}, "budget": 64}
    teacher = kdhub.open_teacher(hops, "node-classification")
    prepare = kdhub.open_task("node-classification").preparer(None, teacher)
    with caplog.at_level(logging.INFO, "kdhub"):
        assert [e["cut"] for e in prepare(rows)] == [False, True, False], "counted as rows that were cut"
        prepare(rows)
    said = [record.getMessage() for record in caplog.records if "more neighbours" in record.getMessage()]
    assert said == [
        "2 nodes have more neighbours than prompts of 64 tokens have room for, and the rest is left out (nodes 0, 7)"
    ]
    count = tokens_of(teacher.reader.tokenizer)
    assert max(count([p for row in rows for hop in teacher.prompts(row["graph"], row["node"]) for p in hop])) <= 60


def tiny(folder):
    from kdhub_tasks.classification.tiny import text_classifier

    return text_classifier(folder / "reader", classes=["a", "b"])


def test_a_language_model_says_how_probable_each_class_is(tmp_path):
    (tmp_path / "lm").mkdir()
    kdhub.open_student("llama:width=16,layers=1,heads=2", "causal-lm").save(tmp_path / "lm")
    lm = f"path:{tmp_path / 'lm'}"
    data = kdhub.open_data(f"graph:{folder_of(tmp_path / 'g', nodes(), RING, **SPLIT)}")
    teacher = {"source": "hops", "reader": {"source": lm}, "task": "causal-lm", "classes": ["a", "b"], "hops": 1}
    row = data.split("train")[0]
    reader = kdhub.open_teacher({**teacher, "budget": 200}, "node-classification")
    (example,) = kdhub.open_task("node-classification").preparer(None, reader)([row])
    given = {kind: reader.signals([example], kind)[kind] for kind in ("hop_logits", "hop_states", "logits")}
    assert given["hop_logits"].shape == (1, 2, 2) and (given["hop_logits"] < 0).all()
    assert (given["logits"] == given["hop_logits"][:, -1]).all()
    assert [reader.stored_in(kind) for kind in ("features", "logits")] == ["hop_states", "logits"], "other passes"
    # By hand: the log-probability of the response's tokens, and the state that they are predicted from.
    prompt = reader.prompts(row["graph"], row["node"])[1][0]
    task = kdhub.open_task("causal-lm")
    (one,) = task.preparer(None, reader.reader)([{"prompt": prompt, "response": "b"}])
    model = reader.reader.model.module.model
    with torch.no_grad():
        out = model(torch.tensor([one["ids"]]), output_hidden_states=True)
    first = len(one["ids"]) - len(one["labels"])
    said = out.logits[0].float().log_softmax(1)[range(first - 1, len(one["ids"]) - 1), one["labels"]].sum()
    assert given["hop_logits"][0, 1, 1] == pytest.approx(said.item(), abs=1e-3)
    np.testing.assert_allclose(given["hop_states"][0, 1], out.hidden_states[-1][0, first - 1], atol=1e-4)
    for budget, says in ((10**6, "budget must be at most what the reader takes"), (60, "budget must be above")):
        with pytest.raises(UsageError, match=says):
            kdhub.open_teacher({**teacher, "budget": budget}, "node-classification").prompts(row["graph"], 0)


def test_a_student_reads_other_nodes_with_its_features_and_refuses_other_features(world, tmp_path):
    graph, task, facts, test = world
    student = _built("gcn", "width=8", BuildContext(task, None, 0, facts=facts))
    within = kdhub.open_data("papers", options={"nodes": 300, "degree": 3.0, "inductive": True}).split("train")[0]
    assert within["graph"] != graph.name
    assert student.signals(task.preparer(student, None)([within]), "logits")["logits"].shape == (1, 3)
    for options in ({"nodes": 120, "world": 3}, {"nodes": 60, "features": 9}):
        row = kdhub.open_data("papers", options=options).split("test")[0]
        with pytest.raises(DataError, match="the student reads 24 features"):
            student.signals(task.preparer(student, None)([row]), "logits")
    with pytest.raises(DataError, match="node 9999 of 60"):
        task.preparer(student, None)([{**row, "node": 9999}])


def test_labels_of_test_nodes_reach_nothing_and_their_states_are_never_read(tmp_path, monkeypatch):
    """With the labels of all test nodes permuted prompts, stored states and the student are the same bytes."""
    split, seen = {**SPLIT, "test": ["n4", "n5", "n6", "n7"]}, []
    loss = LinguGkd.objective

    def counted(self, student, teacher, batch, progress):
        seen.extend((len(teacher.hop_states), key) for key in batch["keys"].tolist())
        return loss(self, student, teacher, batch, progress)

    monkeypatch.setattr(LinguGkd, "objective", counted)
    tiny = kdhub.open_task("node-classification").tiny_recipe(tmp_path)
    found = []
    for world, other in (("one", {}), ("two", {"n4": "b", "n5": "a", "n6": "b", "n7": "a"})):
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / world))
        rows = [{**row, "label": other.get(row["id"], row["label"])} for row in nodes()]
        source = f"graph:{folder_of(tmp_path / 'graph', rows, RING, **split)}"
        hops = {"source": "hops", "reader": {"source": f"path:{tmp_path / 'reader'}"}, "budget": 48}
        options = {"epochs": 4, "batch_size": 3, "precision": "float32"}
        data = {"train": [{"source": source, "split": "train"}]}
        given = {**tiny, "method": "lingugkd", "teacher": hops, "options": options, "data": data}
        run = kdhub.distill({**given, "evaluation": {"data": []}}, out=tmp_path / f"run-{world}")
        stored = sorted((tmp_path / world).glob("signals/*/*.safetensors"))
        files = [*stored, *(run.student_folder / name for name in ("model.safetensors", "config.json"))]
        found.append({file.name: file.read_bytes() for file in files})
    assert len(stored) == 1 and found[0] == found[1]
    teacher = kdhub.open_teacher(hops, "node-classification")
    graph = kdhub.open_data(source).split("train")[0]["graph"]
    keys = [zlib.crc32(teacher.content_of(graph, node)) for node in range(12)]
    assert len(seen) == 2 * 4 * 3 and {key for _, key in seen} == set(keys[:3]), "three training nodes, no other"
