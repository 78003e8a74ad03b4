"""Networks that tag tokens: an encoder, and heads on its states.

A batch has tokens and `scored`, which of them get logits; row after row, these are `pairs`, (tokens, 2):

    head-first    the token is of a head; of a tail of the marked head
    pairwise      of a head; of a tail. `related`, (rows,): whether the marked head and tail belong together, from the
                  means of their states
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

DRUG_CENTRIC, PAIRWISE = "drug-centric", "pairwise"
HEAD, TAIL = 1, 2
"""Numbers of what is marked."""
LONGEST_WORD = 20
"""Letters of a word that the characters' convolution reads."""


class Tagger(nn.Module):
    """An encoder with its heads.

    Args:
        encoder: inputs -> (rows, tokens, width).
    """

    def __init__(self, encoder: nn.Module, width: int, structure: str):
        super().__init__()
        self.encoder, self.tags = encoder, nn.Linear(width, 2)
        self.pair = nn.Linear(2 * width, 1) if structure == PAIRWISE else None

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = self.encoder(inputs)
        given = {"pairs": self.tags(states[inputs["scored"].bool()])}
        if self.pair is not None:
            sides = [_mean(states, inputs["marked"] == side) for side in (HEAD, TAIL)]
            given["related"] = self.pair(torch.cat(sides, -1)).squeeze(-1)
        return given


def _mean(states: Tensor, chosen: Tensor) -> Tensor:
    """The mean state of some tokens of each row; zeros where there are none."""
    weights = chosen.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class Recurrent(nn.Module):
    """A bidirectional LSTM over words: their embeddings, a convolution over their letters, and an embedding of the
    marker.

    Args:
        vocabulary: number of known words; two more rows are for others and padding. letters: likewise.
        width: of a direction; words, chars, marker: of the embeddings.
    """

    def __init__(
        self, vocabulary: int, letters: int, *, width: int, words: int, chars: int, marker: int = 16, dropout: float
    ):
        super().__init__()
        self.words = nn.Embedding(vocabulary + 2, words, padding_idx=0)
        self.letters = nn.Embedding(letters + 2, 16, padding_idx=0)
        self.convolution = nn.Conv1d(16, chars, 3, padding=1)
        self.marker = nn.Embedding(3, marker)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(words + chars + marker, width, batch_first=True, bidirectional=True)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        ids, letters, mask = inputs["input_ids"], inputs["letters"], inputs["attention_mask"]
        rows, longest, _ = letters.shape
        each = self.convolution(self.letters(letters.flatten(0, 1)).transpose(1, 2)).amax(-1).view(rows, longest, -1)
        read = self.dropout(torch.cat([self.words(ids), each, self.marker(inputs["marked"])], -1))
        lengths = mask.sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(read, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=longest)
        return self.dropout(states)


class Encoder(nn.Module):
    """A model of the transformers library."""

    def __init__(self, model: nn.Module):
        from kdhub_tasks.attention import without_square_mask

        super().__init__()
        self.model = without_square_mask(model)
        self.dropout = nn.Dropout(0.1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        from kdhub_tasks.long import further_inputs

        mask = inputs["attention_mask"]
        further: dict[str, Any] = dict(further_inputs(self.model.config, mask))
        return self.dropout(self.model(input_ids=inputs["input_ids"], attention_mask=mask, **further).last_hidden_state)
