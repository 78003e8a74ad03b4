"""Fresh language models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UntrustedError, UsageError
from kdhub.student import BuildContext, sizes
from kdhub.teachers.saved import SavedTeacher

if TYPE_CHECKING:
    from kdhub_tasks.language.model import CausalLm


def llama(argument: str, context: BuildContext) -> CausalLm:
    """`llama:width=64,layers=2,heads=4`: a fresh Llama with the teacher's tokenizer; without a teacher with one of
    bytes. `tokens=512`: with a byte-level BPE of its own of so many tokens, trained on the texts of the training rows.

    Raises:
        UsageError: an unknown setting, or heads that do not divide the width.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    settings = sizes("llama", argument, width=64, layers=2, heads=4, length=512, tokens=0)
    width, heads = settings["width"], settings["heads"]
    if width % (2 * heads):
        raise UsageError(
            f"student llama:{argument}: the width must be a multiple of twice the heads (width={width}, heads={heads})"
        )
    if settings["tokens"]:
        tokenizer = trained_tokenizer(context.facts.get("tables", ()), settings["tokens"], settings["length"])
        classes = len(tokenizer)
    else:
        tokenizer, classes = tokenizer_for(context, settings["length"])
    config = LlamaConfig(
        vocab_size=classes,
        hidden_size=width,
        intermediate_size=-(-8 * width // 24) * 8,
        num_hidden_layers=settings["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=settings["length"],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_seed(context.seed)
    return _fresh(LlamaForCausalLM(config), tokenizer, context, f"fresh llama:{argument}")


def config(argument: str, context: BuildContext) -> CausalLm:
    """`config:FILE` or `config:{"model_type": "qwen2", "hidden_size": 64, ...}`: a fresh network of any architecture
    that the library has, with the teacher's tokenizer; without a teacher with one of bytes.

    The vocabulary is the teacher's; a larger `vocab_size` stays as padding.

    Raises:
        UsageError: the file is missing, is not JSON, or is not the configuration of a language model.
        UntrustedError: it names code of its own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    given = _read(argument)
    if build := getattr(context.task, "from_config", None):
        return build(given, context)
    what = f"student config:{given.get('model_type')}"
    if "auto_map" in given:
        raise UntrustedError(f"{what} names code of its own (auto_map), which kdhub does not run")
    tokenizer, classes = tokenizer_for(context, given.get("max_position_embeddings") or 1024)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    values = {**given, **special, "vocab_size": max(classes, int(given.get("vocab_size") or 0))}
    set_seed(context.seed)
    try:
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        network = AutoModelForCausalLM.from_config(made)
    except KeyError:
        raise UsageError(f"student config needs a model_type, such as llama, qwen2 or gpt2: {argument[:80]}") from None
    except Exception as error:  # whatever the library says of sizes that do not fit
        raise UsageError(f"{what} is not a language model: {str(error).splitlines()[0]}") from error
    return _fresh(network.float(), tokenizer, context, f"fresh {made.model_type} from a configuration")


def _fresh(network: Any, tokenizer: Any, context: BuildContext, how: str) -> CausalLm:
    """A student that ends its texts as the teacher does, from whose texts it may learn."""
    from kdhub_tasks.language.model import CausalLm

    own = getattr(context.teacher, "own_settings", None)
    if own and tokenizer is context.teacher.tokenizer:
        network.generation_config.eos_token_id = sorted(own.ends) or None
    return CausalLm(network, tokenizer, {"how": how})


def tokenizer_for(context: BuildContext, length: int) -> tuple[Any, int]:
    """The tokenizer of a fresh student, the teacher's if it has one, and the number of tokens it must know."""
    teacher = context.teacher
    tokenizer = (teacher.tokenizer if teacher is not None else None) or byte_tokenizer(length)
    saved = isinstance(teacher, SavedTeacher)
    return tokenizer, teacher.layout("logits")["logits"][-1] if saved else len(tokenizer)


SPECIAL = ["<pad>", "<s>"]
LEAST = 256 + len(SPECIAL)


def byte_tokenizer(max_length: int = 1024) -> Any:
    """A tokenizer whose tokens are the 256 bytes, `<pad>`, and `<s>` for beginning and end of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    return _of_bytes(Tokenizer(models.BPE(vocab=vocabulary, merges=[])), max_length, use_regex=False)


def trained_tokenizer(tables: Iterable[Any], tokens: int, max_length: int = 1024) -> Any:
    """The same with the most frequent merges of the rows' texts, up to so many tokens in all.

    Raises:
        UsageError: fewer tokens than there are bytes, or no texts.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if tokens < LEAST:
        raise UsageError(f"student llama: tokens must be at least {LEAST}: the bytes, and two marks (tokens={tokens})")
    texts = [text for table in tables for name in table.column_names for text in texts_in(table[name])]
    if not texts:
        raise UsageError(f"student llama: its {tokens} tokens are trained on the rows of data.train, which has none")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=letters, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(texts, how)
    return _of_bytes(backend, max_length)


def texts_in(value: Any) -> Iterator[str]:
    """The texts in a column's values, at any depth: of messages, of several responses."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in([text for name, text in value.items() if name != "role"])
    elif isinstance(value, Iterable):
        for inner in value:
            yield from texts_in(inner)


def _of_bytes(backend: Any, max_length: int, use_regex: bool = True) -> Any:
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, pad_token="<pad>", bos_token="<s>", eos_token="<s>"
    )


def _read(argument: str) -> dict[str, Any]:
    text = argument
    if not argument.lstrip().startswith("{"):
        path = Path(argument).expanduser()
        path = path / "config.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"student config: {path} cannot be read ({error})") from error
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UsageError(f"student config: not valid JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"student config: expected a mapping, got {type(given).__name__}")
    return given
