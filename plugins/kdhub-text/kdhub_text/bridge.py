"""Teachers with another vocabulary than the student's: what of their states and probabilities can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.5
"""The least share of a teacher's probability that the shared tokens must have."""
WIDE = 2**20
"""Characters of a text, at most, by which spans are told apart."""


class Bridge:
    """The tokens that two vocabularies have in common, by what they stand for in a text.

    Attributes:
        mine, theirs: (tokens,) the numbers of each shared token.
    """

    def __init__(self, mine: Sequence[int], theirs: Sequence[int]):
        import torch

        self.mine, self.theirs = torch.tensor(mine, dtype=torch.long), torch.tensor(theirs, dtype=torch.long)

    @classmethod
    def between(cls, student: Any, teacher: Any) -> Bridge:
        """Of two tokenizers.

        Raises:
            CompatibilityError: they have no token in common.
        """
        a, b = written(student), written(teacher)
        shared = sorted(a.keys() & b.keys())
        if not shared:
            raise CompatibilityError(
                "student and teacher have no token in common",
                hint="vocab_bridge: off, and teachers with the student's vocabulary",
            )
        return cls([a[one] for one in shared], [b[one] for one in shared])

    def compared(self, mine: Tensor, teacher: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """The positions with the same characters in both, of the student's and of the teacher's tokens. `mine`,
        `theirs`
        are their `spans`, one row after the other."""
        # Stored spans are int32, too narrow for start and end in one number.
        at, there = matched(*(_keys(spans, spans[:, 1].long() * WIDE + spans[:, 2]) for spans in (mine, theirs)))
        z = teacher.float()[there]
        known = z.softmax(-1)[:, self.theirs.to(z.device)].sum(-1) >= LEAST
        return at[known], there[known]

    def divergence(
        self, student: Tensor, mine: Tensor, teacher: Tensor, theirs: Tensor, tau: float
    ) -> tuple[Tensor, int]:
        """Sum of KL(p_t || p_S), between shared tokens, over the positions that are `compared`; and how many those
        are."""
        from kdhub_tasks.divergences import forward_kl

        at, there = self.compared(mine, teacher, theirs)
        s = student.float()[at][:, self.mine.to(at.device)]
        z = teacher.float()[there][:, self.theirs.to(at.device)]
        return forward_kl(s / tau, z / tau).sum(), len(at)


def by_word(student: Tensor, mine: Tensor, teacher: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """States of the words that both have, averaged over the tokens of each: (words, width) for either side."""
    import torch

    sides, keys = [], []
    for states, spans in ((student, mine), (teacher, theirs)):
        own = _keys(spans, spans[:, 3])
        kept = own >= 0
        words, place = own[kept].unique(return_inverse=True)
        sums = states.new_zeros(len(words), states.shape[-1]).index_add(0, place, states[kept])
        sides.append(sums / torch.bincount(place, minlength=len(words)).unsqueeze(-1))
        keys.append(words)
    at, there = matched(*keys)
    return sides[0][at], sides[1][there]


def shared_words(mine: Tensor, theirs: Tensor) -> int:
    """How many words `by_word` compares."""
    words = (own[own >= 0].unique() for own in (_keys(spans, spans[:, 3]) for spans in (mine, theirs)))
    return len(matched(*words)[0])


def _keys(spans: Tensor, own: Tensor) -> Tensor:
    """A number for each token (or word) that no other one of the batch has; -1 for special ones. A row starts where a
    token is the first of its text."""
    row = (spans[:, 0] == 0).cumsum(0) - 1
    return (row.long() * WIDE * WIDE + own.long()).masked_fill(spans[:, 3] < 0, -1)


def matched(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in both where they have the same key, in the order of `mine`. Keys of `theirs` are distinct except -1,
    which matches nothing."""
    import torch

    ordered, order = theirs.sort()
    place = torch.searchsorted(ordered, mine).clamp_max(max(0, len(ordered) - 1))
    if not len(ordered):
        return place[:0], place[:0]
    same = (ordered[place] == mine) & (mine >= 0)
    return same.nonzero().flatten(), order[place[same]]


def written(tokenizer: Any) -> dict[tuple[bool, str], int]:
    """What each token stands for: whether it starts a word, and its letters. Special tokens are left out, and so are
    those with only some of a letter's bytes.

    WordPiece marks tokens inside a word (`##`), byte-level BPE and SentencePiece those at its start; a vocabulary with
    neither mark consists of words.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    own = {token: n for token, n in vocabulary.items() if n not in special}
    # From the model, not the tokens: in a byte-level vocabulary `##` is a heading.
    inside = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    # Either mark may be just a letter in the other's vocabulary.
    marked = {mark: sum(token.startswith(mark) for token in own) for mark in ("\u0120", "\u2581")}
    first = max(marked, key=marked.get) if any(marked.values()) else None
    found: dict[tuple[bool, str], int] = {}
    for token, n in own.items():
        if inside:
            begins, letters = not token.startswith(inside), token.removeprefix(inside)
        elif first:
            begins = token.startswith(first)
            letters = tokenizer.convert_tokens_to_string([token]).strip() if first == "\u0120" else token.lstrip(first)
        else:
            begins, letters = True, token
        if letters and "\ufffd" not in letters:
            found.setdefault((begins, letters), n)
    return found
