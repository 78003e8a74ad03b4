"""A SentenceTransformer, run fast: one tokenisation, rows of similar length together, batches filled by tokens.

Teacher and student are both a `SentenceTransformer`, so that pooling, prompts, dense heads, normalisation and the saved
folder are those of the ecosystem. Only the way from texts to the network differs from its `encode`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from torch import nn

from kdhub.errors import UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.ranks import device, resolve_precision
from kdhub_tasks.reading import NO_LIMIT, marked, pad_of, positions
from kdhub_tasks.transformer import check_weights

__all__ = ["Dense", "Normalize", "Pooling", "SentenceTransformer", "StaticEmbedding", "Transformer"]

CPU_TOKENS, GPU_TOKENS = 1024, 32_768
"""Tokens of one forward pass without gradient. On a CPU a batch that fits the cache is fastest."""


def load(folder: Path, *, name: str | None = None, trust_remote_code: bool = False) -> SentenceTransformer:
    """The folder of a SentenceTransformer or of a plain transformers encoder, in eval mode.

    Raises:
        UntrustedError: pickled weights, some that are not there, or code of its own that is not trusted.
    """
    check_model_folder(folder, name=name, allow_remote_code=trust_remote_code)
    model = SentenceTransformer(
        str(folder),
        device=str(device()),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        model_kwargs={"use_safetensors": True},
    )
    for module, place in zip(model, _places(folder)):
        if type(module) is Transformer and not (place / "adapter_config.json").exists():
            check_weights(module.auto_model, place, name)
    return model.eval()


def _places(folder: Path) -> list[Path]:
    """The folder of each module."""
    listed = folder / "modules.json"
    if not listed.exists():
        return [folder]
    return [folder / module["path"] for module in json.loads(listed.read_text(encoding="utf-8"))]


def assemble(*modules: nn.Module) -> SentenceTransformer:
    """A SentenceTransformer of these modules, on the device that trains."""
    return SentenceTransformer(modules=list(modules), device=str(device()))


def fast_tokenizer(model: SentenceTransformer) -> Tokenizer:
    """A private copy of the model's tokenizer, so that our settings never leak into the model."""
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise UsageError("the model needs a fast tokenizer", hint="convert it to a tokenizer.json first")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


class Cutter:
    """Tokenises texts and cuts those that are longer than a model takes, as text, so that another model sees the same.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        max_length: tokens, including special ones; None for no limit.
        lower: lower the case first, for models that need it.
        special: add special tokens; a token table takes none.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int | None, *, lower: bool = False, special: bool = True):
        self.tokenizer, self.max_length, self.lower, self.special = tokenizer, max_length, lower, special
        if max_length is not None:
            tokenizer.enable_truncation(max_length)

    @classmethod
    def of(cls, model: SentenceTransformer, limit: int | None = None) -> Cutter:
        """The cutter of a model, at its own limit or a shorter one."""
        shortest = min(filter(None, (max_length(model), limit)), default=None)
        return cls(
            fast_tokenizer(model),
            shortest,
            lower=bool(getattr(model[0], "do_lower_case", False)),
            special=not isinstance(model[0], StaticEmbedding),
        )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self.lower:
            texts = [t.lower() for t in texts]
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=self.special)]

    def cut(self, texts: Sequence[str]) -> tuple[list[str], list[list[int]], list[bool]]:
        """(texts as they fit, their token ids, whether each was cut)."""
        source = [t.lower() for t in texts] if self.lower else list(texts)
        encodings = self.tokenizer.encode_batch(source, add_special_tokens=self.special)
        fitted, ids, was_cut = list(texts), [e.ids for e in encodings], [False] * len(source)
        again = []
        for i, encoding in enumerate(encodings):
            if encoding.overflowing:
                # Cut at the end of the last token that fits, and tokenise the rest again: half a word may be split into
                # other tokens than before, and both models must see tokens of the same text.
                ends = [end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask) if not special]
                fitted[i] = texts[i][: max(ends, default=0)]
                was_cut[i] = True
                again.append(i)
        for i, new in zip(again, self.ids([fitted[i] for i in again])):
            ids[i] = new
        return fitted, ids, was_cut


def features(model: nn.Module, ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids as input of the model's first module: padded with a mask, or flat with offsets for a token table."""
    if isinstance(model[0], StaticEmbedding):
        offsets = np.cumsum([0, *(len(row) for row in ids[:-1])])
        flat = np.concatenate([np.asarray(row, np.int64) for row in ids]) if ids else np.empty(0, np.int64)
        return {
            "input_ids": torch.from_numpy(flat).to(device),
            "offsets": torch.from_numpy(offsets.astype(np.int64)).to(device),
        }
    longest = max(map(len, ids))
    tokens = np.full((len(ids), longest), pad, np.int64)
    mask = np.zeros((len(ids), longest), np.int64)
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = values
        mask[row, : len(values)] = 1
    inputs = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
    if segments := marked(model.tokenizer):
        kinds = sum((tokens == token) * segment for token, segment in segments.items()) * mask
        inputs["token_type_ids"] = torch.from_numpy(kinds)
    return {name: values.to(device) for name, values in inputs.items()}


