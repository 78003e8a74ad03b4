"""Conversations as one text, and where in it the assistant speaks.

A conversation is written by the tokenizer's own chat template. A tokenizer without one gets `TEMPLATE`, the format of
Tulu (arXiv:2306.04751), and keeps it, so that the saved student is asked in the way it was taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from kdhub.errors import CompatibilityError, DataError

Message = Mapping[str, str]
Spans = list[tuple[int, int]]
"""Characters of a text, each from one place up to another."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' }}{{ '\n' if not loop.last or add_generation_prompt }}"
    "{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"
)
"""`<|user|>\\nhi\\n<|assistant|>\\nyo</s>`: a line for each role, the end behind what the assistant says."""


def written(tokenizer: Any, messages: Sequence[Message], *, asked: bool = False) -> str:
    """A conversation as text; `asked` with the header of the answer at its end.

    Raises:
        DataError: the chat template takes no such conversation.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asked)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the tokenizer's chat template takes no conversation of {roles}: {error}") from error


def learnt(tokenizer: Any, messages: Sequence[Message], *, everything: bool = False) -> tuple[str, Spans]:
    """A conversation as text without white space at its end, and what of it is learnt.

    That is what stands behind the header of each assistant turn: the answer, its end, and what leads to the next turn.
    Some templates write a turn otherwise when others follow (they leave out its thoughts); such a turn is not learnt,
    as no model ever writes it so.

    Args:
        everything: learn headers and other roles too.
    """
    whole = written(tokenizer, messages)
    text = whole.rstrip()
    if everything:
        return text, [(0, len(text))]
    spans = []
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        given, before = written(tokenizer, messages[:n]).rstrip(), written(tokenizer, messages[:n], asked=True)
        after = written(tokenizer, messages[: n + 1]).rstrip()
        if not (whole.startswith(given) and whole.startswith(after)):
            continue
        # a header that opens the model's thoughts is more than the one before an answer without any
        start = len(commonprefix([before, whole]))
        end = len(text) - len(text[len(after) :].lstrip())
        if len(given) <= start < end:
            spans.append((start, end))
    return text, spans


def tokens_in(offsets: Sequence[tuple[int, int]], spans: Spans) -> list[int]:
    """The tokens that begin in one of some spans, by the places of each token in the text.

    A token that lies across a border belongs to where it begins: where a header melts together with an answer's first
    letters, a model that was given the header would never write that token.
    """
    found, at = [], 0
    for n, (start, end) in enumerate(offsets):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and spans[at][0] <= start < end:
            found.append(n)
    return found


def asked(messages: Sequence[Message]) -> list[dict[str, str]]:
    """What stands before the last answer: all of it where the user speaks last."""
    answered = messages[-1]["role"] == "assistant"
    return [dict(message) for message in (messages[:-1] if answered else messages)]


def of_response(row: Mapping[str, Any], system: str | None = None) -> list[dict[str, str]]:
    """`prompt` and `response` as a conversation."""
    made = [{"role": "system", "content": system}] if system else []
    made.append({"role": "user", "content": row["prompt"]})
    return [*made, {"role": "assistant", "content": row["response"]}]


def pieces(messages: Sequence[Message], fits: Callable[[list[dict[str, str]]], bool]) -> Iterator[list[dict[str, str]]]:
    """A long conversation cut where the user speaks next, in pieces that fit; each begins with the conversation's
    system message, where it has one.

    A question is never torn from its answers. One that does not fit with them is left out, and what stands behind it
    begins a new piece; nothing else is lost.
    """
    head = [dict(m) for m in messages[:1] if m["role"] == "system"]
    groups: list[list[dict[str, str]]] = []
    for message in messages[len(head) :]:
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(dict(message))
    piece: list[dict[str, str]] = []
    for group in groups:
        if piece and fits([*head, *piece, *group]):
            piece += group
            continue
        if piece:
            yield [*head, *piece]
        piece = list(group) if fits([*head, *group]) else []
    if piece:
        yield [*head, *piece]


def names_one_of(messages: Sequence[Message], words: Sequence[str]) -> bool:
    """Whether any turn holds one of some words, in whatever case."""
    text = "\n".join(message["content"] for message in messages).casefold()
    return any(word.casefold() in text for word in words)


def require_places(tokenizer: Any) -> None:
    """
    Raises:
        CompatibilityError: the tokenizer does not say where in a text its tokens stand.
    """
    if not tokenizer.is_fast:
        raise CompatibilityError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens stand",
            hint="conversations need a tokenizer of the tokenizers library (tokenizer.json)",
        )


def agree(mine: Any, theirs: Any) -> None:
    """Student and teacher write conversations alike; a tokenizer without a template gets that of the other.

    Raises:
        CompatibilityError: each has one of its own.
    """
    if theirs is None or mine.chat_template == theirs.chat_template:
        return
    if mine.chat_template and theirs.chat_template:
        raise CompatibilityError(
            "student and teacher have different chat templates, so the same token stands in different places",
            hint="give one the other's chat_template, or let the student learn from what the teacher writes (seqkd)",
        )
    mine.chat_template = theirs.chat_template = mine.chat_template or theirs.chat_template
