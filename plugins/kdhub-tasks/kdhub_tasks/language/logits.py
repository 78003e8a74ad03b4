"""Numbers from logits, a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import ShapeError
from kdhub.rows import Example, plain_rows, prepared

if TYPE_CHECKING:
    import datasets

NUMBERS = 2**23
"""Logits held at once, of each model."""
BLOCK = 2**20
"""Logits processed at once."""
LOOK = 64
"""Rows read at once to find how many fit into a chunk."""
HEAD = 10
"""Classes in the head of a distribution."""
TAIL = 0.2
"""Share of the classes in its tail."""
DRAFT = 4
"""Tokens of a draft, in speculative decoding."""


def chunks(table: datasets.Dataset, prepare: Any, classes: int) -> Iterator[tuple[int, list[Example]]]:
    """(first row, examples) of consecutive rows whose logits fit into one chunk."""
    for first in range(0, len(table), LOOK):
        examples = prepared(prepare, plain_rows(table, range(first, min(first + LOOK, len(table)))))
        start = held = 0
        for n, example in enumerate(examples):
            numbers = len(example["labels"]) * classes
            if n > start and held + numbers > NUMBERS:
                yield first + start, examples[start:n]
                start, held = n, 0
            held += numbers
        yield first + start, examples[start:]


def slices(logits: np.ndarray) -> Iterator[slice]:
    """Slices of the positions of a row, each small enough to be processed at once."""
    step = max(1, BLOCK // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def first_tokens(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[dict[str, float]]:
    """The `count` tokens that most probably follow each prompt, as texts, with their log-probabilities, nats, by the
    model's plain distribution; of tokens of one text the sum."""
    found = []
    examples = [{"ids": p, "at": [len(p) - 1], "labels": [0], "length": len(p)} for p in prompts]
    for row in model.signals(examples, "logits")["logits"] if examples else ():
        z, made = np.asarray(row[0], np.float64), {}
        log_p = z - np.logaddexp.reduce(z)
        for token in np.argsort(-log_p, kind="stable")[:count].tolist():
            text = model.tokenizer.decode([token])
            made[text] = float(np.logaddexp(made.get(text, -np.inf), log_p[token]))
        found.append(made)
    return found


def written_log_probs(
    model: Any, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Of each token that follows a prompt its log-probability, nats, by the model's plain distribution: (tokens,)
    float32 for each prompt.

    Args:
        model: a `CausalLm`; prompts, written: token ids; at least one of each prompt.
    """
    import torch

    where, was, found = model.device, model.module.training, []
    model.module.eval()
    for start in range(0, len(prompts), model.batch):
        pairs = list(zip(prompts, written))[start : start + model.batch]
        examples = [{"ids": p + list(w), "at": range(len(p) - 1, len(p) + len(w) - 1)} for p, w in pairs]
        with torch.no_grad():
            signals = model.module({name: value.to(where) for name, value in model.collate(examples).items()})
            logits, at = signals["head"] if "head" in signals else signals["logits"], 0
            for _, tokens in pairs:  # the logits of all rows together would not fit
                log_p = logits[at : at + len(tokens)].float().log_softmax(-1)
                found.append(log_p[range(len(tokens)), list(tokens)].cpu().numpy())
                at += len(tokens)
    model.module.train(was)
    return found


def log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, classes) float32 log-probabilities, and the most probable classes.

    Raises:
        ShapeError: a logit is NaN.
    """
    import torch

    logits = torch.as_tensor(np.asarray(logits, np.float32))
    log_q = torch.log_softmax(logits, -1)
    if torch.isnan(log_q[..., 0]).any():
        raise ShapeError("the model's logits contain NaN, so it cannot be scored")
    return log_q.numpy(), logits.argmax(-1).numpy()


def compare_logits(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over positions of the first six fields of `Comparison`, (6,), and the overlap of each position.

    Args:
        student, teacher: logits (positions, classes).
    """
    (log_q, mine), (log_p, theirs) = log_probabilities(student), log_probabilities(teacher)
    at, classes = np.arange(len(labels)), log_q.shape[-1]
    q, p = np.exp(log_q), np.exp(log_p)
    with np.errstate(invalid="ignore"):  # 0 * -inf where neither gives a token any probability
        kl = np.where(p > 0, p * (log_p - log_q), 0.0)
    head, tail = min(HEAD, classes), int(round(TAIL * classes))
    ranked = np.argpartition(log_p, sorted({max(tail - 1, 0), classes - head}), axis=-1)
    sums = np.array(
        [
            -log_q[at, labels].sum(dtype=np.float64),
            -log_p[at, labels].sum(dtype=np.float64),
            kl.sum(dtype=np.float64),
            (mine == theirs).sum(),
            np.take_along_axis(q, ranked[:, classes - head :], -1).sum(dtype=np.float64),
            np.take_along_axis(q, ranked[:, :tail], -1).sum(dtype=np.float64),
        ]
    )
    return sums, np.minimum(p, q).sum(-1, dtype=np.float64)


def drafts(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The overlap of each position of a row, and the expected number of accepted tokens of a draft at each position
    with `DRAFT` positions from there: the sum over k of the product of the first k (arXiv:2211.17192, section 3.1)."""
    if len(overlap) < DRAFT:
        return overlap, np.zeros(0)
    return overlap, np.lib.stride_tricks.sliding_window_view(overlap, DRAFT).cumprod(-1).sum(-1)
