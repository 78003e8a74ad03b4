"""Student builders of text encoders."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext, sizes
from kdhub_tasks.embedding.model import EmbeddingStudent

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def config(argument: str, context: BuildContext) -> EmbeddingStudent:
    """A fresh BERT-shaped encoder with the teacher's tokenizer, mean pooled.

    Args:
        argument: `key=value` pairs: layers (2), hidden_size (128), heads (hidden_size / 32), intermediate_size
            (4 x hidden_size), max_length (512).

    Raises:
        UsageError: an unknown setting, or heads that do not divide the width.
        CompatibilityError: the teacher has no tokenizer here.
    """
    from transformers import BertConfig, BertModel, set_seed

    from kdhub_tasks.embedding import encoder

    teacher = _encoder_of(context, "config")
    known = sizes("config", argument, layers=2, hidden_size=128, heads=0, intermediate_size=0, max_length=512)
    hidden = known["hidden_size"]
    heads = known["heads"] or max(1, hidden // 32)
    if hidden % heads:
        raise UsageError(
            f"student config:{argument}: heads must divide hidden_size (hidden_size={hidden}, heads={heads})"
        )
    tokenizer = teacher.tokenizer
    set_seed(context.seed)
    network = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=known["layers"],
            num_attention_heads=heads,
            intermediate_size=known["intermediate_size"] or 4 * hidden,
            max_position_embeddings=known["max_length"],
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    )
    with tempfile.TemporaryDirectory() as folder:  # a Transformer module is made from a folder
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = encoder.Transformer(folder, max_seq_length=known["max_length"])
    module = encoder.assemble(body, encoder.Pooling(hidden, pooling_mode="mean"))
    return EmbeddingStudent(encoder.trainable(module), {"how": f"fresh, {known['layers']} layers of {hidden}"})


def static(argument: str, context: BuildContext) -> EmbeddingStudent:
    """A token table; the vector of a text is the mean over its tokens. A table look-up is all that a text costs.

    Each row starts as the teacher's vector of that token alone.

    Raises:
        CompatibilityError: the teacher is behind an API.
    """
    from kdhub_tasks.embedding import encoder

    teacher = _encoder_of(context, "static")
    tokenizer = encoder.fast_tokenizer(teacher)
    size = tokenizer.get_vocab_size()
    # The special tokens that the teacher expects around a text.
    template = tokenizer.encode("").ids
    begin, end = template[:1], template[1:]
    # In float32 everywhere, so that a start is the same on every machine.
    vectors = encoder.encode(teacher, [[*begin, i, *end] for i in range(size)], precision="float32")
    module = encoder.assemble(encoder.StaticEmbedding(tokenizer, embedding_weights=vectors))
    start = {"how": f"token table of {size} vectors of {vectors.shape[1]}"}
    if licence := context.teacher.known.get("licence"):
        start["licence"] = licence
    return EmbeddingStudent(encoder.trainable(module), start)


def _encoder_of(context: BuildContext, name: str) -> SentenceTransformer:
    teacher = getattr(context.teacher, "model", None)
    if teacher is None:
        raise CompatibilityError(
            f"student {name}: starts from the teacher's weights or tokenizer, and this teacher is behind an API",
            hint="name an encoder instead: hf:org/name, path:FOLDER",
        )
    return teacher.module
