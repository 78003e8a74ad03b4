"""Texts written token by token: alone or together, with or without what was read before, from one model or two."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kdhub_tasks.language.decoding import drawn, draws
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.model import CausalLm
from kdhub_tasks.language.students import byte_tokenizer, llama
from transformers import GPT2Config, GPT2LMHeadModel

from kdhub.student import BuildContext


def tiny(seed=3):
    """Sharper than a fresh one, so that texts of different prompts differ and some of them end."""
    made = llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, seed))
    with torch.no_grad():
        made.module.model.get_output_embeddings().weight.mul_(5)
    return made


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    made = CausalLm(GPT2LMHeadModel(config).eval(), byte_tokenizer(64))
    with torch.no_grad():
        made.module.model.get_output_embeddings().weight.mul_(5)
    return made


PROMPTS = [[1, 40 + n, *[70, 71, 72][: n % 4]] for n in range(12)]


@pytest.mark.parametrize("make", [tiny, gpt2])
def test_sampled_texts_do_not_depend_on_the_prompts_beside_them(make):
    model, how, rows = make(), Generation(max_new_tokens=20, temperature=1.0), range(10, 22)
    end = model.generate(PROMPTS, how, 5, rows)[0][9]
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    together = model.generate(PROMPTS, how, 5, rows)
    assert len(together[0]) <= 10 and together[0][-1] == end, "it ends before others, and leaves the batch"
    assert all(len(ids) <= 20 and end not in ids[:-1] for ids in together)
    backwards = model.generate(PROMPTS[::-1], how, 5, rows[::-1])
    alone = [model.generate([prompt], how, 5, [row])[0] for prompt, row in zip(PROMPTS, rows)]
    assert together == backwards[::-1] == alone
    assert together != model.generate(PROMPTS, how, 6, rows)


def test_positions_count_from_the_first_token_not_from_the_padding():
    """With absolute positions a mistake shows at once: without padding or cache it is the same."""
    model = gpt2()
    for prompt, written in zip(PROMPTS, model.generate(PROMPTS, Generation(max_new_tokens=6), 0)):
        ids = list(prompt)
        for token in written:
            with torch.no_grad():
                assert int(model.module.model(torch.tensor([ids])).logits[0, -1, :258].argmax()) == token
            ids.append(token)


def test_the_context_is_never_exceeded():
    model = tiny()
    written = model.generate([[1] * 62, [1] * 64, [1, 40]], Generation(max_new_tokens=8, temperature=1.0), 0)
    assert len(written[0]) <= 2 and written[1] == [] and 0 < len(written[2]) <= 8


def test_a_number_decides_by_the_cumulative_probability():
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]]).repeat(6, 1)
    at = torch.tensor([0.0, 0.199, 0.2001, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert drawn(p, at).tolist() == [0, 0, 2, 2, 3, 3]
    assert drawn(7 * p, at).tolist() == [0, 0, 2, 2, 3, 3], "of any sum"
    assert drawn(p, at, top_p=0.6).tolist() == [2, 2, 2, 3, 3, 3], "the fewest tokens with at least this mass"
    assert torch.equal(draws(1, [5, 6], 4)[1], draws(1, [6], 9)[0, :4])


class Table(torch.nn.Module):
    """The next token by the last one alone; it keeps nothing of what it has read."""

    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Parameter(logits)
        self.config = SimpleNamespace(vocab_size=258, max_position_embeddings=64)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def test_two_models_are_mixed_token_by_token():
    one, other = torch.full((258, 258), -30.0), torch.full((258, 258), -30.0)
    one[:, 40], other[:, 50] = 0.0, 0.0  # each knows one letter
    student, teacher = (CausalLm(Table(table), byte_tokenizer(64)) for table in (one, other))
    written = student.generate([[1]] * 100, Generation(max_new_tokens=20, temperature=1.0), 0, mixed=(teacher, 0.2))
    letters = torch.tensor(written)
    assert set(letters.flatten().tolist()) == {40, 50}
    assert (letters == 50).float().mean().item() == pytest.approx(0.2, abs=0.03)
