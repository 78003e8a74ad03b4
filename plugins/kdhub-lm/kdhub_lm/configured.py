"""Students fresh from a configuration of the transformers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UntrustedError, UsageError
from kdhub.student import BuildContext
from kdhub_lm.lora import StudentOptions, builder

if TYPE_CHECKING:
    from kdhub_lm.models import CausalLm


@builder(StudentOptions)
def config(argument: str, context: BuildContext) -> CausalLm:
    """`config:FILE` or `config:{"model_type": "qwen2", "hidden_size": 64, ...}`: a fresh network of any architecture
    that the library has, with the teacher's tokenizer, without a teacher with bytes.

    The vocabulary is the teacher's; a larger `vocab_size` is kept as padding.

    Raises:
        UsageError: no such file, no JSON, or no configuration of a language model.
        UntrustedError: it names code of its own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from kdhub_lm.models import CausalLm, tokens_for

    given = _read(argument)
    what = f"student config:{given.get('model_type')}"
    if "auto_map" in given:
        raise UntrustedError(f"{what} names code of its own (auto_map), which is not run")
    tokenizer, needed = tokens_for(context, given.get("max_position_embeddings") or 1024)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    values = {**given, **special, "vocab_size": max(needed, int(given.get("vocab_size") or 0))}
    set_seed(context.seed)
    try:
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        network = AutoModelForCausalLM.from_config(made)
    except KeyError:
        raise UsageError(f"student config: needs a model_type, such as llama, qwen2 or gpt2: {argument[:80]}") from None
    except Exception as error:  # whatever the library says of numbers that do not fit
        raise UsageError(f"{what} is no language model: {str(error).splitlines()[0]}") from error
    return CausalLm(network.float(), tokenizer, {"how": f"fresh {made.model_type} of a configuration"})


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
        raise UsageError(f"student config: no JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"student config: expected a mapping, got {type(given).__name__}")
    return given
