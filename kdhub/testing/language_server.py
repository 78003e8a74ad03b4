"""A small server of a transformers language model, for tests of teachers that are asked for log-probabilities.

It speaks what kdhub needs of vLLM's `/v1/completions`: prompts as token ids, `prompt_logprobs` (the K most probable
tokens at each position, and the prompt's own), and greedy continuations. Requests that wait at the same moment are run
in one batch, as such servers do, so bits may depend on who else asks.

    with language_server(folder) as server:
        teacher = {"source": "openai:tiny", "base_url": server.url, "tokenizer": str(folder)}

`python -m kdhub.testing.language_server FOLDER [--delay SECONDS]` serves until it is ended, and prints its address.
"""

from __future__ import annotations

import argparse
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdhub.testing.server import Server, serving

MOST = 64
"""Requests of one batch."""


class Model:
    """A saved model, run by one thread for all requests.

    Attributes:
        batches: how many requests each forward pass answered.
    """

    def __init__(self, folder: Path | str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.classes = min(len(self.tokenizer), self.network.config.vocab_size)
        self.texts = [self.tokenizer.decode([token]) for token in range(self.classes)]
        self.batches: list[int] = []
        self._waiting: queue.Queue[tuple[list[int], Future] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def log_probs(self, ids: list[int]) -> Any:
        """Log-probabilities at each position of a text, (tokens, classes)."""
        answer: Future = Future()
        self._waiting.put((ids, answer))
        return answer.result()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MOST and not self._waiting.empty() and (more := self._waiting.get()) is not None:
                batch.append(more)
            try:
                for (_, answer), given in zip(batch, self._run([ids for ids, _ in batch])):
                    answer.set_result(given)
            except Exception as error:
                for _, answer in batch:
                    answer.set_exception(error)
            self.batches.append(len(batch))

    def _run(self, texts: list[list[int]]) -> list[Any]:
        import torch

        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        with torch.no_grad():
            logits = self.network(input_ids=ids, attention_mask=mask).logits[..., : self.classes]
        return [row[: len(text)].double().log_softmax(-1) for row, text in zip(logits, texts)]

    def answer(self, path: str, body: Any) -> Any:
        """What is answered to `/v1/completions`."""
        given = body["prompt"]
        ids = self.tokenizer(given)["input_ids"] if isinstance(given, str) else list(given)
        log_p, places, written = self.log_probs(ids), None, []
        if (count := body.get("prompt_logprobs")) is not None:
            best = log_p.topk(count, -1).indices.tolist() if count else [[]] * len(ids)
            values = log_p.tolist()
            places = [None, *(self._place(values[n], {*best[n], ids[n + 1]}) for n in range(len(ids) - 1))]
        for n in range(body.get("max_tokens", 16)):
            written.append(int((log_p if n == 0 else self.log_probs([*ids, *written]))[-1].argmax()))
        choice = {"index": 0, "text": self.tokenizer.decode(written), "finish_reason": "length"}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written), "total_tokens": len(ids) + len(written)}
        return {"object": "text_completion", "choices": [{**choice, "prompt_logprobs": places}], "usage": usage}

    def _place(self, log_p: list[float], tokens: set[int]) -> dict[str, Any]:
        ranked = sorted(tokens, key=lambda token: -log_p[token])
        return {
            str(token): {"logprob": log_p[token], "rank": rank, "decoded_token": self.texts[token]}
            for rank, token in enumerate(ranked, 1)
        }


@contextmanager
def language_server(folder: Path | str) -> Iterator[Server]:
    """A server of the model in a folder, until the end of the block; its `model` is the `Model`. More log-probabilities
    than there are tokens are refused (400), as by vLLM."""
    model = Model(folder)

    def refused(handler: Any, body: Any) -> Any:
        count = body.get("prompt_logprobs") or 0
        if count > model.classes:
            return handler.answer(400, {"error": {"message": f"at most {model.classes} prompt_logprobs, not {count}"}})
        return None

    try:
        with serving(model.answer) as server:
            server.model, server.always = model, refused
            yield server
    finally:
        model.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer, as of a network")
    given = parser.parse_args()
    with language_server(given.folder) as running:
        running.delay = given.delay
        print(running.url, flush=True)
        threading.Event().wait()
