"""Several rows in one sequence give what each gives alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from kdhub_tasks.language import model as models
from kdhub_tasks.language import packing, task
from kdhub_tasks.language.students import byte_tokenizer, llama

import kdhub
from kdhub.errors import CompatibilityError
from kdhub.student import BuildContext


def test_where_rows_go():
    assert packing.places([3, 9, 4, 1], 10) == [(1, 4), (0, 0), (1, 0), (0, 9)]
    assert packing.places([12], 10) == [(0, 0)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one(kind):
    torch.manual_seed(0)
    if kind == "llama":
        student = llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))
    else:
        config = transformers.GPT2Config(vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        student = models.CausalLm(transformers.GPT2LMHeadModel(config).eval(), byte_tokenizer(64))
    packing.require_packing(student.module.model)
    rows = [{"prompt": "2+3=", "response": "5"}, {"prompt": "why?", "response": "so that " * 5},
            {"prompt": "x" * 50, "response": "y"}, {"prompt": "a", "response": "b"}]  # fmt: skip
    examples = task.CausalLanguage().preparer(student, None)(rows)
    found = []
    for student.packing in (False, True):
        batch = task.CausalLanguage().collate(examples, student)
        given = student.module(batch)
        student.module.zero_grad()
        loss = torch.nn.functional.cross_entropy(given.logits, batch["labels"])
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in student.module.parameters()])
        found.append((batch["input_ids"].shape, given.logits.detach(), loss.detach(), gradients))
    (padded, *alone), (packed, *together) = found
    assert padded == (4, 53) and packed == (2, 64)
    for a, b in zip(alone, together):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_student_that_packs_trains(tmp_path):
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    values = []
    for packs in (False, True):
        student = {"source": "llama:width=16,layers=1,heads=2,length=64", "packing": packs}
        run = kdhub.distill(
            {"task": "causal-lm", "method": "supervised", **made, "teacher": None, "student": student,
             "options": {"epochs": 2, "batch_size": 8, "precision": "float32", "lr": 0.01}},
            out=tmp_path / str(packs))  # fmt: skip
        values += [m["value"] for m in run.report["measures"] if (m["metric"], m["subject"]) == ("nll", "student")]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_networks_whose_rows_would_see_each_other_are_refused():
    class Blind(transformers.LlamaForCausalLM):
        def forward(self, *arguments, position_ids=None, **named):
            return super().forward(*arguments, **named)

    plain = llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3)).module.model
    with pytest.raises(CompatibilityError, match="not supported by Blind"):
        packing.require_packing(Blind(plain.config))
    student = {"source": "llama:width=16,layers=1,heads=2,length=64", "packing": True}
    assert kdhub.open_student(student, "causal-lm").packing
