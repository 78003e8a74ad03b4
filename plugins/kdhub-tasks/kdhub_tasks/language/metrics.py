"""Metrics of language models. All read `outputs.Outputs`; those of texts are None where none were generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from kdhub.metric import Costed
from kdhub_tasks.language.groups import responses_of
from kdhub_tasks.language.outputs import Outputs
from kdhub_tasks.language.rouge import rouge_l as of_words
from kdhub_tasks.language.rouge import words
from kdhub_tasks.language.spec import SHOWN
from kdhub_tasks.language.verify import verified

if TYPE_CHECKING:
    import numpy as np

# -- of tokens ------------------------------------------------------------------------------------------------


def nll(out: Outputs) -> float | None:
    """Mean negative log-likelihood of a token, nats."""
    return None if out.tokens is None else float(-out.tokens.log_p.mean())


def perplexity(out: Outputs) -> float | None:
    """exp of the mean negative log-likelihood of a token."""
    return None if out.tokens is None else math.exp(-out.tokens.log_p.mean())


def bits_per_byte(out: Outputs) -> float | None:
    """Negative log2-likelihood of all labels, ends of responses included, over the bytes that they spell; comparable
    between tokenizers. None where something was cut."""
    if out.tokens is None or not out.tokens.bytes:
        return None
    return float(-out.tokens.log_p.sum() / math.log(2) / out.tokens.bytes)


def accuracy(out: Outputs) -> float | None:
    """Share of tokens that are the model's most probable one."""
    return None if out.tokens is None else float(out.tokens.hits.mean())


# -- compared with the teacher --------------------------------------------------------------------------------


def perplexity_ratio(out: Outputs, teacher: Outputs) -> float:
    """Perplexity over the teacher's, with the same vocabulary: how far a student lags on one kind of text."""
    both = out.compared_with(teacher)
    return math.exp(both.nll - both.teacher_nll)


def kl(out: Outputs, teacher: Outputs) -> float:
    """Mean KL(teacher || student) of a token, nats."""
    return out.compared_with(teacher).kl


def agreement(out: Outputs, teacher: Outputs) -> float:
    """Share of tokens where both have the same most probable one."""
    return out.compared_with(teacher).agreement


def head_mass(out: Outputs, teacher: Outputs) -> float:
    """Probability of the teacher's ten most probable tokens (arXiv:2501.16937 looks at both ends)."""
    return out.compared_with(teacher).head


def tail_mass(out: Outputs, teacher: Outputs) -> float:
    """Probability of the fifth of all tokens that is least probable to the teacher."""
    return out.compared_with(teacher).tail


def draft_acceptance(out: Outputs, teacher: Outputs) -> float:
    """Share of the student's drafted tokens that the teacher accepts in speculative sampling at temperature 1."""
    return out.compared_with(teacher).overlap


def draft_tokens(out: Outputs, teacher: Outputs) -> float | None:
    """How many of four drafted tokens the teacher accepts before the first rejection; None where all rows are
    shorter."""
    found = out.compared_with(teacher).accepted
    return None if math.isnan(found) else found


# -- of texts -------------------------------------------------------------------------------------------------


def rouge_l(out: Outputs) -> float | None:
    """Mean ROUGE-L (F of the longest common subsequence of words) of answers and references."""
    if out.texts is None:
        return None
    return mean([of_words(words(a), words(b)) for a, b in zip(out.texts.answers, out.texts.references)])


def exact_match(out: Outputs) -> float | None:
    """Share of answers with the reference's final answer (see `verify`)."""
    if out.texts is None:
        return None
    return mean([verified(a, b) for a, b in zip(out.texts.answers, out.texts.references)])


def distinct_1(out: Outputs) -> float | None:
    """Distinct words of all answers over their words (arXiv:1510.03055)."""
    return None if out.texts is None else distinct(out.texts.answers, 1)


def distinct_2(out: Outputs) -> float | None:
    """Distinct pairs of consecutive words, over all such pairs."""
    return None if out.texts is None else distinct(out.texts.answers, 2)


def mean_length(out: Outputs) -> float | None:
    """Words of an answer. Judges prefer long ones, so read ratings together with it."""
    return None if out.texts is None else mean([len(words(text)) for text in out.texts.answers])


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words (n = 1 or 2) over all of them, 0 to 1; None without any."""
    runs = [run for text in texts for run in (words(text) if n == 1 else pairwise(words(text)))]
    return len(set(runs)) / len(runs) if runs else None


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def preference_accuracy(out: Outputs) -> float:
    """Share of pairs whose better response has the higher mean log-probability of a token; ties count half."""
    import datasets
    import numpy as np

    from kdhub.rows import plain_rows, prepared

    flat, groups, scores = [], [], []
    for n, row in enumerate(out.table):
        kept = {name: row[name] for name in ("prompt", *SHOWN) if name in row}
        for text, score in zip(*responses_of(row)):
            flat.append({**kept, "response": text})
            groups.append(n)
            scores.append(score)
    table = datasets.Dataset.from_list(flat)
    sizes = np.array([len(e["labels"]) for e in prepared(out.encode.prepare, plain_rows(table, range(len(table))))])
    means = np.add.reduceat(Outputs(out.encode, table).tokens.log_p, np.cumsum(sizes) - sizes) / sizes
    ahead = [
        np.sign(means[i] - means[j]) / 2 + 0.5
        for start, stop in zip(*_runs(np.array(groups)))
        for i in range(start, stop)
        for j in range(start, stop)
        if scores[i] > scores[j]
    ]
    return float(np.mean(ahead))


def _runs(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal numbers start and stop."""
    import numpy as np

    edges = np.flatnonzero(np.diff(numbers)) + 1
    return np.append(0, edges), np.append(edges, len(numbers))


def cache_bytes(costed: Costed) -> float | None:
    """Bytes of keys and values that each further token of a context leaves in memory, in the precision that the model
    runs in; None for what is no transformers model, or keeps none."""
    import torch

    network = getattr(getattr(costed.model, "module", None), "model", None)
    if network is None:
        return None

    def kept(tokens: int) -> int:
        ids = torch.zeros(1, tokens, dtype=torch.long, device=next(network.parameters()).device)
        with torch.no_grad():
            cache = network(input_ids=ids, use_cache=True).past_key_values
        layers = [part for layer in getattr(cache, "layers", ()) for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in layers)

    few, more = 4, 8  # the difference: a state of a fixed size, as recurrent layers have, is not kept for each token
    return (kept(more) - kept(few)) / (more - few) or None
