"""Belief by Dempster's rule: numbers worked out by hand, the rule in its slow form, and real alloys."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kdhub_knowledge.masses import combine, discount, from_logs, logs, pignistic
from kdhub_knowledge.sets.students import Belief, matrix
from kdhub_knowledge.substitution import (
    Table,
    from_labels,
    fuse,
    judged,
    key_of,
    sides_of,
    substitutions,
)

import kdhub

W = 1 / 15
HIGH, MEDIUM, LOW, NOT_KNOWN = (W, 0, 1 - W), (W / 2, W / 2, 1 - W), (0, W, 1 - W), (0, 0, 1.0)


def masses(*values):
    return np.array(values, float)


def slow(*functions: dict[frozenset, float]) -> dict[frozenset, float]:
    """Dempster's rule as it is defined: over all pairs of sets of alternatives."""
    whole = {frozenset("ab"): 1.0}
    for other in functions:
        found: dict[frozenset, float] = {}
        for (one, x), (two, y) in product(whole.items(), other.items()):
            if both := one & two:
                found[both] = found.get(both, 0.0) + x * y
        whole = {s: v / sum(found.values()) for s, v in found.items()}
    return whole


def close(given, *wanted):
    np.testing.assert_allclose(given, wanted, atol=1e-6)


def test_the_rule_by_hand_and_in_its_slow_form():
    one, two = masses(0.6, 0.1, 0.3), masses(0.3, 0.5, 0.2)
    close(combine(one, two), 0.582090, 0.328358, 0.089552)
    close(combine(two, one), *combine(one, two))
    close(combine(one, masses(0, 0, 1)), *one)
    draw = np.random.default_rng(0).dirichlet([1, 1, 1], size=7)
    sets = [frozenset("a"), frozenset("b"), frozenset("ab")]
    wanted = slow(*(dict(zip(sets, row)) for row in draw))
    np.testing.assert_allclose(combine(*draw), [wanted[s] for s in sets], atol=1e-12)
    np.testing.assert_allclose(combine(*draw[::-1]), combine(*draw), atol=1e-12)
    np.testing.assert_allclose(from_logs(*logs(draw)), draw, atol=1e-12)
    assert np.isfinite(combine(masses(1, 0, 0), masses(0, 1, 0))).all(), "sources that contradict each other wholly"


def test_pieces_of_evidence_and_experts_by_hand():
    piece = np.log1p(-0.1)
    close(from_logs(3 * piece, masses(0)[0]), 0.271, 0, 0.729)
    data = from_logs(3 * piece, 2 * piece)
    close(data, 0.231426, 0.146029, 0.622545)
    close(discount(data, 2 / 3), 0.154284, 0.097353, 0.748363)
    experts = [masses(*m) for m in (HIGH, HIGH, MEDIUM, LOW, NOT_KNOWN)]
    close(combine(*experts), 0.145503, 0.084468, 0.770029)
    close(combine(*(discount(m, 0.6) for m in experts)), 0.091948, 0.054112, 0.853940)
    close(combine(discount(data, 2 / 3), *experts), 0.257135, 0.150493, 0.592373)


def test_a_prediction_by_hand():
    """Known: {a, x} and {b, x} are High, {c, x} is Low; a new {d, x} can have d replaced by each."""
    items = list("abcdx")
    known, new = matrix([["a", "x"], ["b", "x"], ["c", "x"]], items), matrix([["d", "x"]], items)
    keys = np.array([key_of([n], [3], known.shape[1]) for n in range(3)])
    table = Table(np.sort(keys), masses([0.4, 0.1, 0.5], [0.2, 0, 0.8], [0.3, 0, 0.7])[np.argsort(keys)])
    pairs, labels = substitutions(new, known, 2), np.array([0, 0, 1])
    found = judged(table, pairs, labels, 1, version="v1", alpha=0.01)[0]
    close(found, 0.431280, 0.170616, 0.398104)
    close(pignistic(found), 0.630332, 0.369668)
    second = judged(table, pairs, labels, 1, version="v2", alpha=0.5)[0]
    close(second, *combine(masses(0.2, 0.05, 0.75), masses(0.1, 0, 0.9), masses(0, 0.15, 0.85)))
    third = judged(table, pairs, labels, 1, version="v3", alpha=0.5)[0]
    like = (np.sqrt(1 / (3 * 2)) + 1) / 2  # one of three items in common, two in each set, one replaced
    close(
        third, *combine(*(masses(*np.multiply(m, like), 1 - like * sum(m)) for m in ((0.2, 0.05), (0.1, 0), (0, 0.15))))
    )


