"""Prompts and responses as conversations, and conversations that are too long in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from kdhub.data import Data, DataOptions
from kdhub.errors import DataError, UsageError
from kdhub.resolve import Resolver
from kdhub_lm import chat
from kdhub_lm.generation import opened

FORMS = ("responses", "conversations")


def conversations(
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
        system: what a conversation without a system message begins with.
        loss_on: learn what the assistant says, or every token; a column of that name says so.
        limit: tokens of a conversation; longer ones are cut between an answer and the next question.
        teacher: whose tokens; bytes without one. `{source: recipe:NAME}` for another recipe's student.
        options: of the other data set.
    """
    if loss_on not in ("assistant", "all") or (limit is not None and limit < 1):
        raise UsageError(f"chat:{argument}: loss_on is assistant or all, limit at least 1, not {loss_on} and {limit}")
    data = Resolver().open_data(argument, DataOptions(), options)
    splits = [name for name in data.splits if data.form(name) in FORMS]
    if not splits:
        raise DataError(
            f"chat:{argument}: none of its splits {', '.join(data.splits)} has prompts and responses, or messages",
            hint="map its columns: a `path:` or catalogue data set with `columns: {prompt: THEIRS, response: THEIRS}`",
        )
    fits, tokens = _fitting(limit, teacher)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        for row in data.split(split):
            messages = row.pop("messages") if "messages" in row else chat.of_response(row)
            if system and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            kept = {name: value for name, value in row.items() if name not in ("prompt", "response")}
            if loss_on != "assistant":
                kept["loss_on"] = loss_on
            for piece in chat.pieces(messages, fits) if fits else [messages]:
                yield {**kept, "messages": piece}

    key = {"system": system, "loss_on": loss_on, "limit": limit, "tokens": tokens, "version": 1}
    return data.remade(f"chat:{argument}", rows, splits, key=key)


def _fitting(limit: int | None, teacher: Any) -> tuple[Callable[[list[dict[str, str]]], bool] | None, Any]:
    """Whether a conversation has at most so many tokens, and whose they are."""
    if limit is None:
        return None, None
    if teacher is None:
        from kdhub_lm.models import byte_tokenizer

        tokenizer, tokens = byte_tokenizer(), "bytes"
    else:
        model = opened(teacher)
        tokenizer, tokens = model.tokenizer, dict(model.identity)

    def fits(messages: list[dict[str, str]]) -> bool:
        text = chat.written(tokenizer, messages)
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) <= limit

    return fits, tokens
