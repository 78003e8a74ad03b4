"""A fresh encoder with the words of some rows as its tokens: for trials without a pretrained model."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError, UsageError
from kdhub.recipes.recipe import DataRef
from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub.student import Student

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class FreshOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: DataRef | None = Field(None, description="rows whose words become its tokens, as an entry of `data.train`")
    vocabulary: int = Field(20_000, ge=1, description="most tokens it has; the most frequent words are kept")
    max_length: int = Field(512, ge=4, description="tokens of a text, including special ones")


def words(argument: str, context: BuildContext) -> Student:
    """`words:layers=4,width=96,heads=4`: a fresh BERT over the words of `data`, split at white space.

    Raises:
        UsageError: an unknown setting, heads that do not divide the width, or no `data`.
    """
    import transformers

    from kdhub import open_data

    settings = sizes("words", argument, layers=2, width=64, heads=4)
    width, heads = settings["width"], settings["heads"]
    if width % heads:
        raise UsageError(f"student words:{argument}: heads must divide width (width={width}, heads={heads})")
    options = FreshOptions.model_validate(context.options)
    if options.data is None:
        raise UsageError(
            f"student words:{argument} needs the option data",
            hint="student: {source: ..., data: ...}, rows whose words become its tokens",
        )
    data = open_data(options.data)
    tokenizer = word_tokenizer(data.split(data.pick("train")), options.vocabulary, options.max_length)
    transformers.set_seed(context.seed)
    with tempfile.TemporaryDirectory() as folder:
        made = bert(tokenizer, **settings, length=options.max_length)
        transformers.AutoModel.from_config(made).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        student = context.task.open(Path(folder), context, {})
    student.start = {"how": f"fresh words:{argument}"}
    return student


words.Options = FreshOptions


def bert(tokenizer: Any, *, layers: int, width: int, heads: int, length: int) -> Any:
    """The configuration of a BERT of this size for a tokenizer."""
    import transformers

    return transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        pad_token_id=tokenizer.pad_token_id or 0,
        initializer_range=0.02 * (768 / width) ** 0.5,  # as in BERT, so that a layer's output has the same spread
    )


def word_tokenizer(rows: Any, vocabulary: int, max_length: int) -> Any:
    """A tokenizer of the most frequent words of rows of `tokens`, texts, pairs or questions; equally frequent words are
    taken in alphabetical order.

    Raises:
        DataError: rows have none of these columns.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ("tokens", "text", "text_pair", "sentence1", "sentence2", "question", "context")
    columns = [c for c in known if c in rows.column_names]
    if not columns:
        raise DataError(f"words are taken from {', '.join(known)}; the rows have {', '.join(rows.column_names)}")
    many: Counter[str] = Counter()
    for batch in rows.iter(1000):
        for column in columns:
            for value in batch[column]:
                many.update(value if column == "tokens" else value.split())
    chosen = sorted((w for w in many if w not in SPECIAL), key=lambda w: (-many[w], w))
    ids = {token: i for i, token in enumerate([*SPECIAL, *chosen[: max(0, vocabulary - len(SPECIAL))]])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        **{f"{name}_token": token for name, token in names.items()},
    )
