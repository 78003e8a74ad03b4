"""COMET: what the student of a graph reads and writes, and a small one to begin with.

    prompt      <head> PersonX misses the bus </head> <relation> xWant </relation> [GEN]
    response     to call a taxi

It writes greedily; `tail_of` cuts what it wrote at the first full stop or end of line. The marks are tokens of their
own in the tokenizer of `comet:`, and plain text to that of any other student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdhub.errors import UsageError
from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub_tasks.language.model import CausalLm

MARKS = ("<head>", "</head>", "<relation>", "</relation>", "[GEN]")
PROMPT = "<head> {head} </head> <relation> {relation} </relation> [GEN]"
READ = 20_000
"""Rows that the tokenizer is made from, evenly spaced."""


def prompt_of(row: Mapping[str, Any]) -> str:
    return PROMPT.format(head=row["head"], relation=row["relation"])


def as_example(row: Mapping[str, Any]) -> dict[str, str]:
    """A triple as a row of the task `causal-lm`."""
    return {"prompt": prompt_of(row), "response": f" {row['tail']}"}


def tail_of(text: str, stop: str = ".") -> str:
    """The tail in what the student wrote."""
    return text.split("\n")[0].split(stop)[0].strip()


def build(argument: str, context: BuildContext) -> CausalLm:
    """`comet:width=64,layers=2,heads=4,length=96,vocabulary=2000`: a fresh GPT-2. Its tokenizer is made from the
    training rows: bytes, joined by how often they follow each other, and the marks.

    Raises:
        UsageError: an unknown setting, a vocabulary without room for all bytes, or heads that do not divide the width.
    """
    from kdhub_tasks.language.model import CausalLm
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    settings = sizes("comet", argument, width=64, layers=2, heads=4, length=96, vocabulary=2000)
    width, heads, length = settings["width"], settings["heads"], settings["length"]
    if width % heads:
        raise UsageError(f"student comet:{argument}: the width must be a multiple of the heads ({width=}, {heads=})")
    if settings["vocabulary"] < (least := 256 + 2 + len(MARKS)):
        raise UsageError(
            f"student comet:{argument}: vocabulary must be at least {least} (vocabulary={settings['vocabulary']})"
        )
    tokenizer = _tokenizer(_texts(context), settings["vocabulary"], length)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=length, n_embd=width, n_layer=settings["layers"], n_head=heads,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(context.seed)
    return CausalLm(GPT2LMHeadModel(config), tokenizer, {"how": f"fresh comet:{argument}"})


def _texts(context: BuildContext) -> Iterator[str]:
    for table in context.facts.get("tables", ()):
        step = max(1, len(table) // READ)
        for row in table.select(range(0, len(table), step)):
            yield " ".join(value for value in row.values() if isinstance(value, str))


def _tokenizer(texts: Iterator[str], vocabulary: int, length: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", *MARKS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=length, pad_token="<pad>", bos_token="<s>", eos_token="<s>",
        additional_special_tokens=list(MARKS),
    )  # fmt: skip
