"""Rows of language as tokens. An example has `ids`, and `at`: the places from which its `labels` are predicted.

| columns | what counts |
| --- | --- |
| `text` | each token but the first |
| `prompt`, `response` | the response's tokens, and the end |
| `prompt`, `chosen`, `rejected`; `prompt`, `responses`, `scores` | the best response, or all (see `preferences`) |

Asked for prompts (the setting `prompts`, the tokens that an answer may have, or a row that says so itself), a row is
what stands before the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdhub_logits.privacy import marked

from kdhub.errors import CompatibilityError, UsageError
from kdhub.task import Example
from kdhub_lm import preferences

Row = Mapping[str, Any]


@dataclass
class Encoding:
    """How rows become tokens for one tokenizer.

    Attributes:
        tokenizer: None for a model behind an API, which is asked with texts.
        limit: tokens that a row may have; None where nobody knows.
        private: a pattern that marks tokens of plain texts (see `kdhub_logits.privacy`).
        prompts: None, or the tokens that an answer may have: then examples are prompts.
        groups: an example of preferences has all responses, not the best alone.
    """

    tokenizer: Any
    limit: int | None
    private: str | None = None
    prompts: int | None = None
    groups: bool = False

    def __post_init__(self) -> None:
        if self.prompts is not None and self.limit is not None and self.prompts >= self.limit:
            raise UsageError(
                f"answers of {self.prompts} tokens leave no room for a prompt: the model takes {self.limit} in all",
                hint="set a smaller max_new_tokens",
            )

    @cached_property
    def begin(self) -> list[int]:
        return [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []

    @cached_property
    def end(self) -> list[int]:
        return [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        if not rows:
            return []
        if room := self.prompts or rows[0].get("prompts"):
            return self.as_prompts(rows, room)
        form = form_of(rows[0])
        if self.private and form != "texts":
            raise CompatibilityError("what is private is marked in plain texts, not in prompts and responses")
        return FORMS[form](self, rows)

    def tokens(self, texts: Sequence[str], **how: Any) -> Any:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **how)

    # -- forms ------------------------------------------------------------------------------------------------

    def texts(self, rows: Sequence[Row]) -> list[Example]:
        texts = [row["text"] for row in rows]
        given = self.tokens(texts, return_offsets_mapping=bool(self.private))
        made = []
        for n, text in enumerate(texts):
            whole = [*self.begin, *given["input_ids"][n]]
            ids = whole[: self.limit]
            example = {
                "ids": ids,
                "at": list(range(len(ids) - 1)),
                "labels": ids[1:],
                "content": text.encode(),
                "length": len(ids),
                "cut": len(whole) > len(ids),
                "bytes": len(text.encode()),
            }
            if self.private:
                of_tokens = marked(text, given["offset_mapping"][n], self.private)
                example["private"] = [*([0.0] * len(self.begin)), *of_tokens][1 : len(ids)]
            made.append(example)
        return made

    def responses(self, rows: Sequence[Row]) -> list[Example]:
        prompts = self.tokens([row["prompt"] for row in rows])["input_ids"]
        given = self.tokens([row["response"] for row in rows])["input_ids"]
        return [
            {**self.response(prompt, tokens), "content": f"{row['prompt']}\0{row['response']}".encode()}
            for row, prompt, tokens in zip(rows, prompts, given)
        ]

    def response(self, prompt: Sequence[int], response: Sequence[int], ended: bool = True) -> Example:
        """An example of tokens, without `content`. A long prompt loses its beginning: what stands nearest to the
        response says most of it."""
        before, after = [*self.begin, *prompt], [*response, *(self.end if ended else [])]
        room = len(before) if self.limit is None else max(1, self.limit - len(after))
        ids = [*before[-room:], *after][: self.limit]
        first = max(1, min(len(before), room))
        return {
            "ids": ids,
            "at": list(range(first - 1, len(ids) - 1)),
            "labels": ids[first:],
            "length": len(ids),
            "cut": len(before) + len(after) > len(ids),
            "bytes": None,  # the end is a token of no byte
        }

    # -- prompts ----------------------------------------------------------------------------------------------

    def as_prompts(self, rows: Sequence[Row], answer: int) -> list[Example]:
        """What a model is asked for an answer of so many tokens; `messages` for one behind an API. The content does not
        know the response, but which `sample` of the answers is meant."""
        texts = [row["prompt"] if row.get("prompt") is not None else row["text"] for row in rows]
        ids = self.tokens(texts)["input_ids"] if self.tokenizer is not None else [None] * len(texts)
        made = []
        for row, text, tokens in zip(rows, texts, ids):
            content = f"{text}\0{row.get('sample') or 0}".encode()
            example = {"messages": [{"role": "user", "content": text}], "content": content, "labels": []}
            if tokens is None:
                example |= {"length": len(text), "cut": False}
            else:
                whole = [*self.begin, *tokens]
                room = len(whole) if self.limit is None else max(1, self.limit - answer)
                example |= {"ids": whole[-room:], "length": min(len(whole), room), "cut": len(whole) > room}
            made.append(example)
        return made


FORMS: dict[str, Callable[[Encoding, Sequence[Row]], list[Example]]] = {
    "texts": Encoding.texts,
    "responses": Encoding.responses,
    "preferences": preferences.examples,
    "rankings": preferences.examples,
}
"""Form of rows -> what prepares them."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "texts": ("text",),
    "responses": ("prompt", "response"),
    "preferences": ("prompt", "chosen", "rejected"),
    "rankings": ("prompt", "responses", "scores"),
    "prompts": ("prompt",),
}
"""Form of rows -> the columns that it needs, the form that is tried first at the top."""


def form_of(columns: Any) -> str | None:
    """The form of rows with these columns, None when the task cannot read them."""
    return next((form for form, needed in COLUMNS.items() if all(name in columns for name in needed)), None)
