"""Rows of text, responses and conversations as tokens. An example has `ids`, and `at`: the positions from which its
`labels` are predicted; `bytes` of the text that the labels spell, None where something was cut.

| columns | labels |
| --- | --- |
| `text` | every token but the first |
| `prompt`, `response` | the response's tokens, and the end |
| `messages` (role, content) | the assistant's answers and their ends (`chat_template`); all with `loss_on: all` |
| `prompt`, `chosen`, `rejected`; `prompt`, `responses`, `scores` | the best response, or all (see `groups`) |

Prompts and responses stay plain even for a model with a chat template; `chat:DATA` turns them into conversations. A row
without any label left after cutting has length 0: training skips it.

As a prompt (the setting `prompts`, the most tokens of an answer, or a row that says so itself), a row is what precedes
the response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.files import canonical_json
from kdhub.rows import Example, UnreadableRows
from kdhub_tasks.language import chat_template, groups
from kdhub_tasks.language.spec import COLUMNS

Row = Mapping[str, Any]
NOTHING = {"ids": [0], "at": [], "labels": [], "length": 0, "cut": False, "bytes": 0}
"""What is left of the example of a row that cannot be read."""
LONGEST = 2048
"""Tokens of a row, where a model says nothing of its limit."""


@dataclass
class Encoding:
    """How rows become tokens for one tokenizer.

    Attributes:
        tokenizer: None for a model behind an API, which is sent texts.
        limit: most tokens of a row; None where it is unknown.
        private: (texts, offsets) -> how private each token is, for plain texts.
        prompts: the most tokens of an answer, and examples are prompts; None for whole rows.
        prefix: how the answer to a prompt begins: the end of the prompt.
        groups: an example of preferences has all responses, not the best alone.
        teacher_tokenizer: that of a teacher which sees the same rows.
    """

    tokenizer: Any
    limit: int | None
    private: Callable[..., Any] | None = None
    prompts: int | None = None
    groups: bool = False
    teacher_tokenizer: Any = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.prompts is not None and self.limit is not None and self.prompts >= self.limit:
            raise UsageError(
                f"max_new_tokens must be below the model's length, to leave room for a prompt "
                f"(max_new_tokens={self.prompts}, length={self.limit})",
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
            raise CompatibilityError(f"private tokens are found in plain texts only, not in rows of {form}")
        made = getattr(self, FORMS[form])(rows)
        for example in made:
            if not example.get("labels", True):
                example["length"] = 0
        return made

    def tokens(self, texts: Sequence[str], **how: Any) -> Any:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **how)

    # -- forms ------------------------------------------------------------------------------------------------

    def texts(self, rows: Sequence[Row]) -> list[Example]:
        texts = [row["text"] for row in rows]
        found = self.tokens(texts, return_offsets_mapping=bool(self.private))
        private = self.private(texts, found["offset_mapping"]) if self.private else []
        made = []
        for n, text in enumerate(texts):
            whole = [*self.begin, *found["input_ids"][n]]
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

    def unanswered(self, rows: Sequence[Row]) -> list[Example]:
        """A prompt alone: nothing of it is learnt."""
        made = self.texts([{"text": row["prompt"]} for row in rows])
        return [{**example, "at": [], "labels": [], "bytes": 0} for example in made]

    def responses(self, rows: Sequence[Row]) -> list[Example]:
        prompts = self.tokens([row["prompt"] for row in rows])["input_ids"]
        responses = self.tokens([row["response"] for row in rows])["input_ids"]
        made = []
        for row, prompt, response in zip(rows, prompts, responses):
            example = self.response(prompt, response)
            if len(example["labels"]) >= len(response):
                example["bytes"] = len(row["response"].encode())
            made.append({**example, "content": f"{row['prompt']}\0{row['response']}".encode()})
        return made

    def response(self, prompt: Sequence[int], response: Sequence[int], ended: bool = True) -> Example:
        """An example of token ids, without `content` and `bytes`. A long prompt loses its beginning, which matters
        least to the response."""
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
        """The assistant may speak in several places, so `at` need not be at the end of the row."""
        chat_template.require_offsets(self.tokenizer)
        chat_template.share_template(self.tokenizer, self.teacher_tokenizer)
        targets, faults = [], {}
        for n, row in enumerate(rows):
            try:
                everything = row.get("loss_on") == "all"
                targets.append(chat_template.text_and_targets(self.tokenizer, row["messages"], everything=everything))
            except DataError as error:
                faults[n] = error.message
                targets.append(("", []))
        found = self.tokens([text for text, _ in targets], return_offsets_mapping=True)
        made = []
        for row, (text, spans), ids, offsets in zip(rows, targets, found["input_ids"], found["offset_mapping"]):
            kept = ids[: self.limit]
            learnt = [n for n in chat_template.tokens_in(offsets, spans) if 0 < n < len(kept)]
            made.append(
                {
                    "ids": kept,
                    "at": [n - 1 for n in learnt],
                    "labels": [kept[n] for n in learnt],
                    "content": f"{text}\0{spans}".encode(),
                    "length": len(kept),
                    "cut": len(ids) > len(kept),
                    "bytes": self._bytes_said(row, spans) if len(ids) == len(kept) else None,
                }
            )
        return _readable(made, faults)

    @staticmethod
    def _bytes_said(row: Row, spans: chat_template.Spans) -> int | None:
        """Bytes of what the assistant says in a conversation; None unless exactly that is learnt."""
        turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        exact = row.get("loss_on") != "all" and len(turns) == len(spans) and all(isinstance(t, str) for t in turns)
        return sum(len(text.strip().encode()) for text in turns) if exact else None

    def responses_in_groups(self, rows: Sequence[Row]) -> list[Example]:
        return groups.examples(self.responses, rows, self.groups)

    # -- prompts ----------------------------------------------------------------------------------------------

    def as_prompts(self, rows: Sequence[Row], answer: int) -> list[Example]:
        """Prompts for answers of `answer` tokens; `messages` for a model behind an API. The content is that of the
        prompt and of the number of the `sample`, not of the response."""
        messages, faults = [prompt_of(row) for row in rows], {}
        plain = not rows[0].get("messages")
        if plain:
            texts = [only["content"] + self.prefix for (only,) in messages]
        elif self.tokenizer is None:
            texts = [json.dumps(each, ensure_ascii=False) for each in messages]
        else:
            texts = []
            for n, each in enumerate(messages):
                try:
                    texts.append(chat_template.as_prompt(self.tokenizer, each, self.prefix))
                except DataError as error:
                    faults[n] = error.message
                    texts.append("")
        ids = self.tokens(texts)["input_ids"] if self.tokenizer is not None else [None] * len(texts)
        begin = self.begin if plain and self.tokenizer is not None else []  # a chat template writes it itself
        made = []
        for row, prompt, text, tokens in zip(rows, messages, texts, ids):
            content = f"{text}\0{row.get('sample') or 0}".encode()
            example = {"messages": prompt, "prefix": self.prefix, "content": content, "labels": []}
            if tokens is None:
                example |= {"length": len(text), "cut": False}
            else:
                whole = [*begin, *tokens]
                room = len(whole) if self.limit is None else max(1, self.limit - answer)
                example |= {"ids": whole[-room:], "length": min(len(whole), room), "cut": len(whole) > room}
            made.append(example)
        return _readable(made, faults)


def _readable(made: list[Example], faults: Mapping[int, str]) -> list[Example]:
    """
    Raises:
        UnreadableRows: a chat template does not accept these rows. Their examples are one token.
    """
    if not faults:
        return made
    raise UnreadableRows([e | NOTHING | {"fault": faults[n]} if n in faults else e for n, e in enumerate(made)])


FORMS = {
    "conversations": "conversations",
    "texts": "texts",
    "responses": "responses",
    "preferences": "responses_in_groups",
    "rankings": "responses_in_groups",
    "prompts": "unanswered",
}
"""Form of rows -> the method of an encoding that prepares them."""


def form_of(columns: Iterable[str]) -> str | None:
    """The form of rows with these columns; None where the task cannot read them."""
    have = set(columns)
    return next((form for form, needed in COLUMNS.items() if have.issuperset(needed)), None)


def prompt_of(row: Row) -> list[dict[str, str]]:
    """The prompt of a row as messages: those before its last answer, or one with its prompt or text."""
    if row.get("messages"):
        return chat_template.before_answer(row["messages"])
    return [{"role": "user", "content": row["prompt"] if row.get("prompt") is not None else row["text"]}]


def answer_of(row: Row) -> str | None:
    """The answer in a row: the assistant's last message, or the response; None where it has none."""
    if messages := row.get("messages"):
        return messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    return row.get("response")


def with_answer(row: Row, text: str) -> dict[str, Any]:
    """A row with another answer to its prompt; its other columns stay."""
    kept = {name: value for name, value in row.items() if name not in ("text", "prompt", "response", "messages")}
    prompt = prompt_of(row)
    if row.get("messages"):
        return {**kept, "messages": [*prompt, {"role": "assistant", "content": text}]}
    return {**kept, "prompt": prompt[0]["content"], "response": text}


def vocabulary(tokenizer: Any) -> str:
    """Digest of the tokens and their ids."""
    return hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest()
