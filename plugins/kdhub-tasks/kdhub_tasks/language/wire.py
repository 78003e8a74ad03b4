"""A text by OpenAI's API: what is sent for it, and what is read of the answer.

    POST {base_url}/chat/completions {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    POST {base_url}/completions      {"model", "prompt", ...}     for base models

With `stop`, penalties and `logprobs` where the settings ask for them.

**Answers that are begun** (`prefix`). A base model is sent prompt and beginning as one text. Chat has no standard way:
the option `prefill` says how this server is told to go on with the last message. Without it a server, such as OpenAI's,
would begin another answer, so these prompts are refused here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdhub.errors import CompatibilityError
from kdhub.rows import Example
from kdhub_tasks.language.generation import Generation

ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
"""How servers say that a model ended its answer itself, by whichever of its ends."""
NOT_EVERYWHERE = {
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "prefix": "prefix|continue_final_message|add_generation_prompt",
    "log_probs": "logprobs",
    "first_tokens": "logprobs|top_logprobs",
}
"""Settings that some servers do not know, and what these call them."""


class Malformed(ValueError):
    """An answer lacks something; the text says what."""


def require_prefill(options: Any, name: str, prefix: str) -> None:
    """
    Raises:
        CompatibilityError: an answer is begun, and this server is not known to go on with it.
    """
    if prefix and options.api == "chat" and options.prefill is None:
        raise CompatibilityError(
            f"{name} is not known to go on with an answer that was begun (prefix={prefix!r}, prefill=null)",
            hint="set the option prefill to what this server understands, or api: completions; or leave out prefix",
        )


def request(options: Any, name: str, example: Example, how: Generation) -> tuple[str, dict[str, Any]]:
    """Where a prompt is sent, and what.

    Args:
        options: of the teacher; name: as messages show it.

    Raises:
        CompatibilityError: several messages, which a base model has no form for.
    """
    payload: dict[str, Any] = {options.limit: how.max_new_tokens, "temperature": how.temperature}
    if how.temperature:
        # Two samples for one prompt are two rows: their contents differ, and so must their seeds.
        drawn = int.from_bytes(hashlib.sha256(example["content"]).digest()[:4], "big")
        payload |= {"top_p": how.top_p, "seed": (drawn + how.seed) % 2**31}
    given = {"stop": list(how.stop), "presence_penalty": how.presence_penalty}
    given |= {"frequency_penalty": how.frequency_penalty}
    payload |= {name: value for name, value in given.items() if value}
    messages = list(example["messages"])
    if options.api == "completions":
        if len(messages) > 1:
            raise CompatibilityError(
                f"{name}: with api=completions a prompt must be one message, this one has {len(messages)}",
                hint="set api: chat",
            )
        payload |= {"logprobs": max(1, how.first_tokens)} if how.log_probs or how.first_tokens else {}
        return "completions", payload | {"prompt": messages[0]["content"] + how.prefix}
    if options.system:
        messages.insert(0, {"role": "system", "content": options.system})
    if how.prefix:
        begun = {"role": "assistant", "content": how.prefix}
        if options.prefill == "prefix":
            begun["prefix"] = True
        else:
            payload |= {"continue_final_message": True, "add_generation_prompt": False}
        messages.append(begun)
    payload |= {"logprobs": True} if how.log_probs or how.first_tokens else {}
    payload |= {"top_logprobs": how.first_tokens} if how.first_tokens else {}
    return "chat/completions", payload | {"messages": messages}


def unknown(how: Generation, reason: str) -> list[str]:
    """Settings that a refusal names."""
    asked = how.model_dump(exclude_defaults=True)
    return [name for name, words in NOT_EVERYWHERE.items() if name in asked and re.search(rf"\b({words})\b", reason)]


def text_of(options: Any, how: Generation, answer: Any) -> tuple[str, bool, np.ndarray]:
    """The text, "" where the model said nothing; whether the model or a stop sequence ended it; where they are asked
    for, the log-probabilities of the tokens that the server lists: of the text, with some servers of what ended it.

    Raises:
        Malformed: something is not there.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed("it has no list 'choices'")
    choice = choices[0]
    if options.api == "chat":
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Malformed("its choice has no 'message'")
        text = message.get("content")
        if isinstance(text, list):  # parts
            parts = [part.get("text") for part in text if isinstance(part, dict)]
            text = "".join(parts) if all(isinstance(part, str) for part in parts) else text
    else:
        text = choice.get("text", ...)
    if text is None:  # all tokens were spent on thinking, a tool, or a refusal
        return "", False, np.zeros(0, np.float32)
    if not isinstance(text, str):
        raise Malformed("its text is not a string")
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair, which JSON allows and files do not
    log_probs = _log_probs(options, choice) if how.log_probs and text else np.zeros(0, np.float32)
    if options.prefill == "prefix":  # some of these servers repeat it
        text = text.removeprefix(how.prefix)
    text, cut = how.cut(text)  # not all servers leave it out
    return text, cut or choice.get("finish_reason") in ENDED, log_probs


def first_of(options: Any, how: Generation, answer: Any) -> dict[str, float]:
    """The tokens that a server lists for the first place of its answer, with their log-probabilities.

    Raises:
        Malformed: it lists none.
    """
    try:
        given = answer["choices"][0]["logprobs"]
        if options.api == "chat":
            pairs = [(one["token"], float(one["logprob"])) for one in given["content"][0]["top_logprobs"]]
        else:
            pairs = [(token, float(value)) for token, value in given["top_logprobs"][0].items()]
    except (AttributeError, TypeError, ValueError, LookupError):
        pairs = []
    found = {token: value for token, value in pairs if isinstance(token, str) and value <= 1e-3}  # NaN is not <= either
    if not found or len(found) != len(pairs):
        raise Malformed(
            "it has no list of its first tokens' log-probabilities ('top_logprobs'), which not every server gives: "
            "leave out first_tokens"
        )
    return found


def _log_probs(options: Any, choice: Mapping[str, Any]) -> np.ndarray:
    given = choice.get("logprobs")
    try:
        if options.api == "chat":
            values = [token["logprob"] for token in given["content"]]
        else:
            values = given["token_logprobs"]
        found = np.array(values, np.float32).reshape(len(values))
    except (AttributeError, TypeError, ValueError, KeyError):
        found = np.array([np.nan])
    if not (np.isfinite(found) & (found <= 1e-3)).all():
        raise Malformed("it has no log-probabilities ('logprobs'), which not every server gives: leave out log_probs")
    return found
