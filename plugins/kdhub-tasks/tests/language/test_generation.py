"""Texts that models write: prompts, samples, and what is stored."""

from __future__ import annotations

import math

import datasets
import pytest
import torch
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.generation import Generation, answered, answers, decoded

from kdhub.errors import DataError, TeacherError, UsageError


@pytest.fixture
def teacher(tiny, saved, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    tiny.save(folder)
    return saved(folder)


def test_greedy_text_is_what_the_model_finds_most_probable(tiny):
    prompts = [[1, 40, 50], [1, 60], [1, 70, 71, 72, 73]]
    given = tiny.generate(prompts, Generation(max_new_tokens=5), 0)
    for prompt, written in zip(prompts, given):
        ids = list(prompt)
        for token in written:  # one after the other, without padding or cache
            with torch.no_grad():
                logits = tiny.module.model(torch.tensor([ids])).logits[0, -1, : tiny.module.classes]
            assert int(logits.argmax()) == token
            ids.append(token)
    again = tiny.generate(prompts[:1], Generation(max_new_tokens=5, temperature=1.0), 7)
    state = torch.get_rng_state()
    assert tiny.generate(prompts[:1], Generation(max_new_tokens=5, temperature=1.0), 7) == again
    assert torch.equal(state, torch.get_rng_state()), "sampling draws from no generator of the process"


def test_sampling_follows_the_models_probabilities(tiny):
    prompt = [1, 40, 50]
    with torch.no_grad():
        p = torch.softmax(tiny.module.model(torch.tensor([prompt])).logits[0, -1, :258] / 0.5, -1)
    drawn = tiny.generate([prompt] * 4000, Generation(max_new_tokens=1, temperature=0.5), 1)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=258) / 4000
    assert (counts - p).abs().sum() / 2 < 0.13, "total variation: 258 classes and 4,000 draws give about 0.1"


def test_padded_columns_of_a_vocabulary_are_never_written(tiny):
    model = tiny.module.model
    model.resize_token_embeddings(300)
    with torch.no_grad():
        model.get_output_embeddings().weight[258:] = 10 * model.get_output_embeddings().weight[:42].abs()
    wide = models.CausalLm(model, tiny.tokenizer)
    assert wide.module.classes == 258
    written = wide.generate([[1, 40]] * 8, Generation(max_new_tokens=8, temperature=1.0), 0)
    assert max(max(ids) for ids in written) < 258


def test_answers_are_requested_once(teacher, monkeypatch):
    counts = []
    of_model = models.CausalLm.generate
    monkeypatch.setattr(
        models.CausalLm,
        "generate",
        lambda self, prompts, *a: counts.append(len(prompts)) or of_model(self, prompts, *a),
    )
    table = datasets.Dataset.from_dict({"prompt": ["ab", "cd", "ab"]})
    how = Generation(max_new_tokens=6)
    first = list(answers(teacher, table, how))
    assert counts == [2] and first[0] == first[2], "equal prompts are one"
    assert list(answers(teacher, table, how)) == first and counts == [2]
    numbered = table.add_column("sample", [0, 0, 1])
    sampled = list(answers(teacher, numbered, Generation(max_new_tokens=6, temperature=1.0)))
    assert counts == [2, 3] and sampled[0] != sampled[2], "two samples of a prompt are two rows"
    # a response is no part of the prompt
    list(answers(teacher, table.add_column("response", ["x", "y", "z"]), how))
    assert counts == [2, 3]


def test_prompts_leave_room_for_answers(teacher):
    prepare = task.CausalLanguage().preparer(None, teacher, prompts=10)
    (long,) = prepare([{"prompt": "x" * 90 + "?"}])
    assert long["cut"] and len(long["ids"]) == 54 and long["ids"][-1] == teacher.tokenizer("?")["input_ids"][-1]
    with pytest.raises(UsageError, match="max_new_tokens=64, length=64"):
        task.CausalLanguage().preparer(None, teacher, prompts=64)


def test_half_a_character_is_not_an_error():
    import numpy as np

    text = "é".encode()[:1]
    assert decoded({"text": [np.frombuffer(text, np.uint8)], "ended": [1]}) == [("\ufffd", True)]


def test_empty_answers_are_dropped_and_reported(teacher, monkeypatch, caplog):
    end = teacher.tokenizer.eos_token_id
    table = datasets.Dataset.from_dict({"prompt": ["ab", "cd"]})
    monkeypatch.setattr(models.CausalLm, "generate", lambda self, prompts, *a: [[end]] * len(prompts))
    with pytest.raises((TeacherError, DataError), match="2 of 2 answers"):
        answered(teacher, table, Generation(max_new_tokens=2), name="x").split("train")
    letter = teacher.tokenizer("z")["input_ids"][-1]
    monkeypatch.setattr(models.CausalLm, "generate", lambda self, prompts, *a: [[letter, end], [end]][: len(prompts)])
    data = answered(teacher, table, Generation(max_new_tokens=3), name="x")
    assert [row["response"] for row in data.split("train")] == ["z"] and "1 of 2 answers" in caplog.text


def test_what_an_answer_may_begin_with_is_kept(teacher, tiny):
    table = datasets.Dataset.from_list([{"prompt": "ab"}, {"prompt": "a longer one"}])
    found = list(answers(teacher, table, Generation(max_new_tokens=1, first_tokens=20)))
    ids = [teacher.tokenizer.bos_token_id, *teacher.tokenizer("ab", add_special_tokens=False)["input_ids"]]
    ids = ids if ids[0] is not None else ids[1:]
    with torch.no_grad():
        log_p = tiny.module.model(torch.tensor([ids])).logits[0, -1, : tiny.module.classes].log_softmax(-1)
    mass = sum(math.exp(value) for value in found[0].first.values())
    assert mass == pytest.approx(float(log_p.topk(20)[0].exp().sum()), abs=1e-4), (
        "tokens of one text are taken together"
    )
    assert found[0].first != found[1].first
    assert "first_tokens" not in Generation().kind, "kinds of texts that are stored stay what they are"
