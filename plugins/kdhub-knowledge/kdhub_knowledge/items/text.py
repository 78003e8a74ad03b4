"""The text encoder of a thought space, frozen: TF-IDF and its singular vectors, or an embedding model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdhub import open_student, open_task
from kdhub_knowledge.items.catalogue import words

TFIDF = "tfidf-svd"
MOST = 20_000
"""Words that are known, those of the most texts."""
CACHED = 2**18
"""Texts whose vectors are kept in memory."""
FOLDER = "text_encoder"
"""Of an embedding model inside a student's folder."""


class TextEncoder(nn.Module):
    """Texts to vectors, standardised over the texts it was made with. Nothing of it is trained.

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self._known: dict[str, torch.Tensor] = {}

    @property
    def width(self) -> int:
        return len(self.mean)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts, width) float32 on the CPU; an empty text is zeros, the mean of all."""
        new = sorted({text for text in texts if text} - self._known.keys())
        if len(self._known) + len(new) > CACHED:
            self._known.clear()
            new = sorted(set(filter(None, texts)))
        if new:
            given = (self.raw(new) - self.mean.float().cpu()) / self.scale.float().cpu()
            self._known.update(zip(new, given))
        none = torch.zeros(self.width)
        return torch.stack([self._known.get(text, none) for text in texts]) if len(texts) else none[None][:0]

    def fit(self, texts: Sequence[str]) -> None:
        """Standardise by these texts."""
        given = self.raw([text for text in texts if text])
        self.mean.copy_(given.mean(0))
        scale = given.std(0, correction=0)
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.ones_like(scale)))

    def raw(self, texts: Sequence[str]) -> torch.Tensor:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What a configuration must keep of it."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Files beside the weights."""

    @staticmethod
    def of(settings: Mapping[str, Any], folder: Path) -> TextEncoder:
        """As it was saved; its vectors' statistics are among the student's weights."""
        if settings["kind"] == TFIDF:
            return TfIdf(settings["vocabulary"], settings["width"])
        return Embedder(open_task("text-embedding").load(folder / FOLDER), settings["width"])

    @staticmethod
    def fresh(source: str, texts: Sequence[str], width: int) -> TextEncoder:
        """Made of texts, or an embedding model by name."""
        if source == TFIDF:
            return TfIdf.fitted(texts, width)
        model = open_student(source, task="text-embedding")
        made = Embedder(model, 0)
        made = Embedder(model, made.raw(["a"]).shape[1])
        made.fit(texts)
        return made


class TfIdf(TextEncoder):
    """tf (1 + log((1 + n) / (1 + df))) of each text at length 1, then the first singular vectors of the item texts."""

    def __init__(self, vocabulary: Sequence[str], width: int):
        super().__init__(width)
        self.vocabulary = list(vocabulary)
        self._at = {word: n for n, word in enumerate(self.vocabulary)}
        self.register_buffer("idf", torch.ones(len(self.vocabulary)))
        self.register_buffer("vectors", torch.zeros(len(self.vocabulary), width))

    @classmethod
    def fitted(cls, texts: Sequence[str], width: int) -> TfIdf:
        from sklearn.decomposition import TruncatedSVD

        texts = [text for text in texts if text]
        counts = Counter(word for text in texts for word in set(words(text)))
        vocabulary = sorted(word for word, _ in counts.most_common(MOST))
        made = cls(vocabulary, width := min(width, len(vocabulary)))
        seen = torch.tensor([counts[word] for word in vocabulary])
        made.idf.copy_(1 + torch.log((1 + len(texts)) / (1 + seen)))
        if len(vocabulary) > width:
            svd = TruncatedSVD(width, random_state=0).fit(made._weighted(texts))
            made.vectors.copy_(torch.from_numpy(svd.components_.T.copy()))
        else:
            made.vectors.copy_(torch.eye(width))
        made.fit(texts)
        return made

    def _weighted(self, texts: Sequence[str]) -> Any:
        """(texts, vocabulary), sparse."""
        from scipy.sparse import csr_matrix

        idf, values, columns, ends = self.idf.float().cpu().numpy(), [], [], [0]
        for text in texts:
            found = Counter(self._at[word] for word in words(text) if word in self._at)
            here = np.array([many * idf[n] for n, many in found.items()], np.float32)
            values.append(here / max(float(np.linalg.norm(here)), 1e-12))
            columns += found
            ends.append(len(columns))
        return csr_matrix((np.concatenate(values), columns, ends), shape=(len(texts), len(self.vocabulary)))

    def raw(self, texts: Sequence[str]) -> torch.Tensor:
        given = self._weighted(texts) @ self.vectors.float().cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray(given, np.float32))

    def settings(self) -> dict[str, Any]:
        return {"kind": TFIDF, "width": self.width, "vocabulary": self.vocabulary}


class Embedder(TextEncoder):
    """An embedding model, saved with the student."""

    def __init__(self, model: Any, width: int):
        super().__init__(width)
        self.__dict__["model"] = model  # no submodule: it is neither trained nor among the student's weights
        self.__dict__["prepare"] = open_task("text-embedding").preparer(model, None)

    def raw(self, texts: Sequence[str]) -> torch.Tensor:
        examples = self.prepare([{"text": text} for text in texts])
        return torch.from_numpy(np.asarray(self.model.signals(examples, "embedding")["embedding"], np.float32))

    def settings(self) -> dict[str, Any]:
        return {"kind": "embedder", "width": self.width}

    def save(self, folder: Path) -> None:
        (folder / FOLDER).mkdir()
        self.model.save(folder / FOLDER)
