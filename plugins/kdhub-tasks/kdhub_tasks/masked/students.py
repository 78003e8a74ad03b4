"""Student builders of masked language models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError
from kdhub.recipes.recipe import DataRef
from kdhub.student import BuildContext, sizes
from kdhub_tasks.fresh import SPECIAL, bert

if TYPE_CHECKING:
    from kdhub_tasks.masked.model import MaskedLm


class ConfigOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: DataRef | None = Field(None, description="texts to train a tokenizer on; the teacher's own if unset")
    vocabulary: int = Field(5000, ge=16, description="most tokens of that tokenizer")
    lowercase: bool = Field(True, description="that tokenizer lowers the case and strips accents")
    max_length: int = Field(128, ge=4, description="tokens of a text, including special ones")


def config(argument: str, context: BuildContext) -> MaskedLm:
    """`config:layers=2,width=64,heads=2`: a fresh BERT with the teacher's tokenizer, or with one trained on texts.

    Raises:
        UsageError: an unknown setting, heads that do not divide the width, or neither a teacher nor `data`.
    """
    import transformers

    from kdhub import open_data
    from kdhub_tasks.masked.model import MaskedLm

    settings = sizes("config", argument, layers=2, width=64, heads=2)
    width, heads = settings["width"], settings["heads"]
    if width % heads:
        raise UsageError(f"student config:{argument}: heads must divide width (width={width}, heads={heads})")
    options = ConfigOptions.model_validate(context.options)
    if options.data is not None:
        data = open_data(options.data)
        rows = data.split(data.pick("train"))
        tokenizer = wordpiece(rows["text"], options.vocabulary, options.lowercase, options.max_length)
    elif context.teacher is not None:
        tokenizer = copy.deepcopy(context.teacher.tokenizer)
    else:
        raise UsageError(f"student config:{argument} needs a tokenizer: a teacher's, or one from its option data")
    transformers.set_seed(context.seed)
    made = bert(tokenizer, **settings, length=options.max_length)
    return MaskedLm(transformers.BertForMaskedLM(made), tokenizer, {"how": f"fresh config:{argument}"})


config.Options = ConfigOptions


def wordpiece(texts: Sequence[str], vocabulary: int, lowercase: bool, max_length: int) -> Any:
    """A WordPiece tokenizer trained on texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **names)
