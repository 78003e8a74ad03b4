"""A fresh encoder whose tokens are the words of some training text: for trials without any pretrained model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import DataError, UsageError
from kdhub.recipe import DataRef
from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub.student import Student

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class FreshOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: DataRef | None = Field(None, description="the rows whose words are the tokens, as one of `data.train`")
    vocabulary: int = Field(20_000, ge=1, description="tokens at most, the most frequent words")
    max_length: int = Field(512, ge=4, description="tokens of a text, special ones included")


def words(argument: str, context: BuildContext) -> Student:
    """`words:layers=4,width=96,heads=4`: a fresh BERT over the words of `data`, split at white space.

    Raises:
        UsageError: an unknown setting, or heads that do not divide the width.
    """
    from kdhub.resolve import Resolver

    settings = sizes("words", argument, layers=2, width=64, heads=4)
    width, heads = settings["width"], settings["heads"]
    if width % heads:
        raise UsageError(f"student words:{argument}: {heads} heads do not divide a width of {width}")
    options = FreshOptions.model_validate(context.options)
    if options.data is None:
        raise UsageError(f"student words:{argument} needs rows whose words are its tokens", hint="its option `data`")
    data = Resolver().data(options.data)
    tokenizer = word_tokenizer(data.split(data.pick("train")), options.vocabulary, options.max_length)
    config = bert(tokenizer, **settings, length=options.max_length)
    return student_of(config, tokenizer, context, {"how": f"fresh words:{argument}"})


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
        initializer_range=0.02 * (768 / width) ** 0.5,  # BERT's, at the same spread of what a layer gives
    )


def student_of(config: Any, tokenizer: Any, context: BuildContext, start: dict[str, Any]) -> Student:
    """A fresh student of the context's task with this configuration: as if a folder with such an encoder were given."""
    import tempfile

    import transformers

    from kdhub.recipe import Ref
    from kdhub.resolve import Resolver

    transformers.set_seed(context.seed)
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        inner = BuildContext(context.task, context.teacher, context.seed, facts=context.facts)
        student = Resolver().student(Ref(source=f"path:{folder}"), inner)
    student.start = start
    return student


def word_tokenizer(rows: Any, vocabulary: int, max_length: int) -> Any:
    """A tokenizer of the most frequent words of rows of `tokens`, texts or pairs; of equally frequent ones the first by
    code.

    Raises:
        DataError: rows have none of them.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ("tokens", "text", "text_pair", "sentence1", "sentence2", "question", "context")
    columns = [c for c in known if c in rows.column_names]
    if not columns:
        raise DataError(f"words come from {', '.join(known)}, not from {', '.join(rows.column_names)}")
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
