"""The `openai:` teacher against a server that others wrote: `transformers serve`, with a tiny model made here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import datasets
import pytest
import torch
from kdhub_tasks.language.generation import Generation, answered, answers
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.students import llama
from kdhub_tasks.language.task import CausalLanguage

from kdhub.errors import TeacherError
from kdhub.student import BuildContext

SECONDS = 120  # for the server to start; it needs about ten on an idle machine
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[a] {% endif %}"
)

for package in ("fastapi", "openai", "uvicorn"):
    pytest.importorskip(package, reason="transformers serve needs it: pip install 'transformers[serving]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that says other things to other prompts, and sometimes ends."""
    torch.manual_seed(1)
    model = llama("width=16,layers=2,heads=2,length=256", BuildContext(None, None, 3))
    model.tokenizer.chat_template = TEMPLATE
    with torch.no_grad():
        for weight in model.module.parameters():
            weight += 0.3 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("served")
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """Where the server listens; it is killed in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--dtype", "float32"]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
            stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings},
        )  # fmt: skip
    try:
        end = time.monotonic() + SECONDS
        while True:
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait(30)


def openai(folder, **options):
    return OpenAI(str(folder), OpenAI.Options(**options), task=CausalLanguage())


def test_it_says_what_the_same_model_says_here(folder, address, saved):
    prompts = [f"what is {n} and {n}?" for n in range(12)]
    how = Generation(max_new_tokens=12)
    table = datasets.Dataset.from_dict({"messages": [[{"role": "user", "content": text}] for text in prompts]})
    there = openai(folder, base_url=address, concurrency=4, retries=1)
    given = list(answers(there, table, how))
    here = list(answers(saved(folder), table, how))
    assert given == here and len({text for text, _ in given}) > 6
    spent = there.spent
    assert spent["answers"] == 12 and spent["completion_tokens"] > 12
    tokens = there.prompt_tokens, sum(len(f"[user] {text}\n[a] ") for text in prompts)
    assert tokens[0] == tokens[1], "the server's count of bytes"

    base = openai(folder, base_url=address, api="completions", retries=1)
    data = answered(base, datasets.Dataset.from_dict({"prompt": prompts[:3]}), how, name="x").split("train")
    assert len(data) == 3 and base.prompt_tokens == sum(map(len, prompts[:3]))


def test_it_stops_where_the_same_model_stops_here_and_gives_no_log_probabilities(folder, address, saved):
    table = datasets.Dataset.from_dict({"messages": [[{"role": "user", "content": f"what is {n}?"}] for n in range(4)]})
    there, here = openai(folder, base_url=address, retries=0), saved(folder)
    whole = list(answers(here, table, Generation(max_new_tokens=12)))
    stop = next(c for c in whole[0].text[2:] if c.isprintable() and c != "\ufffd")
    how = Generation(max_new_tokens=12, stop=[stop])
    given = list(answers(there, table, how))
    assert given == list(answers(here, table, how)) and given[0] == (whole[0].text.partition(stop)[0], True)
    with pytest.raises(TeacherError, match="no log-probabilities"):
        list(answers(there, table, Generation(max_new_tokens=2, log_probs=True)))


def test_what_it_refuses_is_reported(folder, address):
    there = openai(folder, base_url=address, retries=0, body={"no_such_field": 1})
    with pytest.raises(TeacherError, match="refused text 1 .*422.*no_such_field"):
        list(answers(there, datasets.Dataset.from_dict({"prompt": ["hi"]}), Generation(max_new_tokens=2)))
