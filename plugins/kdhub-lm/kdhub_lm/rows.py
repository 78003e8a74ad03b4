"""Rows of language as tokens. An example has `ids`, and `at`: the places from which its `labels` are predicted; `bytes`
of what they write, None where something was cut.

| columns | what counts |
| --- | --- |
| `text` | each token but the first |
| `prompt`, `response` | the response's tokens, and the end |
| `messages` (role, content) | what the assistant says, and its ends (see `chat`); with `loss_on: all` every token |
| `prompt`, `chosen`, `rejected`; `prompt`, `responses`, `scores` | the best response, or all (see `preferences`) |

Prompts and responses stay plain for a model with a chat template too; `chat:DATA` makes conversations of them. A row
of which nothing is left to learn, once it was cut, has length 0: training leaves it out.

Asked for prompts (the setting `prompts`, the tokens that an answer may have, or a row that says so itself), a row is
what stands before the response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdhub._files import canonical_json
from kdhub._rows import NEEDED
from kdhub.errors import CompatibilityError, UsageError
from kdhub.task import Example
from kdhub_lm import chat, preferences

if TYPE_CHECKING:
    from kdhub_logits.privacy import Scorer

Row = Mapping[str, Any]


@dataclass
class Encoding:
    """How rows become tokens for one tokenizer.

    Attributes:
        tokenizer: None for a model behind an API, which is asked with texts.
        limit: tokens that a row may have; None where nobody knows.
        private: a scorer of the tokens of plain texts (see `kdhub_logits.privacy`).
        prompts: None, or the tokens that an answer may have: then examples are prompts.
        groups: an example of preferences has all responses, not the best alone.
        beside: the tokenizer of a teacher that sees the same rows.
    """

    tokenizer: Any
    limit: int | None
    private: Scorer | None = None
    prompts: int | None = None
    groups: bool = False
    beside: Any = None

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
        made = FORMS[form](self, rows)
        for example in made:
            if not example.get("labels", True):
                example["length"] = 0
        return made

    def tokens(self, texts: Sequence[str], **how: Any) -> Any:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **how)

    # -- forms ------------------------------------------------------------------------------------------------

    def texts(self, rows: Sequence[Row]) -> list[Example]:
        texts = [row["text"] for row in rows]
        given = self.tokens(texts, return_offsets_mapping=bool(self.private))
        private = self.private(texts, given["offset_mapping"]) if self.private else []
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
                "bytes": len(text.encode()) if len(whole) == len(ids) else None,
            }
            if private:
                example["private"] = [*([0.0] * len(self.begin)), *private[n]][1 : len(ids)]
            made.append(example)
        return made

    def responses(self, rows: Sequence[Row]) -> list[Example]:
        prompts = self.tokens([row["prompt"] for row in rows])["input_ids"]
        given = self.tokens([row["response"] for row in rows])["input_ids"]
        made = []
        for row, prompt, tokens in zip(rows, prompts, given):
            example = self.response(prompt, tokens)
            if len(example["labels"]) >= len(tokens):
                example["bytes"] = len(row["response"].encode())
            made.append({**example, "content": f"{row['prompt']}\0{row['response']}".encode()})
        return made

    def response(self, prompt: Sequence[int], response: Sequence[int], ended: bool = True) -> Example:
        """An example of tokens, without `content` and `bytes`. A long prompt loses its beginning: what stands nearest
        to the response says most of it."""
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
            "bytes": None,
        }

    def conversations(self, rows: Sequence[Row]) -> list[Example]:
        """What an assistant says may stand in several places, so `at` is no end of the row."""
        chat.require_places(self.tokenizer)
        chat.agree(self.tokenizer, self.beside)
        everything = [row.get("loss_on") == "all" for row in rows]
        told = [chat.learnt(self.tokenizer, row["messages"], everything=e) for row, e in zip(rows, everything)]
        given = self.tokens([text for text, _ in told], return_offsets_mapping=True)
        made = []
        for row, (text, spans), ids, offsets in zip(rows, told, given["input_ids"], given["offset_mapping"]):
            kept = ids[: self.limit]
            learnt = [n for n in chat.tokens_in(offsets, spans) if 0 < n < len(kept)]
            made.append(
                {
                    "ids": kept,
                    "at": [n - 1 for n in learnt],
                    "labels": [kept[n] for n in learnt],
                    "content": f"{text}\0{spans}".encode(),
                    "length": len(kept),
                    "cut": len(ids) > len(kept),
                    "bytes": self._said(row, spans) if len(ids) == len(kept) else None,
                }
            )
        return made

    @staticmethod
    def _said(row: Row, spans: chat.Spans) -> int | None:
        """Bytes of what the assistant says in a conversation; None unless that is just what is learnt."""
        turns = [message["content"].strip() for message in row["messages"] if message["role"] == "assistant"]
        just = row.get("loss_on") != "all" and len(turns) == len(spans)
        return sum(len(text.encode()) for text in turns) if just else None

    # -- prompts ----------------------------------------------------------------------------------------------

    def as_prompts(self, rows: Sequence[Row], answer: int) -> list[Example]:
        """What a model is asked for an answer of so many tokens; `messages` for one behind an API. The content does not
        know the response, but which `sample` of the answers is meant."""
        messages = [prompt_of(row) for row in rows]
        plain = not rows[0].get("messages")
        if plain:
            texts = [only["content"] for (only,) in messages]
        elif self.tokenizer is None:
            texts = [json.dumps(each, ensure_ascii=False) for each in messages]
        else:
            texts = [chat.written(self.tokenizer, each, asked=True) for each in messages]
        ids = self.tokens(texts)["input_ids"] if self.tokenizer is not None else [None] * len(texts)
        begin = self.begin if plain and self.tokenizer is not None else []  # a chat template writes it itself
        made = []
        for row, asked, text, tokens in zip(rows, messages, texts, ids):
            content = f"{text}\0{row.get('sample') or 0}".encode()
            example = {"messages": asked, "content": content, "labels": []}
            if tokens is None:
                example |= {"length": len(text), "cut": False}
            else:
                whole = [*begin, *tokens]
                room = len(whole) if self.limit is None else max(1, self.limit - answer)
                example |= {"ids": whole[-room:], "length": min(len(whole), room), "cut": len(whole) > room}
            made.append(example)
        return made


FORMS: dict[str, Callable[[Encoding, Sequence[Row]], list[Example]]] = {
    "conversations": Encoding.conversations,
    "texts": Encoding.texts,
    "responses": Encoding.responses,
    "preferences": preferences.examples,
    "rankings": preferences.examples,
}
"""Form of rows -> what prepares them."""

COLUMNS: dict[str, tuple[str, ...]] = {**{form: NEEDED[form] for form in FORMS}, "prompts": ("prompt",)}
"""Form of rows -> the columns that it needs, the form that is tried first at the top."""


def answer_of(row: Row) -> str | None:
    """The answer that a row has: what the assistant says last, or its response; None where it has none."""
    if messages := row.get("messages"):
        return messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    return row.get("response")


def with_answer(row: Row, text: str) -> dict[str, Any]:
    """A row with another answer, as it was asked; its other columns stay."""
    kept = {name: value for name, value in row.items() if name not in ("text", "prompt", "response", "messages")}
    asked = prompt_of(row)
    if row.get("messages"):
        return {**kept, "messages": [*asked, {"role": "assistant", "content": text}]}
    return {**kept, "prompt": asked[0]["content"], "response": text}


def vocabulary(tokenizer: Any) -> str:
    """Digest of the tokens and their numbers."""
    return hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest()


def prompt_of(row: Row) -> list[dict[str, str]]:
    """What a model is asked by a row, as messages: those before its last answer, or one with its prompt or text."""
    if row.get("messages"):
        return chat.asked(row["messages"])
    return [{"role": "user", "content": row["prompt"] if row.get("prompt") is not None else row["text"]}]


def form_of(columns: Any) -> str | None:
    """The form of rows with these columns, None when the task cannot read them."""
    return next((form for form, needed in COLUMNS.items() if all(name in columns for name in needed)), None)
