"""Spaces, and the searches over them."""

import numpy as np
import pytest
from kdhub_search import evolution
from kdhub_search.evolution import Evaluated
from kdhub_search.spaces.space import Budget, Space

import kdhub
from kdhub.errors import CompatibilityError, UnknownNameError, UsageError

FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}
TASK = "image-classification"


def opened(source, seed=0):
    return kdhub.open_student(source, TASK, seed=seed, facts=FACTS)


def space(template="mlp:{a}", budget=None, **choices) -> Space:
    made = Space(template, choices or {"a": [4, 2, 8]}, opened)
    made.within(Budget(*budget) if budget else Budget())
    return made


def test_costs_are_counted_on_the_student():
    one = space()
    assert one.cost({"a": 4}) == {"parameters": 64 * 4 + 4 + 4 * 10 + 10}
    made = one.build({"a": 4}, seed=3)
    assert sum(p.numel() for p in made.module.parameters()) == one.cost({"a": 4})["parameters"]
    assert one.smallest() == {"a": 2} and len(one) == 3 and one.name({"a": 4}) == "mlp:4"


def test_flops_of_a_row():
    one = Space("mlp:{a}", {"a": [2, 4]}, opened)
    one.within(Budget(flops=2 * (64 * 2 + 2 * 10)), {"image": np.zeros((8, 8), np.uint8), "label": None})
    assert [one.fits({"a": a}) for a in (2, 4)] == [True, False]


def test_what_the_builder_refuses_or_the_budget_never_leaves():
    """Heads that do not divide the width, and students of more than 1,500 parameters."""
    choices = {"width": [6, 8, 12], "heads": [1, 2, 4], "layers": [1, 2]}
    one = space("vit:patch=4,width={width},layers={layers},heads={heads}", (1500, None), **choices)
    rng = np.random.default_rng(0)
    drawn = [one.sample(rng) for _ in range(30)]
    drawn += [one.mutate(candidate, rng) for candidate in drawn]
    for candidate in drawn:
        assert candidate["width"] % candidate["heads"] == 0
        assert one.cost(candidate)["parameters"] <= 1500
    assert not one.valid({"width": 6, "heads": 4, "layers": 1})
    for before in drawn[:30]:
        changed = one.mutate(before, rng)
        assert sum(changed[name] != before[name] for name in choices) == 1


def test_options_of_students_are_choices_too():
    one = Space("slimmable-mlp:{a}", {"a": [8], "shares": [[0.5, 1.0], [0.25, 1.0]]}, opened, {"shares": "{shares}"})
    assert one.build({"a": 8, "shares": [0.25, 1.0]}).config["shares"] == [0.25, 1.0]


def test_a_space_has_a_name_and_the_student_is_its_smallest():
    source = {"source": "space:mlp", "choices": {"first": [16, 8]}}
    student = opened(source)
    assert student.config["hidden"] == [8, 8] and len(student.space) == 2 * 5
    assert student.start["how"] == "the smallest of the space mlp"
    with pytest.raises(UnknownNameError) as refused:
        opened("space:residul")
    assert "residual" in refused.value.hint


@pytest.mark.parametrize(
    ("template", "choices", "said"),
    [
        ("mlp:8", {}, "is empty: nothing to choose"),
        ("mlp:{a}", {"a": []}, "is empty: there is no value for a"),
        ("mlp:{a},{b}", {"a": [4], "c": [4]}, "no values for b; c not in it"),
        ("mlp:{a", {"a": [4]}, "expected '}'"),
        ("mlp:{}", {"a": [4]}, "needs a name"),
    ],
)
def test_templates_that_mean_nothing(template, choices, said):
    with pytest.raises(UsageError, match=said):
        Space(template, choices, opened)


def test_a_setting_that_the_builder_refuses_is_said_in_its_words():
    with pytest.raises(CompatibilityError, match="'depth=3' is not one of width=N"):
        space("residual:depth={a}", a=[3])


def test_a_budget_nobody_meets_names_the_smallest():
    with pytest.raises(UsageError, match=r"within 100 parameters; the smallest, mlp:2, has 160 parameters"):
        space(budget=(100, None))


class Line:
    """Numbers from 0 to 99; a child is a neighbour."""

    def sample(self, rng):
        return {"n": int(rng.integers(20))}

    def mutate(self, candidate, rng):
        return {"n": candidate["n"] + int(rng.choice([-1, 1]))}


def evolved(seed, evaluations=150, **settings):
    settings = {"population": 10, "sample": 5, **settings}
    return evolution.evolve(
        Line(), lambda c: -abs(c["n"] - 60), np.random.default_rng(seed), evaluations=evaluations, **settings
    )


def test_aging_evolution_climbs_and_the_same_seed_goes_the_same_way():
    assert evolved(0) == evolved(0) != evolved(1)
    assert len(evolved(0)) == 150
    assert evolution.best(evolved(0))[0].score > max(one.score for one in evolved(0, evaluations=10)) + 5


def test_parents_are_the_best_of_a_tournament_and_the_oldest_leaves():
    """With all of the population in the tournament each child is a neighbour of the best of the last ten."""
    history = evolved(3, sample=10)
    for n, child in enumerate(history[10:], 10):
        parent = max(history[n - 10 : n], key=lambda one: one.score)
        assert abs(child.candidate["n"] - parent.candidate["n"]) == 1


def test_the_best_are_different_candidates():
    history = [Evaluated({"n": n}, score) for n, score in ((1, 2.0), (2, 3.0), (2, 3.0), (3, 3.0), (4, 1.0))]
    assert [one.candidate["n"] for one in evolution.best(history, 3)] == [2, 3, 1]
