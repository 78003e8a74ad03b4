"""Cards: made from the run folder alone, safe whatever names it holds, and refused when something is missing."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from kdhub.evaluation.card import (
    LIMITS,
    RESULTS,
    assemble,
    code,
    fence,
    front_matter,
    render_card,
    sections,
    text,
)
from kdhub.evaluation.card_check import check_card
from kdhub.evaluation.report import Report
from kdhub.hub.trust import split_card as split
from kdhub.metric import Measure
from kdhub.recipes.run import Run

RECIPE = {
    "schema": 1,
    "name": "leaf-minilm-l2",
    "summary": "Two layers of MiniLM in the space of all six",
    "task": "text-embedding",
    "method": "leaf",
    "teacher": "packaged:all-minilm-l6-v2",
    "student": "layers:2",
    "data": {"train": [{"source": "pydoc", "sample": 12000}]},
    "evaluation": {"data": [{"source": "pydoc"}, {"source": "stsb"}]},
    "seed": 3,
}
PROVENANCE = {
    "schema": 1,
    "teacher": {
        "source": "packaged:all-minilm-l6-v2",
        "id": "sentence-transformers/all-MiniLM-L6-v2",
        "revision": "abc123",
        "licence": "apache-2.0",
    },
    "student": {
        "start": {
            "source": "layers:2",
            "base_model": "sentence-transformers/all-MiniLM-L6-v2",
            "licence": "Apache-2.0",
            "how": "layers 0 and 5",
        },
        "parameters": 15_615_360,
        "usage": 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{path}")',
        "library": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
    },
    "method": {
        "name": "leaf",
        "distribution": "kdhub-text",
        "version": "0.1.0",
        "paper": "arXiv:2509.12539",
        "summary": "the student's vectors in the teacher's own space",
    },
    "data": {
        "use": [
            {"use": "evaluation", "source": "stsb", "name": "stsb", "split": "test", "rows": 1379,
             "fingerprint": "b" * 64, "licence": "cc-by-sa-4.0",
             "from": {"kind": "hub", "repo": "sentence-transformers/stsb"}},
            {"use": "train", "source": "pydoc", "name": "pydoc", "split": "train", "rows": 12000,
             "fingerprint": "a" * 64, "licence": None, "from": {"kind": "generator"}},
        ]
    },
    "signals": {"embedding": {"rows": 15000, "computed": 12000, "found": 3000}},
    "environment": {
        "versions": {"kdhub": "0.1.0", "torch": "2.13.0"},
        "python": "3.12.1",
        "hardware": {"processor": "Some CPU", "cores": 2, "threads": 2, "memory_bytes": 8_000_000_000},
        "command": ["kdhub", "distill", "--out", "/home/somebody/runs/x"],
    },
    "training": {"seconds": 75.0, "steps": 375, "rows_per_second": 160.0},
    "seed": 3,
}  # fmt: skip


def measures(dataset="pydoc", other="stsb"):
    def both(metric, teacher, before, student, name, **more):
        for subject, value in (("teacher", teacher), ("student-before", before), ("student", student)):
            yield Measure(metric=metric, value=value, subject=subject, dataset=name, split="test", examples=612, **more)

    yield from both("ndcg@10", 0.506, 0.316, 0.458, dataset)
    yield from both("ndcg@10", 0.45, 0.25, 0.40, dataset, variant={"dims": 96})
    yield from both("spearman", 0.82, 0.69, 0.78, other)
    yield Measure(metric="ndcg@10", value=0.461, subject="asymmetric", dataset=dataset, split="test", examples=612)
    yield Measure(metric="parameters", value=22_713_216, subject="teacher", unit="parameters", higher_is_better=False)
    yield Measure(metric="parameters", value=15_615_360, subject="student", unit="parameters", higher_is_better=False)
    yield Measure(metric="flops", value=None, subject="student", unit="FLOPs", note="could not be counted")


REPORT = Report(
    list(measures()),
    ["scifact was left out: KDHUB_DATA is not set"],
    {"primary": {"retrieval": "ndcg@10", "sts": "spearman"}, "truncated": {"train": 41}, "skipped": {"pydoc train": 7}},
)


@pytest.fixture
def make_run(tmp_path):
    def make(recipe=None, provenance=PROVENANCE, report=REPORT, plots=("loss.png",)):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        (folder / "plots").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe or RECIPE))
        if provenance is not None:
            (folder / "provenance.json").write_text(json.dumps(provenance))
        if report is not None:
            (folder / "report.json").write_text(json.dumps(report.to_dict()))
        for name in plots:
            (folder / "plots" / name).write_bytes(b"png")
        return Run.open(folder)

    return make


def changed(**parts):
    """PROVENANCE with some parts merged one level deep."""
    return {**PROVENANCE, **{k: {**PROVENANCE[k], **v} if isinstance(v, dict) else v for k, v in parts.items()}}


def test_front_matter_of_a_whole_run(make_run):
    front, _ = split(render_card(make_run()))
    assert front["library_name"] == "sentence-transformers" and front["pipeline_tag"] == "sentence-similarity"
    assert front["license"] == "apache-2.0"
    assert front["tags"] == [
        "kdhub",
        "knowledge-distillation",
        "kdhub-method:leaf",
        "kdhub-teacher:sentence-transformers/all-MiniLM-L6-v2",
        "kdhub-task:text-embedding",
    ]
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["base_model_relation"] == "finetune"
    assert "datasets" not in front, "pydoc is on no hub, and stsb was not trained on"
    pydoc, stsb = front["model-index"][0]["results"]
    assert pydoc["dataset"] == {"type": "pydoc", "name": "pydoc", "split": "test"}
    assert stsb["dataset"]["type"] == "sentence-transformers/stsb"
    assert [(x["type"], x["value"]) for x in pydoc["metrics"]] == [("ndcg@10", 0.458), ("ndcg@10", 0.461)]
    assert front["kdhub"]["teacher"]["revision"] == "abc123" and front["kdhub"]["method"]["version"] == "0.1.0"
    assert re.fullmatch("[0-9a-f]{64}", front["kdhub"]["recipe_sha256"])


def test_the_hub_s_own_reader_reads_the_results(make_run):
    from huggingface_hub import ModelCard

    data = ModelCard(render_card(make_run())).data
    found = {(r.dataset_type, r.metric_type, r.metric_value) for r in data.eval_results}
    assert ("sentence-transformers/stsb", "spearman", 0.78) in found and data.license == "apache-2.0"


def test_body_of_a_whole_run(make_run):
    run = make_run()
    card = render_card(run, path="me/student")
    assert check_card(card, Report.from_dict(run.report)) == []
    assert (
        "**90.5 %** of the teacher's `ndcg@10` on `pydoc test` (0.458 of 0.506; before training it kept 62.5 %)" in card
    )
    assert "Against the teacher: 1.5x fewer parameters." in card
    assert 'SentenceTransformer("me/student")' in card and "{path}" not in card
    assert "kdhub distill --recipe recipe.yaml" in card and "sample: 12000" in card
    assert "[arXiv:2509.12539](https://arxiv.org/abs/2509.12539)" in card
    assert "![Loss and learning rate during training](plots/loss.png)" in card and "retention.png" not in card
    limits = sections(run)[LIMITS]
    for said in ("FLOPs per example (could not be counted)", "`train` 41", "`pydoc train` 7", "scifact was left out",
                 "`stsb test` (612 examples)", "one seed"):  # fmt: skip
        assert said in limits
    assert "/home/somebody" not in card, "the command line of the run stays private"
    assert render_card(run, path="me/student") == card


def test_every_piece_may_be_missing_and_the_check_says_what(make_run):
    card = render_card(make_run({"task": "t", "method": "m", "student": "s", "schema": 1}, None, None, ()))
    front, body = split(card)
    assert front["license"] == "other" and front["kdhub"]["name"] == "t-m"
    assert "has not been evaluated" in body and "No quality was measured" in body
    assert check_card(card) == ["front matter: model-index has no results; evaluate the student first"]


@pytest.mark.parametrize(
    "teacher, start, keys, said",
    [
        ("mit", "MIT", {"license": "mit"}, "carries over `mit`"),
        ("apache-2.0", None, {"license": "other", "license_name": "see-card"}, "at least one of them is not known"),
        ("apache-2.0", "cc-by-nc-4.0", {"license": "other", "license_name": "see-card"}, "they differ"),
        ("My Own!", "my own!", {"license": "other", "license_name": "my-own"}, "not one of the standard ones"),
    ],
)
def test_licence_is_carried_over_or_left_to_a_person(make_run, teacher, start, keys, said):
    provenance = changed(teacher={"licence": teacher}, student={"start": {"base_model": "a/b", "licence": start}})
    run = make_run(provenance=provenance)
    front = front_matter(run)
    assert {k: front[k] for k in front if k.startswith("license")} == keys
    assert said in sections(run)["Licence"] and check_card(render_card(run)) == []


def test_a_start_says_what_it_is_to_its_base_models(make_run):
    start = {"base_model": ["a/b", "a/c"], "relation": "merge", "how": "the mean"}
    card = render_card(make_run(provenance=changed(student={"start": start})))
    front, body = split(card)
    assert front["base_model"] == ["a/b", "a/c"] and front["base_model_relation"] == "merge"
    assert "It started as the mean of `a/b` and `a/c`." in body and not [p for p in check_card(card) if "base" in p]
    start["base_model"] = ["a/b", "/home/me/model"]
    assert "base_model" not in front_matter(make_run(provenance=changed(student={"start": start})))


def test_a_start_that_is_on_no_hub_is_no_base_model(make_run):
    run = make_run(provenance=changed(student={"start": {"base_model": "/home/me/model"}}))
    assert "base_model" not in front_matter(run) and "base_model_relation" not in front_matter(run)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "x\n---\nlicense: mit\ntags: [pwned]\n---\n# pwned",
    "a | b | c\n\n## Results\n\n[click](javascript:alert(1))",
    "``` `x` </details><b>",
    "![x](http://evil.test/pixel.png) www.evil.test https://evil.test <https://evil.test>",
    "{path} {{ x }} &lt;script&gt; \\`<i>",
    "'\"]: {!!python/object/apply:os.system [id]}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(make_run, name):
    markdown_it = pytest.importorskip("markdown_it")
    hostile_part = {"id": name, "revision": name, "licence": name, "source": name}
    provenance = {
        "schema": 1,
        "teacher": hostile_part,
        "student": {"start": {"base_model": name, "how": name}, "usage": f"import kdhub  # {name}"},
        "method": dict.fromkeys(("name", "distribution", "version", "paper", "summary", "citation"), name),
        "data": {"use": [{"use": "train", "source": name, "name": name, "split": name, "licence": name, "from": name}]},
        "signals": {name: {"computed": 3}},
        "resumed_with": {name: name},
        "environment": {"versions": {name: name}, "python": name, "hardware": {"processor": name, "gpus": [name]}},
        "training": {},
        "language": name,
    }  # fmt: skip
    report = Report(
        [*measures(name, name), Measure(metric=name, value=None, subject=name, note=name)],
        [name],
        {"primary": name, "truncated": {name: 1}, "skipped": {name: {name: 2}}},
    )
    run = make_run({**RECIPE, "name": name, "summary": name}, provenance, report)
    card = render_card(run)
    front, body = split(card)
    assert front["library_name"] == "kdhub" and "pwned" not in front["tags"] and front["license"] == "other"
    assert "base_model" not in front
    clean, _ = split(render_card(make_run()))
    assert set(front) <= {*clean, "license_name"}, "no key came in through a name"
    titles = re.findall(r"^## (.*)$", re.sub(r"^(`{3,}).*?^\1$", "", body, flags=re.M | re.S), re.M)
    assert len(titles) == len(set(titles)) == 7

    html = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body)
    tags = {tag.lower() for tag in re.findall(r"<([a-zA-Z][\w-]*)", html)}
    assert tags <= set("h1 h2 p ul li table thead tbody tr th td pre code strong em details summary img a".split())
    assert re.findall(r'<img src="([^"]*)"', html) == ["plots/loss.png"]
    assert set(re.findall(r'href="([^"]*)"', html)) <= set(), "no link came in through a name"
    assert not [problem for problem in check_card(card) if "HTML" in problem or "link" in problem]


def test_code_cannot_be_left():
    for content in ("```\n# out\n```", "a `````` b", ""):
        block = fence(content, "yaml").splitlines()
        ticks = block[-1]
        assert set(ticks) == {"`"} and ticks not in content and block[0] == ticks + "yaml"
    assert code("a`b``c") == "``` a`b``c ```" and code("\n") == "`?`"
    assert text("# a_b*c* <x> | 1") == r"\# a\_b\*c\* &lt;x&gt; \| 1" and text("1. x") == r"1\. x"


def test_sections_of_an_add_on_are_printed_and_checked(make_run):
    run = make_run()
    parts = sections(run)
    parts["Tracking"] = "See <script src='https://evil.test/x.js'></script>"
    problems = check_card(assemble(front_matter(run), parts))
    assert problems == ["the text holds raw HTML: <script>"]


BREAKAGES = [
    ("---\nlibrary_name", "library_name", "does not begin with front matter"),
    ("tags:\n", "tags: [\n", "not valid YAML"),
    ("license: apache-2.0\n", "", "'license' is missing"),
    ("license: apache-2.0\n", "license: apache\n", "'apache' is not a licence identifier"),
    ("license: apache-2.0\n", "license: other\n", "needs a license_name"),
    ("- knowledge-distillation\n", "", "the tag 'knowledge-distillation' is missing"),
    ("- kdhub-method:leaf\n", "- 'kdhub-method:'\n", "begins with 'kdhub-method:' is missing"),
    ("base_model_relation: finetune", "base_model_relation: distill", "'distill', not one that hubs know"),
    ("base_model: sentence-transformers/all-MiniLM-L6-v2\nbase", "base_model: ./local\nbase", "'./local' is not an id"),
    ("value: 0.458", "value: .nan", "is nan, not a number"),
    ("value: 0.458", "value: '0.458'", "metrics.0.value must be a number (found '0.458')"),
    ("value: 0.458", "value: 0.958", "is 0.958, which is not in the report"),
    ("value: 0.458", "value: 0.506", "is 0.506, which is not in the report"),  # the teacher's
    ("      name: pydoc\n", "", "results.0.dataset.name is missing"),
    ("recipe_sha256", "recipe", "kdhub.recipe_sha256 is missing"),
    ("kdhub:\n  schema: 1", "kdhub:\n  schema: 7", "kdhub.schema is 7"),
    ("## Usage", "## Use", "the section 'Usage' is missing"),
    ("# leaf-minilm-l2\n", "", "needs a title"),
    ("One run with one seed", "TODO: say more", "placeholder text: TODO"),
    ('SentenceTransformer("student")', 'SentenceTransformer("{path}")', "placeholder text: {path}"),
    ("](plots/loss.png)", "](../../etc/passwd)", "a link leads to '../../etc/passwd'"),
    ("](https://arxiv", "](javascript:x//arxiv", "a link leads to 'javascript"),
    ("<details>", "<details onclick='x()'>", "raw HTML with attributes"),
    ("seed 3.", "seed 3, token hf_" + "a1B2" * 8, "looks like a secret"),
]


@pytest.mark.parametrize("old, new, said", BREAKAGES)
def test_the_check_has_teeth(make_run, old, new, said):
    run = make_run()
    card, report = render_card(run), Report.from_dict(run.report)
    assert old in card and check_card(card, report) == []
    problems = check_card(card.replace(old, new), report)
    assert any(said in problem for problem in problems), problems


def test_an_empty_section_is_refused(make_run):
    run = make_run()
    parts = {**sections(run), RESULTS: "\u200b"}
    assert "the section 'Results' is empty" in check_card(assemble(front_matter(run), parts).replace("\u200b", ""))
