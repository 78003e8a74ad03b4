"""One text in the tokens of two tokenizers: what each token spells, which stretches of tokens spell the same, and which
tokens both have.

Everything is counted in bytes, as tokens of byte-level vocabularies may be parts of a letter. Texts that a tokenizer
normalises before it cuts them are compared as far as both spell the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError
from kdhub_tasks.language.packing import mask_of

if TYPE_CHECKING:
    from torch import Tensor

END = b"\xff"
"""What the end token spells, of either side: a byte that no text has."""
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """What each token spells, by its number; what is between the numbers spells nothing.

    Raises:
        CompatibilityError: its vocabulary is neither of bytes nor of SentencePiece's form.
    """
    vocabulary, letters = tokenizer.get_vocab(), _letters()
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    own = [token for token in vocabulary if token not in added]
    of_pieces = any(token.startswith(_SPACE) for token in own)
    if not of_pieces and not all(letter in letters for token in own for letter in token):
        raise CompatibilityError(
            f"the tokens of {type(tokenizer).__name__} are neither of bytes nor of SentencePiece's form, so their "
            "texts cannot be compared",
            hint="let the student learn from the teacher's answers (seqkd)",
        )
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if token in added:
            found[number] = token.encode()
        elif not of_pieces:
            found[number] = bytes(letters[letter] for letter in token)
        elif byte := _BYTE.fullmatch(token):
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = token.replace(_SPACE, " ").encode()
    if tokenizer.eos_token_id is not None:
        found[tokenizer.eos_token_id] = END
    return found


def _letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes as: those that can be printed as they are, and 256, 257, ...
    for the others in their order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def spans(mine: Sequence[bytes], theirs: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    """The shortest stretches of tokens that spell the same on both sides, one after the other: start and end among
    `mine`, start and end among `theirs`. They end where the two first spell something else."""
    a, b = (list(accumulate(map(len, pieces))) for pieces in (mine, theirs))
    alike = len(os.path.commonprefix([b"".join(mine), b"".join(theirs)]))
    where = [{end: n + 1 for n, end in reversed([*enumerate(ends)])} for ends in (a, b)]
    shared = sorted(end for end in where[0].keys() & where[1].keys() if 0 < end <= alike)
    ends = [(where[0][end], where[1][end]) for end in shared]
    return [(i, j, m, n) for (i, m), (j, n) in zip([(0, 0), *ends], ends)]


class Alignment:
    """Between a student's tokenizer and a teacher's.

    Attributes:
        mine, theirs: what each token spells.
        limit: most tokens of a text of the teacher's; the rest is not compared.
    """

    def __init__(self, student: Any, teacher: Any, limit: int | None = None):
        self.student, self.teacher, self.limit = student, teacher, limit
        self.mine, self.theirs = token_bytes(student), token_bytes(teacher)

    @cached_property
    def shared(self) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens that both have, by what they spell; of several that spell the same the first."""
        import torch

        mine, theirs = ({spelt: n for n, spelt in reversed([*enumerate(one)])} for one in (self.mine, self.theirs))
        both = sorted((mine[spelt], theirs[spelt]) for spelt in mine.keys() & theirs.keys() if spelt)
        numbers = torch.tensor(both, dtype=torch.long).reshape(-1, 2)
        return numbers[:, 0], numbers[:, 1]

    def translated(self, batch: Mapping[str, Tensor], collate: Any) -> dict[str, Any]:
        """The batch's texts in the teacher's tokens.

        Stretches with and without labels are cut into tokens apart, so labels begin and end where the student's do.
        The student's begin token becomes the teacher's, its end token the teacher's end.

        Args:
            batch: of `CausalLanguage.collate`, or of responses in its form, not packed.
            collate: of the teacher's model.

        Returns:
            `theirs`, such a batch of the teacher's with its `labels` and `counts`, and `spans` (n, 4), see `spans`, by
            the number of the position in the flat order of labels of either side.
        """
        import torch

        examples, found, before = [], [], [0, 0]
        width, ends = batch["input_ids"].shape[1], batch["counts"].cumsum(0).tolist()
        at, lengths = batch["at"].tolist(), mask_of(batch).sum(-1).tolist()
        for row, ids in enumerate(batch["input_ids"].tolist()):
            learnt = [p - row * width + 1 for p in at[ends[row - 1] if row else 0 : ends[row]]]
            theirs, labelled = self._text(ids[: lengths[row]], set(learnt))
            same = spans([self.mine[ids[n]] for n in learnt], [self.theirs[theirs[n]] for n in labelled])
            # what nothing stands before is not predicted
            skipped = int(bool(labelled) and labelled[0] == 0)
            own = [(i, j, m - skipped, n - skipped) for i, j, m, n in same if m >= skipped]
            found += [(before[0] + i, before[0] + j, before[1] + m, before[1] + n) for i, j, m, n in own]
            labelled = labelled[skipped:]
            before = [before[0] + len(learnt), before[1] + len(labelled)]
            examples.append(
                {"ids": theirs or [0], "at": [n - 1 for n in labelled], "labels": [theirs[n] for n in labelled]}
            )
        made = {
            **collate(examples),
            "labels": torch.tensor([label for e in examples for label in e["labels"]], dtype=torch.long),
            "counts": torch.tensor([len(e["labels"]) for e in examples]),
        }
        where = batch["input_ids"].device
        return {
            "theirs": {name: value.to(where) for name, value in made.items()},
            "spans": torch.tensor(found, dtype=torch.long, device=where).reshape(-1, 4),
        }

    def _text(self, ids: Sequence[int], learnt: set[int]) -> tuple[list[int], list[int]]:
        """A text in the teacher's tokens, and which of them are labels."""
        made, labelled, first = [], [], 0
        if ids and ids[0] == self.student.bos_token_id and 0 not in learnt:
            first = 1
            made += [self.teacher.bos_token_id] if self.teacher.bos_token_id is not None else []
        for of_labels, numbers in groupby(range(first, len(ids)), lambda n: n in learnt):
            parts = b"".join(self.mine[ids[n]] for n in numbers).split(END)
            for n, part in enumerate(parts):
                start = len(made)
                # of a letter that was cut off nothing is left
                made += self.teacher(part.decode(errors="ignore"), add_special_tokens=False, verbose=False)["input_ids"]
                if n < len(parts) - 1 and self.teacher.eos_token_id is not None:
                    made.append(self.teacher.eos_token_id)
                labelled += range(start, len(made)) if of_labels else ()
        kept = len(made) if self.limit is None else self.limit
        return made[:kept], [n for n in labelled if n < kept]
