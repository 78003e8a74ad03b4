"""Teachers behind a server that are asked inside training, against a real one on loopback."""

from __future__ import annotations

import json
import math

import pytest
import torch
from kdhub_lm.data.preferences import mean_log_probs
from kdhub_lm.methods.gkd import Gkd, estimated
from kdhub_tasks.divergences import jensen_shannon
from kdhub_tasks.language import task
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.students import llama, trained_tokenizer
from kdhub_tasks.sparse import divergence

import kdhub
from kdhub.errors import CompatibilityError, HubError, RecipeError, TeacherError, UsageError
from kdhub.student import BuildContext
from kdhub.testing.language_server import language_server
from kdhub.testing.server import cut

ALL = 258
TEXTS = [f"{a} and {b} make {a + b}." for a in range(4) for b in range(6)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The teacher's folder, and its server."""
    folder = tmp_path_factory.mktemp("served")
    llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3)).save(folder / "teacher")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with language_server(folder / "teacher") as server:
        yield folder, server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(OpenAI, "backoff", 0.01)


def teacher(served, **options) -> OpenAI:
    folder, server = served
    made = OpenAI.Options(base_url=server.url, tokenizer=str(folder / "teacher"), **options)
    return OpenAI("tiny", made, task=task.CausalLanguage())


def recipe(served, method="gkd", keep=None, source=None, **options):
    """`keep`: of the server; without it the local model teaches."""
    folder, server = served
    there = {"source": "openai:tiny", "base_url": server.url, "tokenizer": str(folder / "teacher"), "retries": 1}
    return {
        "task": "causal-lm", "method": method,
        "teacher": source or (there if keep else {"source": f"path:{folder / 'teacher'}"}),
        "student": "llama:width=8,layers=1,heads=2,length=64", "data": {"train": [f"path:{folder / 'texts.jsonl'}"]},
        "signals": {"keep": keep or "all"}, "evaluation": {"data": []},
        "options": {
            "max_steps": 10, "batch_size": 4, "lr": 0.01, "precision": "float32", "max_new_tokens": 4, **options,
        },
    }  # fmt: skip


def losses(run) -> list[float]:
    return [line["loss"] for line in run.metrics() if "loss" in line]


def batch_of(served):
    student = llama("width=8,layers=1,heads=2,length=64", BuildContext(None, None, 0))
    made = task.CausalLanguage()
    return student, made.collate(made.preparer(student, None)([{"text": text} for text in TEXTS[:5]]), student)


# -- what it gives ----------------------------------------------------------------------------------------------------


def test_all_and_part_of_the_logits_against_the_local_model(served):
    student, batch = batch_of(served)
    local = task.CausalLanguage().load(served[0] / "teacher").module.eval()
    with torch.no_grad():
        s, z = student.module(batch).logits, local(batch).logits
    whole = jensen_shannon(s, z, 0.5)
    there = teacher(served, concurrency=4)
    for count in (ALL, 32):
        given = there.batch_signals(batch, f"logits:top-{count}")
        of_labels = z.log_softmax(-1).gather(-1, batch["labels"][:, None])[:, 0]
        torch.testing.assert_close(given["label_log_probs"], of_labels, atol=1e-5, rtol=1e-5)
        some = divergence(lambda a, b: jensen_shannon(a, b, 0.5), s, given["logits"])
        bound = math.log(2) * given["logits"].left_out(s, 0.5)
        if count == ALL:
            torch.testing.assert_close(some, whole, atol=1e-5, rtol=1e-5)
            assert bound.abs().max() == 0
        else:
            assert (some <= whole + 1e-6).all() and (whole <= some + bound + 1e-6).all() and (whole - some).max() > 1e-4
    assert there.spent["requests"] == 10 and there.spent["answers"] == 10 and served[1].most <= 4


@pytest.mark.parametrize(
    ("method", "options"),
    [("gkd", {"lmbda": 1.0}), ("gkd", {"lmbda": 1.0, "sampling_temperature": 1.0, "estimator": "k1", "max_steps": 3}),
     ("minillm", {"teacher_share": 0.0, "accumulate": 2, "max_steps": 3})],
)  # fmt: skip
def test_ten_steps_are_those_with_the_teacher_in_this_process(served, tmp_path, method, options):
    here = kdhub.distill(recipe(served, method, **options), out=tmp_path / "here")
    there = kdhub.distill(recipe(served, method, f"top-{ALL}", **options), out=tmp_path / "there")
    steps = options.get("max_steps", 10)
    assert len(losses(here)) == steps and losses(there) == pytest.approx(losses(here), abs=1e-4)
    counts = there.provenance["spent"]["training"]
    assert counts["requests"] == counts["answers"] == 4 * steps == there.provenance["training"]["live_teacher_rows"]
    assert "spent" not in here.provenance or "training" not in here.provenance["spent"]


def test_the_bound_of_a_part_is_logged(served, tmp_path):
    run = kdhub.distill(recipe(served, keep="top-32", max_steps=3), out=tmp_path / "run")
    whole = kdhub.distill(recipe(served, max_steps=1), out=tmp_path / "whole")
    first = next(line for line in run.metrics() if "loss" in line)
    assert 0 <= losses(whole)[0] - first["loss"] <= first["state"]["bias_bound"] < math.log(2)