def pad_id(model: SentenceTransformer) -> int:
    if hasattr(model[0], "auto_model"):
        return pad_of(model[0].auto_model.config, model.tokenizer)
    return getattr(model.tokenizer, "pad_token_id", None) or 0


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Row numbers, longest first, in batches of at most `budget` tokens with padding (and at least one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


def encode(
    model: SentenceTransformer,
    ids: Sequence[Sequence[int]],
    *,
    precision: str = "auto",
    prompt_lengths: Sequence[int] | None = None,
) -> np.ndarray:
    """Vectors of tokenised texts.

    Args:
        model: run in eval mode, without gradient.
        ids: token ids of each text, special tokens included.
        precision: arithmetic; "auto" is bfloat16 where the hardware has it.
        prompt_lengths: tokens of each text's prompt, for models that exclude them from pooling.

    Returns:
        (n, width) float32, in the order of `ids`.
    """
    device = next(model.parameters()).device
    lengths = np.fromiter((len(row) for row in ids), np.int64, len(ids))
    budget = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    if isinstance(model[0], StaticEmbedding):
        budget = 1_000_000
    pad, result = pad_id(model), None
    arithmetic = resolve_precision(precision, device.type)
    cast = (
        nullcontext()
        if arithmetic == "float32"
        else torch.autocast(device.type, dtype=getattr(torch, arithmetic), cache_enabled=False)
    )
    was_training = model.training
    model.eval()
    with torch.inference_mode(), cast:
        for rows in token_batches(lengths, budget):
            if prompt_lengths is None:
                parts = [rows]
            else:  # such a model takes one prompt length per batch
                of = np.asarray(prompt_lengths)[rows]
                parts = [rows[of == value] for value in np.unique(of)]
            for part in parts:
                inputs = features(model, [ids[i] for i in part], pad, device)
                if prompt_lengths is not None:
                    inputs["prompt_length"] = int(prompt_lengths[part[0]])
                vectors = model(inputs)["sentence_embedding"].float().cpu().numpy()
                if result is None:
                    result = np.empty((len(ids), vectors.shape[1]), np.float32)
                result[part] = vectors
    model.train(was_training)
    return result if result is not None else np.empty((0, width(model)), np.float32)


def width(model: SentenceTransformer) -> int:
    return int(model.get_embedding_dimension())


def max_length(model: SentenceTransformer) -> int | None:
    """Tokens the model takes; None without a limit."""
    has = positions(model[0].auto_model) if hasattr(model[0], "auto_model") else None
    limits = (model.max_seq_length, has)
    return min((int(n) for n in limits if n is not None and 0 < n < NO_LIMIT), default=None)


def trainable(model: SentenceTransformer) -> SentenceTransformer:
    """Train all weights except those that sentence vectors do not depend on (BERT's pooler)."""
    model.requires_grad_(True)
    pooler = getattr(getattr(model[0], "auto_model", None), "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def leaves_prompt_out(model: SentenceTransformer) -> bool:
    return any(isinstance(m, Pooling) and not m.include_prompt for m in model)


def prompt_lengths(model: SentenceTransformer, cutter: Cutter, prompts: Sequence[str]) -> list[int] | None:
    """Tokens of each text's prompt for a model that excludes them from pooling; None for all others."""
    if not leaves_prompt_out(model):
        return None
    special, of = set(model.tokenizer.all_special_ids), {"": 0}
    for prompt in set(prompts) - {""}:
        (ids,) = cutter.ids([prompt])
        of[prompt] = len(ids) - (ids[-1] in special)  # the end marker that it has when it is tokenised alone
    return [of[p] for p in prompts]


def heed_prompts(model: SentenceTransformer) -> None:
    """Have a model that leaves prompts out of pooling do so for each row of a batch (`prompt_lengths` of its features);
    the library itself knows one length a batch."""
    for part in model:
        if isinstance(part, Pooling) and not part.include_prompt and _pooled_by_row not in part._forward_hooks.values():
            part.register_forward_hook(_pooled_by_row)


def _pooled_by_row(pooling: Pooling, _: Any, found: dict[str, Any]) -> dict[str, Any] | None:
    lengths = found.get("prompt_lengths")
    if lengths is None:
        return None
    pooled = torch.zeros_like(found["sentence_embedding"])
    for length in lengths.unique().tolist():
        rows = lengths == length
        some = {k: v[rows] for k, v in found.items() if isinstance(v, torch.Tensor) and len(v) == len(rows)}
        pooled[rows] = pooling.forward({**some, "prompt_length": length})["sentence_embedding"]
    return {**found, "sentence_embedding": pooled}


def ends_normalised(model: SentenceTransformer) -> bool:
    return isinstance(model[-1], Normalize)


def linear(inputs: int, outputs: int, bias: bool) -> Dense:
    return Dense(inputs, outputs, bias=bias, activation_function=nn.Identity())