def test_substitutions_are_those_of_the_sets():
    items = list("abcdef")
    sets = [list("abc"), list("abd"), list("ab"), list("def"), list("aef"), list("abcdef")]
    found = substitutions(matrix(sets, items), matrix(sets, items), 2)
    width = len(items) + 3
    seen = {
        (i, j): {frozenset(items[n] for n in side) for side in sides_of(key, width)}
        for i, j, key in zip(found.left, found.right, found.key)
    }
    wanted = {}
    for (i, one), (j, two) in product(enumerate(map(set, sets)), repeat=2):
        alone, other = one - two, two - one
        if one & two and (alone or other) and max(len(alone), len(other)) <= 2:
            wanted[i, j] = {frozenset(alone), frozenset(other)}
    assert seen == wanted
    assert (2, 0) in wanted and wanted[2, 0] == {frozenset(), frozenset("c")}, "of different sizes: one side is empty"


def test_without_weight_nothing_is_known_and_unseen_items_are_not_mistaken():
    items, labels = list("abc"), np.array([0, 1, 0])
    sets = matrix([["a", "b"], ["a", "c"], ["b", "c"]], items)
    pairs = substitutions(sets, sets, 2)
    empty = from_labels(pairs, labels, alpha=0.0, likeness=False)
    assert (empty.masses == [0, 0, 1]).all()
    student = Belief(items, ["High", "Low"])
    student.sets, student.labels = sets, labels
    student.fused = fuse([from_labels(pairs, labels, alpha=0.3, likeness=False)])
    close(student.belief([["a", "zinc"]])[0], 0, 0, 1)
    close(student.belief([["zinc"]])[0], 0, 0, 1)
    logits = student.signals([{"items": ["zinc"]}], "logits")["logits"]
    assert logits.argmax() == 1, "where both masses are equal the second label is chosen"


# -- real alloys --------------------------------------------------------------------------------------------------

HEA = Path(os.environ.get("KDHUB_DATA", "/nowhere")) / "hea"
alloys = pytest.mark.skipif(not HEA.is_dir(), reason="KDHUB_DATA has no hea")


def read(name: str):
    import csv

    with open(HEA / name, newline="") as file:
        rows = list(csv.DictReader(file))
    items = [c for c in rows[0] if c not in ("", "combination", "Label", "set_name", "length")]
    sets = matrix([row["set_name"].split("|") for row in rows], items)
    return items, sets, np.array([int(row["Label"] == "Low") for row in rows])


@alloys
@pytest.mark.parametrize(
    "name, pairs, wanted",
    [
        ("hea_ltvc_4.csv", 109_066,
         {"Fe-Co": (0.3284, 0.1278), "Nb-Ta": (0.5383, 0.0764), "Mo-W": (0.5858, 0.0651), "Ag-W": (0.0199, 0)}),
        ("HEA_data.demo.csv", 3_098,
         {"Fe-Co": (0.1096, 0.0351), "Co-Ni": (0.1234, 0.0595), "Cr-Mo": (0.0765, 0.0092)}),
    ],
)  # fmt: skip
def test_masses_of_real_alloys(name, pairs, wanted):
    items, sets, labels = read(name)
    found = substitutions(sets, sets, 2)
    assert len(found.key) == 2 * pairs
    table = from_labels(found, labels, alpha=0.01, likeness=False)
    for pair, (similar, dissimilar) in wanted.items():
        sides = [[items.index(element)] for element in pair.split("-")]
        given = table.at(np.array([key_of(*sides, sets.shape[1])]))[0]
        np.testing.assert_allclose(given[:2], (similar, dissimilar), atol=1e-4)


COLUMNS = {"items": "set_name", "label": "Label"}
ASKED = {"a": "element_a", "b": "element_b", "answer": "q2", "knows": "q1"}


@alloys
def test_what_experts_say_of_an_element_that_no_training_alloy_has(tmp_path):
    """The labelled alloys know nothing about it, and say so; the experts do."""
    held = {"source": f"left-out:{HEA / 'HEA_data.demo.csv'}", "options": {"item": "Co", "columns": COLUMNS}}
    recipe = {
        "task": "item-sets", "method": "evidence-fusion", "student": "belief", "data": {"train": held},
        "teacher": {"source": f"experts:{HEA / 'llm_expert_substitution.tsv.gz'}", "columns": ASKED},
        "evaluation": {"data": [held], "metrics": ["macro-f1", "auroc", "ignorance"], "cost": False},
        "options": {"folds": 5},
    }  # fmt: skip
    scores = {}
    for which in ("data", "experts"):
        run = kdhub.distill(recipe, out=tmp_path / which, set=[f"options.sources=[{which}]"])
        measured = {m["metric"]: m["value"] for m in run.report["measures"] if m["subject"] == "student"}
        scores[which] = measured
    assert scores["data"]["ignorance"] == 1 and scores["data"]["auroc"] == 0.5
    assert scores["experts"]["ignorance"] < 0.8 and scores["experts"]["macro-f1"] > scores["data"]["macro-f1"] + 0.1
    student = kdhub.load(run.student_folder)
    (best, *_) = student.explain(["Co", "Fe"], 3)
    assert best["instead"] and best["label"] in ("High", "Low") and 0 < best["for"] < 1
