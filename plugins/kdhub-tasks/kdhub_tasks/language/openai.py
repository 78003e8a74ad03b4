"""`openai:MODEL`: a language model behind any OpenAI-compatible API, as a teacher that writes.

One request is one row, many are in flight, and each answer is committed to the signal store when it arrives, with the
token counts of the server: nothing is paid for twice after a kill or a failure. For retries and keys see
`kdhub.teachers.endpoint`, for what is sent and read `wire`.

**Logits.** Some servers return the log-probabilities of a prompt's tokens by token id (`prompt_logprobs` of
`/completions`, as in vLLM). With the option `tokenizer`, `signals: {keep: top-K}` then works as with a local teacher:
rows are tokenized here, sent as ids, and returned with the K most probable tokens of each position. So it answers
inside training too (`batch_signals`), about what the student has just written. Log-probabilities by the tokens' texts
(`logprobs` of chat) make no logits: different tokens can have the same text, and they exist only for what the server
generated itself. Of that they are read (`log_probs`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, TeacherError
from kdhub.fields import Field as Stored
from kdhub.teachers.endpoint import Endpoint, Refused, Stopped, message_in, quoted
from kdhub_tasks.language.generation import REFUSED, Generation, encoded, is_text, layout
from kdhub_tasks.language.rows import vocabulary
from kdhub_tasks.language.wire import Malformed, first_of, request, require_prefill, text_of, unknown

if TYPE_CHECKING:
    from kdhub.rows import Example
    from kdhub_tasks.sparse import Form

UNKNOWN = -1
"""Token count of an answer for which the server gave none."""


class OpenAI(Endpoint):
    """Answers from an endpoint.

    Attributes:
        answered: answers received; prompt_tokens, completion_tokens: the server's counts for them.
    """

    class Options(Endpoint.Options):
        api: Literal["chat", "completions"] = Field("chat", description="chat/completions, or completions")
        system: str | None = Field(None, description="system message before each prompt (chat)")
        limit: Literal["max_tokens", "max_completion_tokens"] = Field(
            "max_tokens", description="the server's name for the most tokens of an answer"
        )
        body: dict[str, Any] = Field({}, description="further fields of each request, passed to the server")
        prefill: Literal["continue_final_message", "prefix"] | None = Field(
            None,
            description="how a chat server is told to go on with an answer that was begun: by vLLM's field, or the "
            "mark on the message of DeepSeek and Mistral; unset where it cannot",
        )
        refused: Literal["stop", "empty"] = Field(
            "stop", description="what a refused prompt becomes: an error (a bad row, where those are skipped), or empty"
        )
        commit: int = Field(1, ge=1, le=1024, description="answers committed together; larger makes fewer files")
        input_price: float = Field(0.0, ge=0, description="price of a million prompt tokens, for the cost in the log")
        output_price: float = Field(0.0, ge=0, description="price of a million completion tokens")
        tokenizer: str | None = Field(
            None, description="the model's tokenizer, for its logits: a folder or org/name[@revision]"
        )

    options: Options

    def __init__(self, argument: str, options: Any = None, *, task: Any = None):
        super().__init__(argument, options)
        self.task = task
        self.answered = self.prompt_tokens = self.completion_tokens = 0
        self._texts: dict[int, str] = {}  # of tokens

    @property
    def group_rows(self) -> int:
        return self.options.commit

    @property
    def identity(self) -> Mapping[str, Any]:
        o = self.options
        return {**super().identity, "api": o.api, "system": o.system, "body": o.body}

    @property
    def spent(self) -> Mapping[str, float]:
        with self._lock:
            counts = {
                "requests": self.requests,
                "answers": self.answered,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
            }
        return counts | self.priced(counts["prompt_tokens"], counts["completion_tokens"])

    def priced(self, prompt_tokens: int, completion_tokens: int) -> dict[str, float]:
        """{"cost": ...} in the currency of the prices; {} without prices."""
        o = self.options
        cost = (prompt_tokens * o.input_price + completion_tokens * o.output_price) / 1e6
        return {"cost": round(cost, 6)} if o.input_price or o.output_price else {}

    def layout(self, kind: str) -> dict[str, Any]:
        if is_text(kind):
            require_prefill(self.options, self.name, Generation.parse(kind).prefix)
            return {**layout(kind), "tokens": Stored("tokens", "int32", (2,))}
        field = self._form(kind).field("logits", ragged=True)
        return {field.name: field}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        """Answers to `messages`, or the most probable tokens at the positions of `ids`.

        Raises:
            TeacherError: a malformed answer, or a refused prompt.
            HubError: the server could not be reached, or did not answer.
        """
        if not is_text(kind):
            form = self._form(kind)
            return {form.field("logits", True).name: [self._scored(e, form) for e in examples]}
        how = Generation.parse(kind)
        found = [self._answer(example, how, row) for row, example in enumerate(examples)]
        texts, ended, log_probs, tokens, first = zip(*found) if found else ((), (), (), (), ())
        made = encoded(texts, ended, log_probs if how.log_probs else None, first if how.first_tokens else None)
        return {**made, "tokens": np.array(tokens, np.int32).reshape(-1, 2)}

    # -- texts ----------------------------------------------------------------------------------------------------

    def _answer(self, example: Example, how: Generation, row: int) -> tuple[Any, ...]:
        """The text, whether the model or a stop sequence ended it (`REFUSED` where there is none), the log-probability
        of each of its tokens where `how` asks for them, the tokens of prompt and answer, and those that the answer may
        begin with."""
        require_prefill(self.options, self.name, how.prefix)
        which = quoted(example["messages"][-1]["content"], row)
        path, payload = request(self.options, self.name, example, how)
        try:
            answer = self.send(path, payload | self.options.body, doing=f"answering {which}", what=which)
        except Refused as refused:
            named = unknown(how, str(refused))
            empty = self.options.refused == "empty"
            if (empty or self.on_bad_rows == "skip") and not named:
                return "", False if empty else REFUSED, np.zeros(0, np.float32), (UNKNOWN, UNKNOWN), {}
            raise TeacherError(
                f"{self.name} refused {which}: {refused}",
                hint=f"it does not seem to know {', '.join(named)}: leave it out, or ask another server"
                if named
                else "on_bad_rows: skip leaves such rows out, refused: empty drops such prompts; "
                "set limit, system and body to what the server supports",
            ) from None
        try:
            text, ended, log_probs = text_of(self.options, how, answer)
            first = first_of(self.options, how, answer) if how.first_tokens else {}
        except Malformed as what:
            message, _ = message_in(answer)
            instead = f", but: {self.redacted(message)}" if message else ""
            raise TeacherError(f"{self.name} sent a malformed answer for {which}: {what}{instead}") from None
        usage = answer.get("usage")
        counts = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        known = [n if type(n) is int and 0 <= n < 2**31 else UNKNOWN for n in counts]
        with self._lock:
            self.answered += 1
            self.prompt_tokens += max(0, known[0])
            self.completion_tokens += max(0, known[1])
        return text, ended, log_probs, (known[0], known[1]), first

    # -- logits ---------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own, None unless the option names it."""
        if self.options.tokenizer is None:
            return None
        from transformers import AutoTokenizer

        from kdhub.hub.fetch import fetch_model

        folder = Path(self.options.tokenizer).expanduser()
        if not folder.is_dir():
            folder = fetch_model(self.options.tokenizer)[0]
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokens and their ids."""
        if self.tokenizer is None:
            raise CompatibilityError(f"the tokenizer of {self.name} is unknown", hint="set its option tokenizer")
        return vocabulary(self.tokenizer)

    def _form(self, kind: str) -> Form:
        from kdhub_tasks.sparse import Form

        name, _, keep = kind.partition(":")
        if name != "logits":
            raise CompatibilityError(f"openai:{self.argument} gives text and top-K logits, not {name!r}")
        if not keep:
            raise CompatibilityError(
                f"openai:{self.argument} does not give all logits",
                hint="set signals: {keep: top-K} and the teacher's option tokenizer, if the server has prompt_logprobs",
            )
        if self.tokenizer is None:
            raise CompatibilityError(
                f"openai:{self.argument} needs its tokenizer to give logits (tokenizer=None)",
                hint="set its option tokenizer: a folder, or org/name on the Hub",
            )
        form = Form.parse(keep, len(self.tokenizer))
        if form.name == "sampled":
            raise CompatibilityError(f"{self.name} gives the most probable tokens, not samples", hint="keep: top-K")
        return form

    def _scored(self, example: Example, form: Form) -> np.ndarray:
        """The K most probable tokens at the positions of an example's labels, packed."""
        at, log_p, _ = self._asked(example["ids"], example["at"], form)
        return form.pack_top(at, log_p)

    def batch_signals(self, inputs: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """Inside training: `logits`, the K most probable tokens of each position as a `sparse.Top` in full precision,
        and `label_log_probs` (positions,), of the tokens that follow in the batch. Requests are one a row, many in
        flight.

        Raises:
            CompatibilityError: rows are packed.
        """
        import torch

        from kdhub_tasks.language.packing import mask_of
        from kdhub_tasks.sparse import SMALLEST, Top

        if "position_ids" in inputs:
            raise CompatibilityError(f"{self.name} is asked row by row", hint="leave out the student's option packing")
        form, ids, where = self._form(kind), inputs["input_ids"].tolist(), inputs["input_ids"].device
        width, lengths = inputs["input_ids"].shape[1], mask_of(inputs).sum(-1).tolist()
        places: list[list[int]] = [[] for _ in ids]
        for at in inputs["at"].tolist():
            places[at // width].append(at % width)
        rows = [(row[:n], at) for row, n, at in zip(ids, lengths, places) if at]
        found = self._all_asked(rows, form)
        at, kept, labels = (np.concatenate([one[n] for one in found]) if found else np.zeros((0,)) for n in range(3))
        at, kept = at.reshape(-1, form.count).astype(np.int64), kept.reshape(-1, form.count)
        rest = np.log(np.clip(1 - np.exp(kept).sum(-1, keepdims=True), SMALLEST, None))
        log_p = torch.from_numpy(np.concatenate([kept, rest], -1)).float().to(where)
        top = Top(torch.from_numpy(at).to(where), log_p, alone=form.name == "renormalised")
        return {"logits": top, "label_log_probs": torch.from_numpy(labels).float().to(where)}

    def label_log_probs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """The model's log-probability of each label of some examples, nats."""
        return [one[2] for one in self._all_asked([(e["ids"], e["at"]) for e in examples], self._form("logits:top-1"))]

    def _all_asked(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], form: Form
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`_asked` of rows of ids and positions; where one fails the others stop."""
        from concurrent.futures import ThreadPoolExecutor

        stop = threading.Event()

        def one(row: tuple[Sequence[int], Sequence[int]]) -> Any:
            try:
                return self._asked(*row, form, stop)
            except Stopped:
                return None
            except BaseException:
                stop.set()
                raise

        if not rows:
            return []
        with ThreadPoolExecutor(min(len(rows), self.options.concurrency)) as pool:
            futures = [pool.submit(one, row) for row in rows]
        for future in futures:
            future.result()  # the failure, not one that was stopped by it
        return [future.result() for future in futures]

    def _asked(
        self, ids: Sequence[int], at: Sequence[int], form: Form, stop: threading.Event | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The K most probable tokens at some positions of a text, the lowest first, and their log-probabilities
        (positions, K); and those of the tokens that follow there (positions,).

        Raises:
            TeacherError: the server has no `prompt_logprobs`, or not of this model's tokens.
        """
        ids = list(ids)
        payload = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": form.count}
        what = f"a row of {len(ids)} tokens"
        try:
            body = payload | self.options.body
            answer = self.send("completions", body, doing=f"scoring {what}", what=what, stop=stop)
        except Refused as refused:
            raise TeacherError(
                f"{self.name} refused {what}: {refused}",
                hint="does this server support prompt_logprobs, and this many?",
            ) from None
        choices = answer.get("choices") if isinstance(answer, dict) else None
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        listed = first.get("prompt_logprobs")
        if not isinstance(listed, list) or len(listed) != len(ids):
            raise TeacherError(
                f"{self.name} sent no 'prompt_logprobs' for {what}", hint="not every server has them; vLLM does"
            )
        with self._lock:
            self.answered += 1
            self.prompt_tokens += len(ids)
        # the token at a position was predicted from the one before
        found = [self._most_probable(listed[n + 1], form, what) for n in at]
        pairs = np.array(found, np.float64).reshape(len(found), form.count, 2)
        follow = [self._own(listed[n + 1], ids[n + 1], what) for n in at]
        self._require_own_tokens(ids, listed, what)
        return pairs[..., 0].astype(np.int64), pairs[..., 1], np.array(follow, np.float64)

    def _own(self, given: Mapping[str, Any], token: int, what: str) -> float:
        if str(token) not in given:
            raise TeacherError(
                f"{self.name} sent no log-probability of the prompt's own token for {what}",
                hint="servers add it to the most probable ones; is the option tokenizer this model's own?",
            )
        return float(given[str(token)]["logprob"])

    def _require_own_tokens(self, ids: Sequence[int], listed: Sequence[Any], what: str) -> None:
        """
        Raises:
            TeacherError: the server spells most of these tokens otherwise than the tokenizer that was told.
        """
        compared = unlike = 0
        for token, given in zip(ids[1:], listed[1:]):
            theirs = (given.get(str(token)) or {}).get("decoded_token") if isinstance(given, dict) else None
            mine = self._spelt(token)
            if isinstance(theirs, str) and mine and "\ufffd" not in mine + theirs:
                compared, unlike = compared + 1, unlike + (mine.strip() != theirs.strip())
        if unlike > compared / 2:
            raise TeacherError(
                f"{self.name} has other tokens than its option tokenizer says: it spells {unlike} of {compared} tokens "
                f"of {what} otherwise",
                hint="set the option tokenizer to the folder or name of the very model that is served",
            )

    def _spelt(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token])
        return self._texts[token]

    def _most_probable(self, given: Any, form: Form, what: str) -> list[tuple[int, float]]:
        """K tokens, the lowest id first, and their log-probabilities. Servers add the prompt's own token where it is
        not one of these."""
        try:
            pairs = [(int(token), float(value["logprob"])) for token, value in given.items()]
        except (AttributeError, TypeError, ValueError, KeyError):
            raise TeacherError(f"{self.name} sent prompt_logprobs of an unknown form for {what}") from None
        if any(not 0 <= token < form.classes or not value <= 1e-3 for token, value in pairs):  # NaN is not <= either
            raise TeacherError(
                f"{self.name} sent prompt_logprobs with ids beyond its {form.classes} tokens, or values that are not "
                "log-probabilities",
                hint="is the option tokenizer this model's own?",
            )
        if len(pairs) < form.count:
            raise TeacherError(
                f"{self.name} sent {len(pairs)} log-probabilities for a position, {form.count} were requested"
            )
        return sorted(sorted(pairs, key=lambda pair: -pair[1])[: form.count])
