"""How networks of the transformers library read texts: how long these may be, and what fills up the shorter ones of a
batch, on which no output may depend."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdhub.errors import CompatibilityError
from kdhub_tasks.long import further_inputs

NO_LIMIT = 1_000_000
"""From here on a length is the library's way to say that there is none."""
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
"""Names that configurations have for the number of positions (those of LED and of MPT are their own)."""


def longest(network: nn.Module, tokenizer: Any, default: int) -> int:
    """Tokens of a text that a network takes, special ones included, and no more than its tokenizer says.

    Args:
        default: where neither says any, as of a network without positions.
    """
    limits = (positions(network), tokenizer.model_max_length)
    return min((n for n in limits if n is not None and 0 < n < NO_LIMIT), default=default)


def positions(network: nn.Module) -> int | None:
    """Positions that a network has for tokens, None where its configuration names no number.

    RoBERTa and its kin number tokens from behind the pad, so of 514 positions 512 are left: their table of positions
    has a `padding_idx`.
    """
    config = text_config(network.config)
    told = next((n for name in POSITIONS if (n := getattr(config, name, None)) is not None), None)
    for name, table in network.named_modules():
        pad, weight = getattr(table, "padding_idx", None), getattr(table, "weight", None)
        if "position" in name.rpartition(".")[2] and pad is not None and weight is not None and len(weight) == told:
            return told - pad - 1
    return told


def pad_of(config: Any, tokenizer: Any) -> int:
    """The token that fills up shorter texts: the network's own, else the tokenizer's, else any, as a mask hides it."""
    return next(n for n in (_own_pad(config), tokenizer.pad_token_id, 0) if n is not None)


def settle_pad(network: nn.Module, tokenizer: Any) -> int:
    """The token that fills up shorter texts of a network that may find the end of a text by it, as classifiers with
    decoders do. A network without one gets one that ends no text, and its tokenizer the same, here and where they are
    saved.

    Raises:
        CompatibilityError: there is no token for that, or what the network gives for a text depends on the padding.
    """
    config, name = network.config, type(network).__name__
    pad = _own_pad(config)
    if pad is None:
        last = tokenizer("a")["input_ids"][-1:]
        named = (getattr(tokenizer, f"{what}_token_id") for what in ("pad", "eos", "bos", "unk"))
        pad = next((n for n in named if n is not None and n not in last), None)
        if pad is None:
            raise CompatibilityError(
                f"neither {name} nor its tokenizer has a token that could fill up shorter texts of a batch "
                "(pad_token=None)",
                hint="set pad_token in its tokenizer_config.json, or pad_token_id in its config.json",
            )
        text_config(config).pad_token_id = pad
    if tokenizer.pad_token_id != pad and pad in tokenizer.added_tokens_decoder:  # others would be split off in texts
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    _require_independence(network, pad)
    return pad


def marked(tokenizer: Any) -> dict[int, int]:
    """Special tokens of a text alone whose segment is not 0, as Funnel's first one and XLNet's last: token -> segment.

    Raises:
        CompatibilityError: other tokens of a text alone are of another segment too.
    """
    given = tokenizer("a")
    pairs = zip(given["input_ids"], given.get("token_type_ids") or ())
    found = {token: segment for token, segment in pairs if segment}
    if others := {*found} - {*tokenizer.all_special_ids}:
        raise CompatibilityError(
            f"{type(tokenizer).__name__} puts the tokens of a text alone into segment {found[min(others)]}; "
            "they are read as of segment 0",
            hint="set its post-processor to 0 for single texts",
        )
    return found


def text_config(config: Any) -> Any:
    """The part of a configuration that is about texts; of most it is the whole."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _own_pad(config: Any) -> int | None:
    config = text_config(config)
    pad = getattr(config, "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < config.vocab_size else None


def _require_independence(network: nn.Module, pad: int) -> None:
    """Try what a network gives for a text alone, and for the same one beside a longer one."""
    size = text_config(network.config).vocab_size
    long = [n for n in range(size) if n != pad][:7]
    was = network.training
    network.eval()
    wrong = False
    for short in (3, 4):  # what pools two tokens may agree for one of these
        ids = torch.tensor([long[:short] + [pad] * (len(long) - short), long], device=network.device)
        mask = torch.tensor([[n < short for n in range(len(long))], [True] * len(long)], device=network.device).long()
        with torch.no_grad():
            alone, beside = (
                network(input_ids=ids[at], attention_mask=mask[at], **further_inputs(network.config, mask[at]))[0][0]
                for at in ((slice(1), slice(short)), (slice(None),))
            )
        apart = (beside[: len(alone)] - alone).abs().max()
        wrong |= not apart <= 1e-2 * alone.abs().max() + 1e-6
    network.train(was)
    if wrong:
        raise CompatibilityError(
            f"what a {type(network).__name__} gives for a text depends on the padding beside it: no two batches would "
            "agree",
            hint="take a model that hides padding by an attention mask",
        )
