"""Metrics of language models. All read `outputs.Outputs`; those of texts mean nothing where none were written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from kdhub_lm.outputs import Outputs
from kdhub_lm.rouge import rouge_l as of_words
from kdhub_lm.rouge import words
from kdhub_lm.verify import verified

# -- of tokens ------------------------------------------------------------------------------------------------


def nll(out: Outputs) -> float | None:
    """Mean -log p of a token, nats."""
    return None if out.tokens is None else float(-out.tokens.log_p.mean())


def perplexity(out: Outputs) -> float | None:
    """exp of the mean -log p of a token."""
    return None if out.tokens is None else math.exp(-out.tokens.log_p.mean())


def bits_per_byte(out: Outputs) -> float | None:
    """-log2 p of all tokens that count, ends of responses too, over the bytes of what they write; comparable between
    tokenizers. None where something was cut."""
    if out.tokens is None or not out.tokens.bytes:
        return None
    return float(-out.tokens.log_p.sum() / math.log(2) / out.tokens.bytes)


def accuracy(out: Outputs) -> float | None:
    """Share of tokens that are the most probable one."""
    return None if out.tokens is None else float(out.tokens.hits.mean())


# -- beside the teacher ---------------------------------------------------------------------------------------


def perplexity_ratio(out: Outputs, teacher: Outputs) -> float:
    """Perplexity over the teacher's, with the same tokens: how far a student lags on one kind of text."""
    both = out.beside(teacher)
    return math.exp(both.nll - both.teacher_nll)


def kl(out: Outputs, teacher: Outputs) -> float:
    """Mean KL(teacher || student) of a token, nats."""
    return out.beside(teacher).kl


def agreement(out: Outputs, teacher: Outputs) -> float:
    """Share of tokens where both find one the most probable."""
    return out.beside(teacher).agreement


def head_mass(out: Outputs, teacher: Outputs) -> float:
    """Probability of the ten tokens that the teacher finds most probable (arXiv:2501.16937 looks at both ends)."""
    return out.beside(teacher).head


def tail_mass(out: Outputs, teacher: Outputs) -> float:
    """Probability of the fifth of all tokens that the teacher finds least probable."""
    return out.beside(teacher).tail


def draft_acceptance(out: Outputs, teacher: Outputs) -> float:
    """Share of the tokens that the student drafts which the teacher takes, by speculative sampling at temperature 1."""
    return out.beside(teacher).overlap


def draft_tokens(out: Outputs, teacher: Outputs) -> float | None:
    """How many of four drafted tokens the teacher takes before the first that it does not; None where all rows are
    shorter."""
    found = out.beside(teacher).accepted
    return None if math.isnan(found) else found


# -- of texts -------------------------------------------------------------------------------------------------


def rouge_l(out: Outputs) -> float | None:
    """Mean ROUGE-L (F of the longest common subsequence of words) of answers and references."""
    if out.texts is None:
        return None
    return mean([of_words(words(a), words(b)) for a, b in zip(out.texts.given, out.texts.references)])


def exact_match(out: Outputs) -> float | None:
    """Share of answers that come to the reference's final answer (see `verify`)."""
    if out.texts is None:
        return None
    return mean([verified(a, b) for a, b in zip(out.texts.given, out.texts.references)])


def distinct_1(out: Outputs) -> float | None:
    """Different words of all answers over their words (arXiv:1510.03055)."""
    return None if out.texts is None else distinct(out.texts.given, 1)


def distinct_2(out: Outputs) -> float | None:
    """Different pairs of words that follow each other, over all such pairs."""
    return None if out.texts is None else distinct(out.texts.given, 2)


def mean_length(out: Outputs) -> float | None:
    """Words of an answer. Judges like long ones: read it beside whatever they say."""
    return None if out.texts is None else mean([len(words(text)) for text in out.texts.given])


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different runs of n words (1 or 2) over all of them, 0 to 1; None without any."""
    runs = [run for text in texts for run in (words(text) if n == 1 else pairwise(words(text)))]
    return len(set(runs)) / len(runs) if runs else None


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
