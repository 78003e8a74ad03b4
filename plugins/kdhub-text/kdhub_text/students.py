"""Student builders of text encoders: each makes a start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub_logits.students import blocks, evenly, keep_blocks

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext, sizes
from kdhub_text.task import EmbeddingStudent

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def layers(argument: str, context: BuildContext) -> EmbeddingStudent:
    """N evenly spaced layers of the teacher, first and last among them, with its embeddings, mean pooled.

    Raises:
        UsageError: N is no number from 1 to the teacher's layers.
        CompatibilityError: the teacher has no layers at hand.
    """
    from kdhub_text import encoder

    teacher = _open_teacher(context, "layers")
    body = copy.deepcopy(teacher[0])
    network = body.auto_model
    have, keep = len(blocks(network)), int(argument) if argument.isdigit() else 0
    if not 1 <= keep <= have:
        raise UsageError(
            f"student layers:{argument}: the teacher has {have} layers", hint=f"use layers:1 to layers:{have}"
        )
    chosen = evenly(have, keep)
    keep_blocks(network, chosen)
    known = context.teacher.known
    module = encoder.assemble(body, encoder.Pooling(width_of(body), pooling_mode="mean"))
    return _student(
        module,
        context,
        base_model=known.get("id") if known.get("revision") or known.get("package") else None,
        revision=known.get("revision"),
        licence=known.get("licence"),
        how=f"layers {', '.join(str(i + 1) for i in chosen)} of {have}",
    )


def hub(argument: str, context: BuildContext) -> EmbeddingStudent:
    """An encoder of the Hub, mean pooled; a head and unit length are the method's to add."""
    from kdhub.hub.fetch import fetch_model
    from kdhub_text.teachers import _card_licence

    folder, repo, commit = fetch_model(argument)
    return _from_folder(
        folder, context, base_model=repo, revision=commit, licence=_card_licence(folder), how="as it is"
    )


def path(argument: str, context: BuildContext) -> EmbeddingStudent:
    """An encoder folder: a SentenceTransformer keeps its modules, a plain transformers model is mean pooled."""
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"student folder {folder} does not exist")
    return _from_folder(folder, context, how="a model in a local folder")


def config(argument: str, context: BuildContext) -> EmbeddingStudent:
    """A fresh BERT-shaped encoder with the teacher's tokenizer.

    Args:
        argument: `key=value` pairs: layers (2), hidden_size (128), heads (hidden_size / 32), intermediate_size
            (4 x hidden_size), max_length (512).
    """
    from transformers import BertConfig, BertModel, set_seed

    from kdhub_text import encoder

    teacher = _open_teacher(context, "config")
    known = sizes("config", argument, layers=2, hidden_size=128, heads=0, intermediate_size=0, max_length=512)
    hidden = known["hidden_size"]
    heads = known["heads"] or max(1, hidden // 32)
    if hidden % heads:
        raise UsageError(f"student config:{argument}: hidden_size {hidden} is not a multiple of heads {heads}")
    body = copy.copy(teacher[0])
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
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # a Transformer module is made from a folder
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = encoder.Transformer(folder, max_seq_length=known["max_length"])
    module = encoder.assemble(body, encoder.Pooling(hidden, pooling_mode="mean"))
    return _student(module, context, how=f"fresh, {known['layers']} layers of {hidden}")


def static(argument: str, context: BuildContext) -> EmbeddingStudent:
    """A token table that starts from the teacher's vectors of its own vocabulary; the text is the mean of its tokens.

    Each row is the teacher's vector of that token alone. At inference a text costs a table look-up.
    """
    from kdhub_text import encoder

    teacher = _open_teacher(context, "static")
    tokenizer = encoder.fast_tokenizer(teacher)
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) or "" for i in range(size)]
    # A token's own ids, between the special tokens that the teacher expects around a text.
    template = tokenizer.encode("").ids
    begin, end = template[:1], template[1:]
    # In float32 everywhere: a start is the same on every machine.
    vectors = encoder.encode(teacher, [[*begin, i, *end] for i in range(len(tokens))], precision="float32")
    module = encoder.assemble(encoder.StaticEmbedding(tokenizer, embedding_weights=vectors))
    known = context.teacher.known
    return _student(
        module, context, licence=known.get("licence"), how=f"token table of {size} vectors of {vectors.shape[1]}"
    )


def width_of(body: nn.Module) -> int:
    """Width of the token states of a Transformer module."""
    return int(body.get_embedding_dimension())


def _from_folder(folder: Path, context: BuildContext, **start: Any) -> EmbeddingStudent:
    from kdhub_text import encoder

    model = encoder.load(folder)
    if len(model) == 1 and not isinstance(model[0], encoder.StaticEmbedding):
        model.append(encoder.Pooling(width_of(model[0]), pooling_mode="mean"))
    return _student(model, context, **start)


def _student(module: SentenceTransformer, context: BuildContext, **start: Any) -> EmbeddingStudent:
    from kdhub_text import encoder

    student = EmbeddingStudent(encoder.trainable(module), {k: v for k, v in start.items() if v is not None})
    if context.teacher is not None:
        student.prompts = context.teacher.prompts  # the same prompt goes in front of a text for both models
    return student


def _open_teacher(context: BuildContext, name: str) -> SentenceTransformer:
    teacher = getattr(context.teacher, "model", None)
    if teacher is None:
        raise CompatibilityError(
            f"student {name}: is made from the teacher's weights, and this teacher is a black box",
            hint="use an encoder of its own: hf:org/name, path:FOLDER",
        )
    return teacher
