"""Families of sizes: what their members give, cost and are called, from the run to a hub and back."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import toy
import yaml
from hub import serve
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.errors import CompatibilityError, UnknownNameError, UsageError
from kdhub.evaluation import families
from kdhub.evaluation.card_check import check_card
from kdhub.evaluation.counting import counting
from kdhub.evaluation.report import Report
from kdhub.families import Sizes, member_in
from kdhub.hub.files import digests
from kdhub.method import Progress
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.resolve import Resolver
from kdhub.student import BuildContext
from kdhub.training import members
from kdhub.verbs import publish as publishing

FAMILY = {
    "task": "toy-vectors",
    "method": "toy-plain",
    "student": "sizes:2,4,8",
    "data": {"train": "toy-points"},
    "options": {"max_steps": 12, "batch_size": 8, "lr": 0.05},
    "evaluation": {"data": [{"source": "toy-points", "split": "test"}], "cost": False},
}
ROWS = [{"x": [0.1, -0.2, 0.3, 0.4]}, {"x": [1.0, 0.0, -1.0, 0.5]}]


@pytest.fixture(scope="module")
def made(tmp_path_factory, distil_toys):
    """A finished run of a family; copied, so that a test may change it."""
    return distil_toys(FAMILY, tmp_path_factory.mktemp("families"))


@pytest.fixture
def family(toys, made, tmp_path):
    return kdhub.Run.open(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(publishing, "_usage_problems", lambda *a: [])


def measures(run) -> dict:
    return {(m["metric"], m["variant"].get("member")): m["value"] for m in run.report["measures"]}


def test_each_member_is_measured_counted_and_shown(family):
    """One run leaves three students: figures of each are those of an ordinary student that is cut out."""
    found, task = measures(family), Resolver().task("toy-vectors")
    assert repr(kdhub.load(family.folder)).endswith(" parameters, 3 members>")
    for name, n in (("h2", 2), ("h4", 4), ("h8", 8)):
        member = kdhub.load(family.folder, member=name)
        assert type(member) is toy.NetStudent and found["parameters", name] == 4 * n + n + 3 * n + 3
        assert found["flops", name] == 2 * (4 * n + 3 * n)
        assert repr(member) == f"<NetStudent of toy-vectors: {4 * n + n + 3 * n + 3} parameters>"
        report = kdhub.evaluate(family.folder, member=name)
        assert report.get("toy-error", "student").value == found["toy-error", name], name
        assert {m.subject for m in report.measures if m.metric == "toy-error"} == {"student"} and len(
            report.measures
        ) == 1
        assert kdhub.count_costs(member, ROWS[0], task=task)["flops"] == found["flops", name]
    assert found["toy-error", None] == found["toy-error", "h8"], "the last stands for the whole"
    card = (family.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    (results,) = front["model-index"][0]["results"]
    assert [m.get("args") for m in results["metrics"]] == [None, *({"member": name} for name in ("h2", "h4", "h8"))]
    assert front["kdhub"]["members"]["h4"]["parameters"] == 35
    assert "a family of 3 sizes" in card and "| h2 \\*" in card and "plots/family.png" in card
    assert "kdhub.load(\"student\", member='h2')" in card
    assert (family.folder / "plots" / "family.png").stat().st_size > 5000
    assert Report.from_dict(family.report).costs() == [], "costs of members are not the family's"
    again = kdhub.evaluate(family.folder)
    assert {m.variant.get("member") for m in again.measures} == {None, "h2", "h4", "h8"}


def test_any_method_trains_a_family_and_each_step_is_that_of_its_members(toys, tmp_path):
    """The loss is the mean over the members that learn; what none of them has keeps its weights, decay included."""
    context = BuildContext(Resolver().task("toy-vectors"), None, 0)
    start = toy.sizes("2,4,6,8,10", context).cut("h4").module.state_dict()
    recipe = {**FAMILY, "student": "sizes:2,4,6,8,10"}
    recipe["options"] = {**recipe["options"], "max_steps": 1, "weight_decay": 0.5}
    drawn = toy.Plain.members(
        toy.Plain(toy.Plain.Options()), toy.sizes("2,4,6,8,10", context), np.random.default_rng([0, 0])
    )
    assert drawn[0] == "h2" and drawn[-1] == "h10" and len(drawn) == 4 and len({*drawn}) == 4
    run = kdhub.distill(recipe, out=tmp_path / "run")
    family = kdhub.load(run.folder)
    before = toy.sizes("2,4,6,8,10", context)
    for name in family.members:
        same = torch.equal(family.module.nets[name].inner.weight, before.module.nets[name].inner.weight)
        assert same == (name not in drawn), name
    assert start.keys() == family.cut("h4").module.state_dict().keys()
    given = []

    class Recorded(toy.Plain):
        def objective(self, student, teacher, batch, progress):
            given.append(super().objective(student, teacher, batch, progress))
            return given[-1]

    from kdhub.training.engine import _Objective

    student, method = toy.sizes("2,4", context), Recorded(Recorded.Options(), toy)
    module = _Objective(method, context.task, student, {})
    module.members, module.progress = ("h2", "h4"), Progress(0, 1, 0.0)
    batch = {"x": torch.ones(3, 4), "y": torch.zeros(3, 3)}
    loss = module(batch)["loss"]
    assert loss == (given[0]["labels"] + given[1]["labels"]) / 2 and given[0]["labels"] != given[1]["labels"]
    assert student.module.member is None


def test_a_killed_run_of_a_family_ends_with_the_same_bytes(toys, tmp_path, monkeypatch):
    recipe = {**FAMILY, "student": "sizes:2,3,4,5,6"}
    recipe["options"] = {**recipe["options"], "checkpoint_steps": 3}
    whole = kdhub.distill(recipe, out=tmp_path / "whole")
    real = toy.Plain.objective

    def killed(self, student, teacher, batch, progress):
        if progress.step == 7:
            raise KeyboardInterrupt
        return real(self, student, teacher, batch, progress)

    monkeypatch.setattr(toy.Plain, "objective", killed)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(recipe, out=tmp_path / "killed")
    monkeypatch.setattr(toy.Plain, "objective", real)
    resumed = kdhub.distill(resume=tmp_path / "killed")
    for name in ("h2", "h3", "h4", "h5", "h6"):
        file = f"student/{name}.safetensors"
        assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()


# -- which member ---------------------------------------------------------------------------------------------


def report_of(*rows) -> dict:
    """Measures of members: (name, parameters, score)."""
    made = []
    for name, parameters, score in rows:
        shared = {"subject": "student", "variant": {"member": name}}
        made.append({"metric": "parameters", "value": parameters, **shared})
        if score is not None:
            made.append({"metric": "toy-error", "value": score, "dataset": "d", "higher_is_better": False, **shared})
    return {"schema": 1, "measures": made, "facts": {"primary": {"rows": "toy-error"}}}


def test_the_best_within_a_budget(toys, tmp_path):
    family = toy.sizes("2,4,8", BuildContext(None, None, 0))
    choose = lambda **wanted: member_in(family, tmp_path, wanted, "F")  # noqa: E731
    assert choose(parameters=50) == "h4", "without a report the largest that fits"
    report = report_of(("h2", 1, 0.3), ("h4", 1, 0.5), ("h8", 1, 0.1))
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert choose(parameters=50) == "h2" and choose(parameters=67) == "h8", "counted, whatever the report says"
    with pytest.raises(UsageError, match=r"parameters of at most 18: the least is 19, of h2"):
        choose(parameters=18)
    with pytest.raises(UsageError, match="latency-p50 of at most 3: it is not known of any"):
        choose(latency=3)
    with pytest.raises(UsageError, match="F is a family of 3: say which member"):
        choose()
    with pytest.raises(UnknownNameError, match="no member of F named 'h3'") as error:
        choose(name="h3")
    assert "h2, h4, h8" in error.value.hint
    with pytest.raises(UsageError, match="parameters of at most 20"):
        choose(name="h8", parameters=20)
    with pytest.raises(UsageError, match="no member within the budget has a score in nothing"):
        choose(parameters=50, metric="nothing")
    with pytest.raises(UsageError, match="F is one student"):
        member_in(family.cut("h2"), tmp_path, "h2", "F")


def test_the_front_is_of_those_that_no_smaller_one_beats():
    rows = (("a", 10, 0.5), ("b", 20, 0.6), ("c", 30, 0.2), ("d", 30, 0.1), ("e", 40, None))
    sizes = Sizes.of(report_of(*rows)["measures"])
    assert sizes.front("parameters") == ["a", "d"] and not sizes.higher_is_better
    report = Report.from_dict(report_of(*rows))
    assert [row[0] for row in report.tables()[0].rows] == ["a *", "b", "c", "d *", "e"]
    assert families.figure(report) is not None and families.figure(Report.from_dict(report_of(rows[0]))) is None
    assert (
        Sizes.of([None, {"variant": 7}, {"variant": {"member": "a"}, "value": "x", "subject": "student"}]).members == {}
    )


def test_of_many_members_some_are_timed():
    names = [f"m{i}" for i in range(30)]
    family = type("Many", (), {"members": dict.fromkeys(names, {})})()
    timed = members.timed(family)
    assert len(timed) == len({*timed}) == members.TIMED and timed[0] == "m0" and timed[-1] == "m29"


def test_a_candidate_is_counted_without_a_process(toys):
    student = toy.mlp("5", BuildContext(None, None, 0))
    assert kdhub.count_costs(student) == {"parameters": 4 * 5 + 5 + 5 * 3 + 3}
    assert kdhub.count_costs(student, ROWS[0], task="toy-vectors") == {"parameters": 43, "flops": 2 * (4 * 5 + 5 * 3)}
    assert kdhub.count_costs(toy.table("", None), ROWS[0]) == {}


def test_transformer_layers_are_counted_though_torch_would_run_them_as_one():
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True).eval()
    with torch.no_grad(), counting() as total:
        layer(torch.zeros(1, 16, 32))
    projections, feed_forward = 2 * 16 * 32 * (96 + 32), 2 * 2 * 16 * 32 * 64
    assert total() == projections + feed_forward + 2 * 2 * 4 * 16 * 16 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_process_of_a_member_cuts_it_out(family):
    from kdhub.evaluation import cost

    asked = members.subjects(kdhub.load(family.folder), family.student_folder)
    assert [one["member"] for one in asked] == ["h2", "h4", "h8"]
    _, student, folder = cost._open("toy-vectors", asked[1])
    assert student.module.inner.out_features == 4 and folder is None
    found = list(cost._measures(asked[1], {"parameters": 1, "latency-p50": 2.0}, "why", []))
    assert {m.variant["member"] for m in found} == {"h4"}
    assert {m.metric for m in members.by_the_clock(found)} == {"latency-p50", "latency-p95", "throughput", "memory"}


# -- as a start -----------------------------------------------------------------------------------------------


def test_a_member_is_the_start_of_another_recipe(family, tmp_path):
    start = {"source": f"member:{family.folder}", "parameters": 40}
    recipe = {**FAMILY, "student": start}
    recipe["options"] = {**recipe["options"], "max_steps": 1, "lr": 1e-9}
    run = kdhub.distill(recipe, out=tmp_path / "tuned")
    made = run.provenance["student"]["start"]
    assert made["member"] == {"name": "h4", "hidden": 4} and made["how"] == "the member h4 of a model in a local folder"
    old = kdhub.load(family.folder, member="h4").signals(ROWS, "vector")["vector"]
    assert np.allclose(kdhub.load(run.folder).signals(ROWS, "vector")["vector"], old, atol=1e-6)
    with pytest.raises(UsageError, match="there is no such folder"):
        kdhub.distill({**recipe, "student": {"source": "member:/nowhere", "name": "h2"}}, out=tmp_path / "no")
    with pytest.raises(kdhub.KdhubError, match="student.parameters"):
        kdhub.distill({**recipe, "student": {**start, "parameters": 0}}, out=tmp_path / "no")


def test_a_member_of_a_recipe_that_is_made_first(toys, tmp_path, monkeypatch):
    folder = tmp_path / "catalogue" / "recipes"
    folder.mkdir(parents=True)
    (folder / "sizes.yaml").write_text(yaml.safe_dump({"schema": 1, "name": "sizes", **FAMILY}))
    monkeypatch.setenv("KDHUB_CATALOG", str(folder.parent))
    recipe = {**FAMILY, "student": {"source": "member:recipe:sizes", "name": "h2"}}
    run = kdhub.distill(recipe, out=tmp_path / "run", set=["options.max_steps=1"])
    made = run.provenance["student"]["start"]
    assert (made["source"], made["how"]) == ("member:recipe:sizes", "the member h2 of the student of recipe:sizes")


def test_a_member_of_another_task_is_refused_before_anything_is_made(isolated, tmp_path, monkeypatch):
    folder = tmp_path / "catalogue" / "recipes"
    folder.mkdir(parents=True)
    other = {"task": "image-classification", "method": "supervised", "data": {"train": "digits"}}
    text = yaml.safe_dump({"schema": 1, "name": "sizes", **other, "student": "slimmable-mlp:8"})
    (folder / "sizes.yaml").write_text(text)
    monkeypatch.setenv("KDHUB_CATALOG", str(folder.parent))
    start = {"source": "member:recipe:sizes", "name": "1x"}
    assert resolve_recipe({**other, "student": start}).student.options == {"name": "1x"}
    with pytest.raises(CompatibilityError, match="makes a student for image-classification, not for tabular"):
        resolve_recipe({**other, "task": "tabular-classification", "student": start})


# -- on a hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def pulled(family, hub, tmp_path, quick):
    kdhub.publish(family.folder, "me/sizes", licence="mit")
    return kdhub.pull("me/sizes", to=tmp_path / "there").folder


def seal(folder) -> None:
    """Digests of the manifest made again, as a forger would."""
    facts = json.loads((folder / "kdhub.json").read_text())
    for name, file in facts["files"].items():
        file.update(size=digests(folder / name).size, sha256=digests(folder / name).sha256)
    (folder / "kdhub.json").write_text(json.dumps(facts))


def verdicts(found) -> dict:
    return {(f.metric, f.member): f.verdict for f in found.figures}


def test_a_published_family_holds_and_any_member_of_it(pulled, family):
    found = kdhub.verify(pulled)
    assert (found.status, found.problems) == ("verified", [])
    assert verdicts(found) == {("toy-error", name): "ok" for name in (None, "h2", "h4", "h8")}
    assert verdicts(kdhub.verify(pulled, member="h4")) == {("toy-error", "h4"): "ok"}
    with pytest.raises(UnknownNameError, match="h5"):
        kdhub.verify(pulled, member="h5")
    for name in ("h2", "h4", "h8"):
        one, two = kdhub.load("me/sizes", member=name), kdhub.load(family.folder, member=name)
        assert np.array_equal(one.signals(ROWS, "vector")["vector"], two.signals(ROWS, "vector")["vector"])
    assert kdhub.load("me/sizes", member={"parameters": 20}).module.inner.out_features == 2
    assert json.loads((pulled / "kdhub.json").read_text())["members"]["h2"]["parameters"] == 19


def test_the_weights_of_one_member_are_swapped(pulled):
    weights = load_file(pulled / "h4.safetensors")
    save_file({name: tensor.flip(0) for name, tensor in weights.items()}, pulled / "h4.safetensors")
    found = kdhub.verify(pulled)
    assert (found.status, found.problems) == ("differs", ["h4.safetensors is not the file that was published"])
    seal(pulled)  # digests too: then its figure says so
    found = kdhub.verify(pulled)
    assert found.status == "differs" and [key for key, one in verdicts(found).items() if one == "differs"] == [
        ("toy-error", "h4")
    ]
    assert kdhub.verify(pulled, member="h2").status == "verified"


def test_an_edited_figure_of_a_member(pulled):
    card = pulled / "README.md"
    text = card.read_text()
    found = re.search(r"value: (\S+)\n\s+name: toy-error, member h4", text)
    card.write_text(text.replace(f"value: {found[1]}", f"value: {float(found[1]) * 0.9:.6f}"))
    (edited,) = [f for f in kdhub.verify(pulled).figures if f.verdict == "differs"]
    assert edited.member == "h4" and edited.note == f"the report has {float(found[1]):.6g}"
    card.write_text(text.replace("parameters: 35", "parameters: 30"))
    assert kdhub.verify(pulled).problems[0] == "README.md: member 'h4' has parameters 30, the student's has 35"
    card.write_text(text.replace("hidden: 4", "hidden: 3"))
    said = "README.md: member 'h4' has cut {'hidden': 3}, the student's has {'hidden': 4}"
    assert kdhub.verify(pulled).problems == [said]
    card.write_text(text.replace("parameters: 35", "parameters: 30"))
    report = json.loads((pulled / "report.json").read_text())
    for m in report["measures"]:
        if m["metric"] == "parameters" and m["variant"] == {"member": "h4"}:
            m["value"] = 30
    (pulled / "report.json").write_text(json.dumps(report))
    seal(pulled)  # card, report and digests agree; the member says otherwise
    found = kdhub.verify(pulled)
    assert found.status == "differs" and found.problems == [
        "README.md: member 'h4' has parameters 30, the student's has 35"
    ]


def test_a_member_is_published_as_a_student_of_its_own(family, hub, tmp_path, quick):
    kdhub.publish(family.folder, "me/small", member="h2", licence="mit")
    there = kdhub.pull("me/small", to=tmp_path / "there").folder
    assert not list(there.glob("h*.safetensors")) and kdhub.verify(there).status == "verified"
    report = Report.from_dict(json.loads((there / "report.json").read_text()))
    assert report.get("toy-error", "student").value == measures(family)["toy-error", "h2"]
    assert report.get("parameters", "student").value == 19 and not report.sizes.members
    front = yaml.safe_load((there / "README.md").read_text().split("---")[1])
    assert front["kdhub"]["member"] == {"name": "h2", "of": 3, "cut": {"hidden": 2}}
    with pytest.raises(UnknownNameError, match="h3"):
        kdhub.publish(family.folder, "me/small", member="h3", dry_run=True)
    with pytest.raises(UsageError, match="from the run that made its family"):
        kdhub.publish(there, "me/small", member="h2", dry_run=True)
    with pytest.raises(UsageError, match="is one student"):
        kdhub.evaluate(there, member="h2", data="toy-points")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """`kdhub hub serve`, and a user who may write there."""
    with serve(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


def test_a_family_of_three_is_distilled_published_pulled_opened_and_verified(isolated, served, monkeypatch, tmp_path):
    """A slimmable network and its teacher, by `kd`; on another cache each member gives what it gave, bit for bit."""
    digits = {"train": [{"source": "digits", "split": "train", "limit": 300}]}
    scored = {"data": [{"source": "digits", "split": "test", "limit": 200}], "cost": False, "metrics": ["accuracy"]}
    common = {"task": "image-classification", "data": digits, "evaluation": scored}
    common["options"] = {"max_steps": 40, "lr": 0.01}
    teacher = kdhub.distill({**common, "method": "supervised", "student": "mlp:32"}, out=tmp_path / "teacher")
    run = kdhub.distill(
        {**common, "method": "kd", "teacher": f"path:{teacher.student_folder}", "student": "slimmable-mlp:32,16"},
        out=tmp_path / "run",
    )
    done = kdhub.publish(run.folder, "me/digits", licence="mit")  # its usage lines are run
    assert done.endpoint == served.endpoint and check_card(done.card, Report.from_dict(run.report)) == []
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "other"))
    folder = kdhub.pull("me/digits").folder
    here, there = kdhub.load(run.folder), kdhub.load("me/digits")
    rows = [{"x": np.random.default_rng(n).random((8, 8), np.float32)} for n in range(3)]
    for name in ("0.25x", "0.5x", "1x"):
        there.choose(name)
        mine, whole = here.cut(name).signals(rows, "logits")["logits"], there.signals(rows, "logits")["logits"]
        theirs = kdhub.load("me/digits", member=name).signals(rows, "logits")["logits"]
        assert np.array_equal(mine, theirs) and np.array_equal(mine, whole), name
    found = kdhub.verify("me/digits")
    assert found.status == "verified" and [f.member for f in found.figures] == [None, "0.25x", "0.5x", "1x"]
    weights = load_file(folder / "model.safetensors")
    weights["hidden.0.weight"][16:] = weights["hidden.0.weight"][16:].flip(0)  # of the widest alone
    save_file(weights, folder / "model.safetensors")
    assert kdhub.verify(folder).problems == ["model.safetensors is not the file that was published"]
    seal(folder)
    differing = {f.member for f in kdhub.verify(folder).figures if f.verdict == "differs"}
    assert differing == {None, "1x"}
