"""Prompts and responses as conversations, and long conversations in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from kdhub_tasks.language import chat_template
from kdhub_tasks.language.students import byte_tokenizer

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import DataError, UsageError

FORMS = ("responses", "conversations")


def chat(
    argument: str,
    *,
    system: str | None = None,
    loss_on: Literal["assistant", "all"] = "assistant",
    limit: int | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`chat:DATA`: each split of prompts and responses, or of conversations, as `messages`; other columns stay.

    Args:
        argument: the data set, as `--data` takes it.
        system: system message for conversations without one.
        loss_on: learn what the assistant says, or every token; becomes a column.
        limit: most tokens of a conversation; longer ones are cut between an answer and the next question.
        teacher: whose tokenizer counts them; bytes without one. `{source: recipe:NAME}` for another recipe's student.
        options: of the other data set.
    """
    if loss_on not in ("assistant", "all") or (limit is not None and limit < 1):
        raise UsageError(
            f"chat:{argument} needs loss_on of assistant or all and a limit of at least 1 "
            f"(loss_on={loss_on!r}, limit={limit})"
        )
    data = open_data(argument, options=options)
    splits = [name for name in data.splits if data.form(name) in FORMS]
    if not splits:
        raise DataError(
            f"chat:{argument}: none of its splits {', '.join(data.splits)} has prompts and responses, or messages",
            hint="map its columns: a `path:` or catalogue data set with `columns: {prompt: THEIRS, response: THEIRS}`",
        )
    fits, tokens = _fitting(limit, teacher)

    def rows(split: str) -> Iterator[dict[str, Any] | BadRow]:
        for number, row in enumerate(data.split(split), 1):
            messages = row.pop("messages") if "messages" in row else chat_template.as_conversation(row)
            if system and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            kept = {name: value for name, value in row.items() if name not in ("prompt", "response")}
            if loss_on != "assistant":
                kept["loss_on"] = loss_on
            try:
                pieces = list(chat_template.pieces(messages, fits)) if fits else [messages]
            except DataError as error:  # the template does not accept it
                pieces = []
                yield BadRow(error.message, number)
            yield from ({**kept, "messages": piece} for piece in pieces)

    key = {"system": system, "loss_on": loss_on, "limit": limit, "tokens": tokens, "version": 1}
    return data.remade(f"chat:{argument}", rows, splits, key=key)


def _fitting(limit: int | None, teacher: Any) -> tuple[Callable[[list[dict[str, str]]], bool] | None, Any]:
    """Whether a conversation has at most `limit` tokens, and which tokenizer counts them."""
    if limit is None:
        return None, None
    if teacher is None:
        tokenizer, tokens = byte_tokenizer(), "bytes"
    else:
        model = open_teacher(teacher, "causal-lm")
        tokenizer, tokens = model.tokenizer, dict(model.identity)

    def fits(messages: list[dict[str, str]]) -> bool:
        text = chat_template.render(tokenizer, messages)
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) <= limit

    return fits, tokens
