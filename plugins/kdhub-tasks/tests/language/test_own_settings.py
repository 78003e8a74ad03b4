"""What a model's own generation settings say: what ends its texts, and which tokens it favours or forbids."""

from __future__ import annotations

import logging

import datasets
import pytest
import torch
import transformers
from kdhub_tasks.language import chat_template
from kdhub_tasks.language import model as models
from kdhub_tasks.language.generation import Generation, answers
from kdhub_tasks.language.students import byte_tokenizer, llama

from kdhub.student import BuildContext
from kdhub.task import Task

HOW, SAMPLED = Generation(max_new_tokens=12), Generation(max_new_tokens=12, temperature=1.0)
PROMPTS = [[1, 40, 50], [1, 60], [1, 70, 71, 72, 73]]


@pytest.fixture
def saved_in(tiny, tmp_path):
    def save(**settings):
        for name, value in settings.items():
            setattr(tiny.module.model.generation_config, name, value)
        tiny.save(tmp_path)
        return models.load(tmp_path)

    return save


def test_any_of_several_ends_ends_a_text(tiny, saved_in, saved, tmp_path):
    whole = tiny.generate(PROMPTS[:1], SAMPLED, 0)[0]
    student = saved_in(eos_token_id=[1, whole[2]])
    for trained in (False, True):
        (ids,) = student.generate(PROMPTS[:1], SAMPLED, 0, trained=trained)
        assert ids == whole[:3] and whole[2] not in whole[:2]
    (text,), (ended,) = student.texts([ids])
    assert ended and text == student.tokenizer.decode(ids[:-1]), "the end is no part of the text"

    table = datasets.Dataset.from_dict({"prompt": ["H"]})
    teacher = saved(tmp_path)
    assert teacher.identity_of(HOW.kind) != teacher.identity, "texts that ran past that end are not taken for these"
    assert teacher.identity_of("logits") == teacher.identity
    ((text, _),) = list(answers(teacher, table, HOW))
    (ids,) = teacher.model.generate([[1, *teacher.model.tokenizer("H")["input_ids"]]], HOW, 0)
    assert text == teacher.model.own_settings.text(ids)


def test_what_ends_an_answer_in_the_chat_template_ends_a_text(tiny):
    """Also where the configuration lists the end of a text alone; and it does so wherever the student is loaded."""
    tiny.tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tiny.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{{ '<assistant>' if add_generation_prompt }}"
    )
    end = tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.turn_end(tiny.tokenizer) == end
    assert tiny.own_settings.ends == {1, end} and tiny.own_settings.ended([50, end])
    tiny.tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert chat_template.turn_end(tiny.tokenizer) is None


def test_a_student_is_saved_with_all_that_ends_its_texts(tiny, saved_in, tmp_path):
    """The library ends texts by the configuration alone; the student was taught to end them by its tokenizer's end."""
    loaded = saved_in(eos_token_id=[77, 78])
    assert set(loaded.module.model.generation_config.eos_token_id) == {1, 77, 78}
    small = loaded.like(llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3)).module.model, {})
    assert small.own_settings.ends == {1, 77, 78}, "a smaller network of it ends them alike"


def test_a_fresh_student_ends_its_texts_as_its_teacher(saved_in, saved, tmp_path):
    saved_in(eos_token_id=[1, 77])
    for build, argument in ((llama, "width=8,layers=1,heads=2,length=64"),):
        fresh = build(argument, BuildContext(Task, saved(tmp_path), 0))
        assert fresh.own_settings.ends == {1, 77}


SETTINGS = {
    "repetition_penalty": 5.0,
    "suppress_tokens": "written",
    "begin_suppress_tokens": "begun",
    "no_repeat_ngram_size": 1,
    "bad_words_ids": "words",
    "min_new_tokens": 6,
    "forced_eos_token_id": 1,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_model_apply_as_in_its_own_generate(tiny, saved_in, name):
    written = tiny.generate(PROMPTS, HOW, 0)
    value = {
        "written": [token for ids in written for token in ids[:3]],
        "begun": [ids[0] for ids in written],
        "words": [[token] for ids in written for token in ids[1:3]],
    }.get(SETTINGS[name], SETTINGS[name])
    more = {"eos_token_id": [1, written[0][1]]} if name == "min_new_tokens" else {}
    student = saved_in(**{name: value}, **more)
    given = student.generate(PROMPTS, HOW, 0)
    theirs = [
        student.module.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        for ids in PROMPTS
    ]
    assert given == theirs and given != written
    trained = student.generate(PROMPTS, HOW, 0, trained=True)
    if name != "min_new_tokens":
        assert trained == written, "samples to train on are drawn from the plain distribution"


def test_a_forced_first_token(tiny, saved_in):
    student = saved_in(forced_bos_token_id=99)
    assert student.generate([[1]], HOW, 0)[0][0] == 99


def test_a_stop_string_ends_a_text(tiny, saved_in):
    ids = tiny.generate(PROMPTS[:1], SAMPLED, 0)[0]
    student = saved_in(stop_strings=[tiny.tokenizer.decode(ids[1:3])])
    (short,) = student.generate(PROMPTS[:1], SAMPLED, 0)
    assert short == ids[:3] and student.own_settings.ended(short)


def test_settings_that_do_not_apply_are_told_once(tiny, saved_in, caplog, monkeypatch):
    student = saved_in(num_beams=4, repetition_penalty=1.3, encoder_repetition_penalty=1.2, eos_token_id=[-1, 1])
    assert student.own_settings.ends == {1}, "-1 is none"
    monkeypatch.setattr(logging.getLogger("kdhub"), "propagate", True)
    with caplog.at_level(logging.WARNING, "kdhub"):
        student.generate(PROMPTS, HOW, 0)
        student.generate(PROMPTS, HOW, 0)
    (told,) = (r.message for r in caplog.records)
    assert "num_beams=4, encoder_repetition_penalty=1.2" in told
    assert " repetition_penalty" not in caplog.text


def test_a_network_that_counts_padding_as_positions_writes_as_after_one_prompt():
    """BART's decoder takes no positions: what stands on the left of a prompt would move it."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=258, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, init_std=0.5,
        max_position_embeddings=64, is_decoder=True, is_encoder_decoder=False, pad_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    student = models.CausalLm(transformers.BartForCausalLM(config).eval(), byte_tokenizer(64))
    alone = [student.generate([prompt], HOW, 0)[0] for prompt in PROMPTS]
    assert student.generate(PROMPTS, HOW, 0) == alone
