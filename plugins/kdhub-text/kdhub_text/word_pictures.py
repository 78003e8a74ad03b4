"""How the states of a language model relate to what words look like: representational similarity, and a probe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError
from kdhub.recipes.recipe import DataRef

if TYPE_CHECKING:
    from kdhub.data.dataset import Data


def pictures_of(ref: DataRef) -> tuple[Data, str]:
    """A data set of words and their pictures, and its split.

    Raises:
        DataError: a column is missing.
    """
    from kdhub import open_data

    data = open_data(ref)
    split = data.pick("test")
    columns = data.split(split).column_names
    if missing := [name for name in ("text", "word", "picture") if name not in columns]:
        raise DataError(f"pictures: {data.name}, split {split!r}, has no column {', '.join(missing)}")
    return data, split


def span_of(word: Any, text: str) -> tuple[int, int] | None:
    """The characters where a word starts and ends in a text, whatever the case: as a whole word if possible, else as a
    part of one; None if it is not there."""
    if not word or not isinstance(word, str):
        return None
    letters = re.escape(word)
    found = re.search(rf"(?<!\w){letters}(?!\w)", text, re.IGNORECASE) or re.search(letters, text, re.IGNORECASE)
    return found.span() if found else None


def word_states(model: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """For each word the mean last state of its tokens over its sentences, (words, width), and its picture. Sentences
    that are cut before the word are left out.

    Args:
        model: a masked language model (`kdhub_tasks.masked.model.MaskedLm`).
        rows: `text`, a `word` in it, and a `picture`.

    Raises:
        DataError: a word is not in its text, or only after what the model reads of it.
    """
    import torch
    from kdhub_tasks.transformer import padded

    names = list(dict.fromkeys(row["word"] for row in rows))
    network = model.module.model
    base, was, device = network.base_model, network.training, next(network.parameters()).device
    found: dict[str, list[Any]] = {name: [] for name in names}
    network.eval()
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            read = [one for one, _ in model.read([row["text"] for row in some])]
            given = padded([one["ids"] for one in read], model.pad)
            given = {name: values.to(device) for name, values in given.items()}
            states = base(**given).last_hidden_state.float().cpu().numpy()
            for n, (row, one, state) in enumerate(zip(some, read, states), start + 1):
                word = span_of(row["word"], row["text"])
                if word is None:
                    raise DataError(f"row {n}: {row['word']!r} is not in {row['text']!r}", rows=[n])
                at = [i for i, (first, last) in enumerate(one["spans"]) if first < word[1] and word[0] < last]
                if at:
                    found[row["word"]].append(state[at].mean(0))
    network.train(was)
    if lost := [name for name in names if not found[name]]:
        raise DataError(f"the model reads {model.max_length} tokens of a text, and words come later: {', '.join(lost)}")
    pictures = {row["word"]: np.asarray(row["picture"], np.float64) for row in rows}
    return np.stack([np.mean(found[n], 0) for n in names]), np.stack([pictures[n] for n in names])


def rsa(states: Any, pictures: Any) -> float | None:
    """Representational similarity: Spearman's correlation of the cosines of all pairs of words with those of their
    pictures; |rho| below .29 is chance (p = .05) for the 45 pairs of ten. None of one word, or of words of one state.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    cosines = [1 - pdist(x, "cosine") for x in (states, pictures)]
    if len(states) < 2 or any(np.ptp(values) < 1e-9 for values in cosines):
        return None
    return float(spearmanr(*cosines).statistic)


def picture_probe(states: Any, pictures: Any, ridge: float = 1.0) -> float | None:
    """How well a ridge regression fitted on the other words predicts a word's picture from its state: the mean cosine,
    over words, of predicted and true picture, both minus the mean picture of the others. None if there is one word."""
    from sklearn.linear_model import Ridge

    if len(states) < 2:
        return None
    values = []
    scaled = (states - states.mean(0)) / max(float(states.std()), 1e-12)
    for word in range(len(states)):
        others = np.arange(len(states)) != word
        predicted = Ridge(alpha=ridge).fit(scaled[others], pictures[others]).predict(scaled[word : word + 1])[0]
        mean = pictures[others].mean(0)
        a, b = predicted - mean, pictures[word] - mean
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        values.append(float(a @ b) / size if size > 0 else 0.0)
    return float(np.mean(values))
