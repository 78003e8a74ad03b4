"""`kdhub compare` on toy digits: equal terms, failures, kills, verdicts, and the ledger."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

import kdhub
from kdhub.catalogue.catalog import Catalog, default_catalog
from kdhub.comparison import evidence
from kdhub.comparison.comparison import Budget, Cell, Claim, Result, judge, read_comparison, values_of
from kdhub.comparison.page import page, write_page
from kdhub.errors import RecipeError, RunError, UnknownNameError, UsageError
from kdhub.evaluation.report import BEFORE, STUDENT, Report, aligned
from kdhub.metric import Measure
from kdhub.recipes.resolve import Resolver
from kdhub.verbs.compare import _shared, cell_recipes

DIGITS = {
    "task": "image-classification",
    "method": "kd",
    "teacher": "prototypes:digits",
    "student": "mlp:8",
    "data": {"train": [{"source": "digits", "split": "train", "limit": 128}]},
    "options": {"epochs": 2, "batch_size": 32, "lr": 0.01, "temperature": 3.0, "precision": "float32"},
    "evaluation": {"data": [{"source": "digits", "split": "test", "limit": 100}]},
}


def recipes_of(**changes):
    plan = read_comparison({"recipe": DIGITS, "arms": ["kd", "pld"], "seeds": 2, **changes}, "test")
    return cell_recipes(plan, Resolver())


def student(folder: Path, arm: str, seed: int) -> bytes:
    return (folder / f"cells/{arm}/seed-{seed}/student/model.safetensors").read_bytes()


# -- the plan -------------------------------------------------------------------------------------------------


def test_all_arms_train_on_equal_terms():
    found = recipes_of(seeds=[3, 5], seeded=["data.train.0.sample_seed"])
    assert list(found) == [("kd", 3), ("kd", 5), ("pld", 3), ("pld", 5)]
    kd, pld = found["kd", 3], found["pld", 5]
    assert kd.options["temperature"] == 3.0 and "temperature" not in pld.options, "what is kd's own stays kd's"
    methods = [Resolver().method(recipe).options for recipe in (kd, pld)]
    for name in ("lr", "batch_size", "epochs", "schedule", "warmup", "weight_decay", "precision"):
        assert getattr(methods[0], name) == getattr(methods[1], name), name
    assert (kd.seed, pld.seed) == (3, 5) and pld.data["train"][0].sample_seed == 5
    assert not kd.evaluation.cost and kd.evaluation.curve
    budgeted = recipes_of(budget="20examples", arms={"kd": {"options": {"batch_size": 16}}, "pld": {}})
    assert budgeted["kd", 0].options["max_steps"] == 2 and budgeted["pld", 0].options["max_steps"] == 1


@pytest.mark.parametrize(
    "text, expected",
    [("300steps", (300, "steps")), ("1 step", (1, "steps")), ("2e3steps", None), ("20000 examples", (2e4, "examples")),
     ("60s", (60, "s")), ("1.5 seconds", (1.5, "s")), ("0steps", None), ("fast", None)],
)  # fmt: skip
def test_budgets(text, expected):
    if expected is None:
        with pytest.raises(UsageError, match="the budget is"):
            Budget.parse(text)
    else:
        found = Budget.parse(text)
        assert (found.amount, found.unit) == expected
    assert Budget(60, "s").steps(1, 0.5) == 120 and Budget(100, "examples").steps(32) == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"arm": 1}, "unknown key 'arm'; did you mean 'arms'?"),
        ({"seeds": []}, "'seeds' is"),
        ({"reference": "kdd"}, "'reference' is 'kdd': expected one of the arms kd, pld"),
        ({"claims": [{"method": "kd", "arm": "kd", "against": "x@teacher", "text": "t"}]}, "'claims.0.against' is 'x@"),
        ({"arms": {"../kd": "kd"}}, "needs a name like"),
        ({"arms": {"kd": {"options": {"temperatur": 2}}, "pld": {"options": {"lr": -1}}}}, "arm pld: 'options.lr'"),
    ],
)
def test_a_wrong_plan_says_where(changes, words):
    with pytest.raises(RecipeError) as error:
        recipes_of(**changes)
    assert words in str(error.value), str(error.value)
    if "arms" in changes and "pld" in changes["arms"]:
        assert "did you mean 'options.temperature'" in str(error.value) or "temperature" in str(error.value)


def test_usage(tmp_path):
    with pytest.raises(UsageError, match="name a comparison, or methods and a recipe"):
        kdhub.compare()
    with pytest.raises(UsageError, match="methods need a recipe"):
        kdhub.compare(methods="kd,pld")
    with pytest.raises(UnknownNameError) as error:
        kdhub.compare("mixk")
    assert "mixkd" in error.value.hint
    with pytest.raises(UnknownNameError) as error:
        kdhub.compare(methods="kd,plt", recipe=DIGITS, out=tmp_path / "a")
    assert "pld" in error.value.hint
    with pytest.raises(RunError, match="holds no comparison"):
        kdhub.compare(resume=tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        kdhub.compare(methods="kd", recipe=DIGITS, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing was run, nothing was left"


# -- runs -----------------------------------------------------------------------------------------------------


def test_methods_from_one_store_with_supervised_beside_them(tmp_path, isolated):
    result = kdhub.compare(methods="kd,jsd", recipe=DIGITS, seeds=2, out=tmp_path / "c", jobs=2)
    assert result.arms == ["kd", "jsd", "supervised"] and result.reference == "supervised"
    assert result.metric == "accuracy" and result.data == "digits test"
    told = json.loads((tmp_path / "c/comparison.json").read_text())
    assert told == json.loads(json.dumps(result.to_dict())) and Result.from_dict(told).to_dict() == told
    # The teacher saw each of 128 + 100 rows once, for all three methods and both seeds together.
    assert told["teacher_rows"] == 228
    for seed in (0, 1):
        starts = {cell["facts"]["start"] for cell in told["cells"] if cell["seed"] == seed}
        assert len(starts) == 1, "one start a seed"
        alone = kdhub.distill({**DIGITS, "evaluation": {**DIGITS["evaluation"], "cost": False}}, seed=seed,
                              out=tmp_path / f"alone-{seed}")  # fmt: skip
        measured = {m["subject"]: m["value"] for m in alone.report["measures"] if m["metric"] == "accuracy"}
        assert result.of("kd")[seed] == measured["student"], "looking at it while it learns changes nothing"
    curve = next(cell["curve"] for cell in told["cells"] if cell["arm"] == "kd" and cell["seed"] == 0)
    assert curve[-1] == [8, result.of("kd")[0]] and len(curve) > 2
    d = told["verdicts"]["kd"]
    assert d["mean"] == pytest.approx(np.mean([result.of("kd")[s] - result.of("supervised")[s] for s in (0, 1)]))
    assert sorted(p.name for p in (tmp_path / "c/plots").iterdir()) == ["cost.png", "learning.png", "seeds.png"]
    text = "\n".join(map(aligned, result.tables()))
    for word in ("untrained", "teacher", "reference", "training", "supervised"):
        assert word in text
    assert any("fewer than three seeds" in note for note in result.notes())


def test_a_cell_that_fails_is_told_and_the_rest_goes_on_and_is_kept(tmp_path, capsys, monkeypatch):
    plan = {"recipe": {**DIGITS, "method": "supervised", "options": {"epochs": 1}}, "seeds": 2,
            "arms": {"good": {}, "bad": {"options": {"lr": 1e20, "grad_clip": 0}}}}  # fmt: skip
    result = kdhub.compare(plan, out=tmp_path / "c", jobs=2)
    bad = [cell for cell in result.cells if cell.arm == "bad"]
    assert all(cell.status == "failed" and "the loss is" in cell.error and "lower lr" in cell.error for cell in bad)
    assert len(result.of("good")) == 2 and result.verdicts() == {}
    assert any("bad, seed 0, failed" in note for note in result.notes())
    before = student(tmp_path / "c", "good", 0), (tmp_path / "c/cells/good/seed-0/report.json").stat().st_mtime_ns
    args = [sys.executable, "-m", "kdhub", "compare", "--resume", str(tmp_path / "c"), "--json"]
    again = subprocess.run(args, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 1, "failed cells are a failure"
    assert json.loads(again.stdout)["arms"]["bad"]["n"] == 0 and "bad, seed 0 failed" in again.stderr
    after = student(tmp_path / "c", "good", 0), (tmp_path / "c/cells/good/seed-0/report.json").stat().st_mtime_ns
    assert before == after, "what was finished is found, not done again"


@pytest.mark.slow
def test_killed_workers_and_a_killed_comparison_end_with_the_same_students(tmp_path):
    plan = {"recipe": {**DIGITS, "options": {**DIGITS["options"], "epochs": 25}}, "arms": ["kd", "jsd"], "seeds": 2}
    whole = kdhub.compare(plan, out=tmp_path / "whole", jobs=2)

    # A worker is killed: its cell failed, in one sentence, and the others are done.
    def kill_one():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if list((tmp_path / "hurt").glob("cells/*/*/metrics.jsonl")):
                (server,) = [c for c in psutil.Process().children() if "forkserver" in " ".join(c.cmdline())]
                os.kill(server.children()[0].pid, signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    hurt = kdhub.compare(plan, out=tmp_path / "hurt", jobs=2)
    killer.join()
    failed = [cell for cell in hurt.cells if cell.status == "failed"]
    assert len(failed) == 1 and "its process died" in failed[0].error
    healed = kdhub.compare(resume=tmp_path / "hurt")
    # The whole comparison is killed, workers and all end with it, and it goes on.
    args = [sys.executable, "-m", "kdhub", "compare", "--resume", str(tmp_path / "cut")]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/comparison.yaml").write_bytes((tmp_path / "whole/comparison.yaml").read_bytes())
    process = subprocess.Popen(args, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "cut").glob("cells/*/*/metrics.jsonl")):
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1], "workers end when nobody waits for them"
    cut = kdhub.compare(resume=tmp_path / "cut")
    for other in (healed, cut):
        assert {a: other.of(a) for a in other.arms} == {a: whole.of(a) for a in whole.arms}
    for arm in whole.arms:
        for seed in (0, 1):
            assert student(tmp_path / "whole", arm, seed) == student(tmp_path / "hurt", arm, seed)
            assert student(tmp_path / "whole", arm, seed) == student(tmp_path / "cut", arm, seed)


@pytest.mark.slow
def test_equal_time_is_as_many_steps_as_fit(tmp_path):
    result = kdhub.compare(
        methods="kd,supervised", recipe=DIGITS, seeds=1, budget="1s", out=tmp_path / "c", jobs=1, metric="nll"
    )
    timed = yaml.safe_load((tmp_path / "c/comparison.yaml").read_text())["timed"]
    assert {arm: [steps] for arm, steps in timed.items()} == {arm: result.fact(arm, "steps") for arm in result.arms}
    assert min(timed.values()) >= 1 and not result.higher_is_better, "nll is better low"
    again = kdhub.compare(resume=tmp_path / "c")
    assert {arm: again.of(arm) for arm in again.arms} == {arm: result.of(arm) for arm in result.arms}


@pytest.mark.slow
def test_a_script_without_a_guard_can_compare(tmp_path, isolated):
    """Workers do not run the program again that started them."""
    script = tmp_path / "mine.py"
    plan = {"recipe": {**DIGITS, "options": {"epochs": 1}}, "arms": ["kd"], "seeds": 1}
    script.write_text(f"import kdhub\nprint(kdhub.compare({plan!r}, out='c', jobs=1).of('kd'))\n")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("{0: 0."), done.stderr


def test_labels_are_what_the_task_calls_so():
    from kdhub_tasks.classification.tokens import TokenClassification
    from kdhub_tasks.language.task import CausalLanguage

    class Table:
        column_names = ["tokens", "tags"]

    assert TokenClassification().labelled(Table) and CausalLanguage().labelled(Table)
    Table.column_names = ["tokens"]
    assert not TokenClassification().labelled(Table)
    with pytest.raises(RecipeError, match="'task' is missing"):
        kdhub.compare(methods="kd", recipe={"student": "mlp:8"})


# -- several data sets ---------------------------------------------------------------------------------------

TULU = {  # arXiv:2306.04751, table 3, LLaMA 13B: facts, mathematics, reasoning, languages, code, open answers
    "human+gpt": ([49.3, 40.5, 43.3, 45.6, 35.9, 56.5], 45.183),
    "human": ([50.2, 38.5, 39.6, 47.0, 25.0, 35.0], 39.217),
    "sharegpt": ([49.3, 27.0, 40.4, 30.5, 34.1, 70.5], 41.967),
}


def test_a_metric_is_compared_in_the_mean_over_data_sets():
    def report(shift: float, of: list[float]) -> Report:
        scores = [("exact-match", value + shift, f"skill{i}") for i, value in enumerate(of)]
        taken = [("length", float(i), f"skill{i}") for i in range(6)] + [("nll", 2.0, "skill0")]
        return Report(
            [
                Measure(metric=metric, value=value - (30 if subject == BEFORE else 0), subject=subject, dataset=data,
                        split="test", examples=9, variant=view)
                for subject in (STUDENT, BEFORE)
                for metric, value, data in scores + taken
                for view in ({}, {"dims": 96, "precision": "int8"} if metric == "nll" else {})
            ]
        )  # fmt: skip

    cells, directions, places = [], {}, {}
    for arm, (of, mean) in TULU.items():
        for seed, shift in enumerate((-0.1, 0.0, 0.1)):
            values, directions, places = values_of(report(shift, of), "skill1 test")
            cells.append(Cell(arm, seed, "done", values=values))
        assert values[STUDENT]["mean exact-match"] == pytest.approx(mean + 0.1, abs=5e-4)
    assert values[STUDENT]["exact-match"] == values[STUDENT]["exact-match on skill1 test"] == pytest.approx(27.1)
    each = [value for name, value in values[STUDENT].items() if name.startswith("exact-match on ")]
    assert values[STUDENT]["worst exact-match"] == min(each) < values[STUDENT]["mean exact-match"]
    assert places["mean exact-match"] == "6 data sets" and "mean nll" not in directions
    assert values[STUDENT]["nll, dims 96, precision int8"] == 2.0 and not any(
        n.startswith("exact-match,") for n in places
    )
    plan = {"name": "tulu", "arms": dict.fromkeys(TULU, {}), "seeds": [0, 1, 2]}
    result = Result(plan, "mean exact-match", "6 data sets", directions, "human", cells)
    _, table, _ = result.tables()
    assert table.columns == ["arm", *(f"skill{i} test" for i in (1, 0, 2, 3, 4, 5)), "mean exact-match", "mean length"]
    assert [row[0] for row in table.rows] == ["human+gpt", "sharegpt", "human", "untrained"]
    assert table.rows[0][1] == "40.500 helps" and table.rows[3][1] == "10.500"


# -- claims and the ledger ------------------------------------------------------------------------------------


def ledger(values: dict[str, list[float]], claims: list[dict] = (), metric: str = "accuracy", higher=True) -> Result:
    n = len(next(iter(values.values())))
    plan = {"name": "toy", "arms": dict.fromkeys(values, {}), "seeds": list(range(n)), "claims": list(claims)}
    cells = [
        Cell(arm, seed, "done", values={"student": {metric: v}, "student-before": {metric: 0.1}})
        for arm, of in values.items()
        for seed, v in enumerate(of)
    ]
    environment = {"started": "2026-01-02T03:04:05", "versions": {"kdhub": "0"}, "hardware": {}}
    return Result(plan, metric, "digits test", {metric: higher}, next(iter(values)), cells, environment)


LEDGER = {
    "low": [0.50, 0.52, 0.51, 0.49, 0.50],
    "high": [0.60, 0.63, 0.61, 0.59, 0.62],
    "near": [0.501, 0.521, 0.509, 0.491, 0.500],
}


@pytest.mark.parametrize(
    "arm, against, expected, by, outcome",
    [
        ("high", "low", "above", 0.0, "as expected"),
        ("high", "low", "above", 0.2, "a tie"),  # above, but not by so much
        ("low", "high", "above", 0.0, "otherwise"),
        ("near", "low", "above", 0.0, "a tie"),
        ("near", "low", "within", 0.01, "as expected"),
        ("high", "low", "within", 0.01, "otherwise"),
        ("near", "low", "within", 0.0005, "a tie"),
        ("near", "low", "not-below", 0.01, "as expected"),
        ("low", "high", "not-below", 0.01, "otherwise"),
        ("high", "high@student-before", "above", 0.3, "as expected"),
    ],
)
def test_how_claims_come_out(arm, against, expected, by, outcome):
    claim = Claim(method="kd", arm=arm, against=against, expected=expected, by=by, text="t")
    assert judge(claim, ledger(LEDGER))["outcome"] == outcome
    # A metric that is better low turns everything round.
    turned = {name: [1 - v for v in values] for name, values in LEDGER.items()}
    if "@" not in against:
        assert judge(claim, ledger(turned, metric="nll", higher=False))["outcome"] == outcome


def test_claims_are_of_the_seeds_that_both_arms_have():
    result = ledger(LEDGER)
    result.cells = [c for c in result.cells if (c.arm, c.seed) != ("high", 1)]
    claim = Claim(method="kd", arm="high", against="low", text="t")
    told = judge(claim, result)
    assert told["seeds"] == [0, 2, 3, 4] and told["mean_against"] == pytest.approx(0.5)
    result.cells = [c for c in result.cells if c.arm != "high"]
    assert judge(claim, result)["outcome"] == "not measured"
    with pytest.raises(RunError, match="not measured: t"):
        result.plan["claims"] = [claim.model_dump()]
        evidence.record(result, Path("nowhere"))


def test_the_ledger_keeps_one_entry_a_comparison(tmp_path):
    claims = [
        {"method": "kd", "arm": "high", "against": "low", "text": "high is above"},
        {"method": "pld", "arm": "near", "against": "low", "text": "near is above"},
    ]
    written = evidence.record(ledger(LEDGER, claims), tmp_path / "evidence")
    assert [p.name for p in written] == ["kd.json", "pld.json"]
    other = ledger(LEDGER, claims[:1])
    other.plan["name"] = "another"
    evidence.record(other, tmp_path / "evidence")
    evidence.record(ledger({**LEDGER, "high": LEDGER["low"]}, claims), tmp_path / "evidence")
    catalog = Catalog([tmp_path])
    entries = evidence.of_method("kd", catalog)
    assert [e["comparison"] for e in entries] == ["another", "toy"]
    assert [e["claims"][0]["outcome"] for e in entries] == ["as expected", "a tie"], "run again, written anew"
    assert entries[1]["command"] == "kdhub compare toy" and entries[1]["values"]["low"]["0"] == 0.5
    assert "high is above" in aligned(evidence.table(entries))
    (tmp_path / "evidence/kd.json").write_text('{"schema": 9}')
    with pytest.raises(RunError, match="schema 9"):
        evidence.of_method("kd", catalog)


def test_the_page_is_whole_and_tells_nothing_to_anybody(tmp_path):
    result = ledger(LEDGER)
    for cell in result.cells:
        cell.facts = {"train_seconds": 2.0 + cell.seed, "parameters": 75_000}
        cell.curve = [[1, 0.2], [2, 0.4]]
    result.plan["summary"] = "</script><script>alert(1)</script> & more"
    text = page(result, "/* the library */")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert not re.search(r"(?:src|href)\s*=|url\(|@import", text), "nothing is fetched"
    assert "0.6100 ± 0.0158" in text and 'data-value="75000"' in text and "seed 4" in text
    for name in ("seeds", "cost", "learning"):
        assert f'id="{name}" role="img" aria-label=' in text
    path = write_page(result, tmp_path)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser to look with")
    args = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
    seen = subprocess.run([*args, path.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert seen.count('class="main-svg"') >= 3, "the plots were drawn"


# -- what comes with kdhub ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", default_catalog().names("comparisons"))
def test_every_comparison_of_the_catalogue_can_run(name):
    resolver = Resolver()
    values = resolver.catalog.get("comparisons", name)
    plan = read_comparison({"name": name, **values}, name)
    plan.recipe = _shared(plan.recipe, (), resolver)
    assert len(cell_recipes(plan, resolver)) == len(plan.arms) * len(plan.seeds)
    methods = {entry.name for entry in resolver.registry.all("method")}
    assert {claim.method for claim in plan.claims} <= methods
    assert plan.summary and len(plan.seeds) >= 3


UNMEASURED = set(
    """
    cells distilled-images few-bits found-students-cifar10 metis-rise-vlm modules one-image-edits pasted-digits
    plentiful-harm pools pools-mnist query-videos scarce-safety slices-sst2 snapshots taid-vlm
    """.split()
)
"""Comparisons that are written and not measured yet: nothing is claimed of them anywhere."""


def test_the_ledger_has_what_the_comparisons_claim():
    """Every claim that may be insisted on was measured, and its mean is where it should be."""
    catalog = default_catalog()
    for name in catalog.names("comparisons"):
        if name in UNMEASURED:
            methods = {claim["method"] for claim in catalog.get("comparisons", name).get("claims", ())}
            assert not any(e["comparison"] == name for m in methods for e in evidence.of_method(m, catalog)), name
            continue
        plan = read_comparison({"name": name, **catalog.get("comparisons", name)}, name)
        for claim in plan.claims:
            entries = {e["comparison"]: e for e in evidence.of_method(claim.method, catalog)}
            told = [c for c in entries[name]["claims"] if c["text"] == claim.text and c["arm"] == claim.arm]
            assert len(told) == 1, f"{name}: {claim.text} is not in the ledger: make evidence METHOD={claim.method}"
            keys = ("against", "expected", "by", "assertable")
            assert {k: told[0][k] for k in keys} == {k: getattr(claim, k) for k in keys}
            if claim.assertable:
                assert told[0]["holds"] and told[0]["outcome"] != "otherwise", (name, claim.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", default_catalog().names("comparisons"))
def test_claims_hold_when_measured_again(name, tmp_path):
    for claim in kdhub.compare(name, out=tmp_path / "c").claims():
        if claim["assertable"]:
            assert claim["holds"] and claim["outcome"] != "otherwise", claim