def test_scores_of_responses_for_a_reward_model(served):
    local = kdhub.open_teacher({"source": f"path:{served[0] / 'teacher'}"}, "causal-lm")
    texts = ["3 and 4", "make"]
    assert mean_log_probs(teacher(served), "1 + 2", texts) == pytest.approx(
        mean_log_probs(local, "1 + 2", texts), abs=1e-5
    )


def test_estimators_by_hand_and_what_they_lead_to():
    log_q, log_p = torch.tensor([0.5]).log(), torch.tensor([0.2]).log()
    assert estimated("k1", log_q, log_p).item() == pytest.approx(math.log(2.5))
    assert estimated("k3", log_q, log_p).item() == pytest.approx(0.4 - 1 + math.log(2.5))
    p, z = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, -0.4, 0.8])
    for estimator, kl in (
        ("k1", lambda q: (q * (q / p).log()).sum()), ("k3", lambda q: (p * (p / q).log()).sum()),
    ):  # fmt: skip
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        q = a.softmax(-1)
        (q.detach() * estimated(estimator, a.log_softmax(-1), p.log())).sum().backward()
        kl(b.softmax(-1)).backward()
        torch.testing.assert_close(a.grad, b.grad)
        reverse = (q * (q / p).log()).sum()
        assert (q * estimated(estimator, q.log(), p.log())).sum().item() == pytest.approx(reverse.item(), abs=1e-6)
    with pytest.raises(ValueError, match="lmbda must be 1 where .*estimator=k1, lmbda=0.5"):
        Gkd.Options(estimator="k1", sampling_temperature=1.0)


# -- a server that goes away ------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_its_teacher_went_away(served, tmp_path):
    """It fails in the second half of a step, when its samples are drawn and half of it is computed."""
    server, whole = served[1], recipe(served, keep=f"top-{ALL}", lmbda=1.0, accumulate=2)
    undisturbed, usual = kdhub.distill(whole, out=tmp_path / "undisturbed"), server.always
    seen = 0

    def gone(handler, body):
        nonlocal seen
        seen += 1
        return cut(handler, body) if seen > 18 else usual(handler, body)

    server.always = gone
    try:
        with pytest.raises(HubError, match="after 2 tries") as caught:
            kdhub.distill(whole, out=tmp_path / "run")
    finally:
        server.always = usual
    assert "checkpoint-4 is kept: kdhub distill --resume" in caught.value.hint
    run = kdhub.distill(resume=tmp_path / "run")
    assert losses(run) == pytest.approx(losses(undisturbed), abs=1e-5) and len(losses(run)) == 10
    counts = run.provenance["spent"]["training"]
    assert counts["answers"] >= 40 and counts["requests"] > counts["answers"]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_asked(served, tmp_path):
    folder, server = served
    asked = len(server.bodies)
    plain, local = {"source": "openai:tiny", "base_url": server.url}, {"source": f"path:{folder / 'teacher'}"}
    there = {**plain, "tokenizer": str(folder / "teacher")}
    for n, (given, error, message) in enumerate([
        (recipe(served, keep="top-259"), UsageError, "there are 258 classes"),
        (recipe(served, keep="top-8", source=plain), CompatibilityError, "tokenizer of openai:tiny .* unknown"),
        (recipe(served, source=there), CompatibilityError, "a part of its logits"),
        (recipe(served, keep="top-8", source=local), CompatibilityError, "all of what it gives is used"),
        (recipe(served, "minillm", "top-8"), UsageError, "teacher_share=0.2"),
        (recipe(served, "uld", "top-8"), CompatibilityError, "does not learn from signals.keep"),
        (recipe(served, keep="top-8", estimator="k3"), RecipeError, "lmbda must be 1"),
    ]):  # fmt: skip
        with pytest.raises(error, match=message):
            kdhub.distill(given, out=tmp_path / str(n))
    assert len(server.bodies) == asked


def test_a_server_without_them_and_one_of_other_tokens(served, tmp_path):
    folder, server = served
    good = server.good

    def without(path, body):
        answer = good(path, body)
        del answer["choices"][0]["prompt_logprobs"]
        return answer

    server.good = without
    try:
        with pytest.raises(TeacherError, match="sent no 'prompt_logprobs'"):
            kdhub.distill(recipe(served, keep="top-8"), out=tmp_path / "without")
    finally:
        server.good = good
    tables = kdhub.open_data(f"path:{folder / 'texts.jsonl'}").split("train")
    other = trained_tokenizer([tables], 270)
    vocabulary = {token: (n - 2 + 100) % 256 + 2 if n > 1 else n for token, n in other.get_vocab().items() if n < 258}
    told = json.loads((folder / "teacher" / "tokenizer.json").read_text())
    told["model"] |= {"vocab": vocabulary, "merges": []}
    (mixed := tmp_path / "mixed").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mixed / name).write_text((folder / "teacher" / name).read_text())
    (mixed / "tokenizer.json").write_text(json.dumps(told))
    source = {"source": "openai:tiny", "base_url": server.url, "tokenizer": str(mixed)}
    with pytest.raises(TeacherError, match="has other tokens than its option tokenizer says"):
        kdhub.distill(recipe(served, keep="top-8", source=source), out=tmp_path / "mixed-run")
