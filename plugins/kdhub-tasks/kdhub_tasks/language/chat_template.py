"""Conversations as one text, and where in it the assistant speaks.

A conversation is rendered by the tokenizer's own chat template. A tokenizer without one gets `TEMPLATE`, the format of
Tulu (arXiv:2306.04751), and keeps it, so that the saved student is prompted in the way it was taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from kdhub.errors import CompatibilityError, DataError
from kdhub.hub import templates

MARK = "[the answer goes on here]"
"""Stands in a template where the model is to go on."""
Message = Mapping[str, str]
Spans = list[tuple[int, int]]
"""Parts of a text, each from one character up to another."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' }}{{ '\n' if not loop.last or add_generation_prompt }}"
    "{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"
)
"""`<|user|>\\nhi\\n<|assistant|>\\nyo</s>`: a line for each role, the end token after what the assistant says."""


def render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """A conversation as text, as a `prompt` with the header of the next answer at its end.

    Raises:
        DataError: the chat template does not accept such a conversation.
    """
    if not messages:
        raise DataError("nothing comes before the answer: a conversation without a prompt")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TEMPLATE
    if tokenizer.chat_template == TEMPLATE and any(not isinstance(m.get("content"), str) for m in messages):
        raise DataError("a conversation of parts (images, texts) is for models of images and texts: image-text-to-text")
    try:
        # In kdhub's own sandbox: a template is a stranger's program, and that of the library has no end.
        said = [{key: value for key, value in one.items() if value is not None} for one in messages]
        given = {"messages": said, "tools": None, "documents": None, "add_generation_prompt": prompt}
        return templates.render(tokenizer.get_chat_template(), given | tokenizer.special_tokens_map)
    except Exception as error:  # whatever its code runs into
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the tokenizer's chat template does not accept a conversation of {roles}: {error}") from error


def as_prompt(tokenizer: Any, messages: Sequence[Message], prefix: str = "") -> str:
    """A conversation as the prompt of its next answer, which begins with `prefix`: the last thing in the prompt, in a
    turn that is not closed (`continue_final_message` of the transformers library).

    Raises:
        DataError: the chat template does not accept such a conversation.
        CompatibilityError: it accepts it, but leaves no answer open after its beginning.
    """
    closed = render(tokenizer, messages, prompt=True)
    if not prefix:
        return closed
    why = ""
    try:
        whole = render(tokenizer, [*messages, {"role": "assistant", "content": prefix + MARK}])
    except DataError as error:
        whole, why = "", f": {error.message}"
    before, mark, after = whole.partition(MARK)
    if not mark or not before.endswith(prefix) or MARK in after:
        raise CompatibilityError(
            f"the tokenizer's chat template cannot leave an answer open after its beginning (prefix={prefix!r}){why}",
            hint="leave out `prefix`, or prompt without the chat template",
        )
    return before


def text_and_targets(tokenizer: Any, messages: Sequence[Message], *, everything: bool = False) -> tuple[str, Spans]:
    """A conversation as text without white space at its end, and which parts of it are learnt.

    These are what follows the header of each assistant turn: the answer, its end, and what leads to the next turn. Some
    templates render a turn differently when others follow (they drop its thoughts); such a turn is not learnt, as no
    model ever writes it like that.

    Args:
        everything: learn headers and other roles too.
    """
    whole = render(tokenizer, messages)
    text = whole.rstrip()
    if everything:
        return text, [(0, len(text))]
    spans = []
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        given = render(tokenizer, messages[:n]).rstrip() if n else ""
        before = render(tokenizer, messages[:n], prompt=True) if n else _header(tokenizer, message)
        after = render(tokenizer, messages[: n + 1]).rstrip()
        if not (whole.startswith(given) and whole.startswith(after)):
            continue
        # a header that opens the model's thoughts is longer than that of an answer without any
        start = len(commonprefix([before, whole]))
        end = len(text) - len(text[len(after) :].lstrip())
        if len(given) <= start < end:
            spans.append((start, end))
    return text, spans


def _header(tokenizer: Any, message: Message) -> str:
    """What stands before an answer with which a conversation begins: what does not depend on what it says."""
    return commonprefix([render(tokenizer, [{**message, "content": content}]) for content in "ab"])


def tokens_in(offsets: Sequence[tuple[int, int]], spans: Spans) -> list[int]:
    """The tokens that begin inside a span, by the offsets of each token in the text.

    A token across a border belongs to where it begins: where a header merges with an answer's first letters, a model
    that was given the header would never write that token.
    """
    found, at = [], 0
    for n, (start, end) in enumerate(offsets):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and spans[at][0] <= start < end:
            found.append(n)
    return found


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an answer in the tokenizer's chat template, None where it has none."""
    if not tokenizer.chat_template:
        return None
    said = "answer"
    try:
        whole = render(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}])
    except DataError:
        return None
    after = whole.rpartition(said)[2].lstrip()
    known = {token.content: n for n, token in tokenizer.added_tokens_decoder.items() if token.content}
    return known.get(max(filter(after.startswith, known), key=len, default=""))


def before_answer(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages before the last answer: all of them where the user speaks last."""
    answered = messages[-1]["role"] == "assistant"
    return [dict(message) for message in (messages[:-1] if answered else messages)]


def as_conversation(row: Mapping[str, Any], system: str | None = None) -> list[dict[str, str]]:
    """A row of `prompt` and `response` as messages."""
    made = [{"role": "system", "content": system}] if system else []
    made.append({"role": "user", "content": row["prompt"]})
    return [*made, {"role": "assistant", "content": row["response"]}]


def pieces(messages: Sequence[Message], fits: Callable[[list[dict[str, str]]], bool]) -> Iterator[list[dict[str, str]]]:
    """A long conversation in pieces that fit, cut before messages of the user; each begins with the conversation's
    system message, if it has one.

    A question is never separated from its answers. One that does not fit with them is dropped, and what follows begins
    a new piece; nothing else is lost.
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


def mentions(messages: Sequence[Message], words: Sequence[str]) -> bool:
    """Whether any message contains one of some words, in whatever case."""
    text = "\n".join(message["content"] for message in messages).casefold()
    return any(word.casefold() in text for word in words)


def require_offsets(tokenizer: Any) -> None:
    """
    Raises:
        CompatibilityError: the tokenizer gives no character offsets of its tokens.
    """
    if not tokenizer.is_fast:
        raise CompatibilityError(
            f"{type(tokenizer).__name__} gives no character offsets of its tokens",
            hint="conversations need a fast tokenizer (tokenizer.json)",
        )


def share_template(student: Any, teacher: Any) -> None:
    """Make both tokenizers render conversations alike: one without a template gets the other's.

    Raises:
        CompatibilityError: each has one of its own.
    """
    if teacher is None or student.chat_template == teacher.chat_template:
        return
    if student.chat_template and teacher.chat_template:
        raise CompatibilityError(
            "student and teacher have different chat templates, so their tokens do not line up",
            hint="give one the other's chat_template, or let the student learn from the teacher's answers (seqkd)",
        )
    student.chat_template = teacher.chat_template = student.chat_template or teacher.chat_template
