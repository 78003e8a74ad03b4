"""Sampling from language models, token by token.

One random number between 0 and 1 decides a token: the first at which the cumulative probability exceeds it. Each row
has its own numbers, so its continuation depends, rounding aside, neither on the other rows of the batch nor on the
number of processes. Rows that have ended leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.own_settings import Scores

LEAVE = 0.75
"""Rows that have ended leave once at most this share of the batch goes on: leaving copies the cache of the others."""


def draws(seed: int, rows: Sequence[int], count: int) -> Tensor:
    """(rows, count) random numbers in [0, 1), float64; they depend on the seed and the row alone."""
    keys = [np.array([seed % 2**64, row % 2**64], np.uint64) for row in rows]
    drawn = [np.random.Generator(np.random.Philox(key=key)).random(count) for key in keys]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, count, dtype=torch.float64)


@torch.no_grad()
def takes_padding(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> bool:
    """Whether a network writes after a padded prompt as after the same one alone, tried once, on prompts of different
    lengths: some count the padding as positions or have no mask."""
    if model.alone:
        return False
    if not hasattr(model, "_takes_padding"):
        short, long = min(prompts, key=len, default=()), max(prompts, key=len, default=())
        if len(short) == len(long):
            return True
        device, pair = next(model.parameters()).device, [list(short[-8:]), list(long[: len(short[-8:]) + 3])]
        if "attention_mask" in inspect.signature(model.model.forward).parameters:
            alone, beside = (_Reader(model, some, pad, device).logits()[0] for some in (pair[:1], pair))
            model._takes_padding = bool((alone - beside).abs().max() <= 1e-2 * alone.abs().max())
        else:
            model._takes_padding = False
    return model._takes_padding


def together(lengths: Sequence[int], most: int, padding: bool) -> list[list[int]]:
    """Prompts that are continued together: numbers of at most `most` neighbours; of one length unless `padding`."""
    groups: list[list[int]] = []
    for n, length in enumerate(lengths):
        fits = groups and len(groups[-1]) < most and (padding or lengths[groups[-1][-1]] == length)
        groups[-1].append(n) if fits else groups.append([n])
    return groups


@torch.no_grad()
def write(
    models: Sequence[tuple[nn.Module, float]],
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    numbers: Tensor | None,
    how: Generation,
    ended: Callable[[Sequence[int]], bool],
    pad: int,
    scores: Sequence[Sequence[Scores]] = (),
) -> list[list[int]]:
    """Continue some prompts together.

    Args:
        models: `LanguageModel`s in eval mode with their shares; a token is drawn from the mixture of their
            distributions.
        prompts: token ids, at least one each.
        room: the most tokens each may get, at least one.
        numbers: (prompts, max(room)) in [0, 1); None for the most probable token of the first model.
        how: temperature and top_p.
        ended: whether a continuation ends with its last token, which is part of it.
        scores: what changes the scores of the next token, for each prompt; with one model only.

    Returns:
        The token ids of each continuation.
    """
    device = next(models[0][0].parameters()).device
    readers = [(_Reader(model, prompts, pad, device), share) for model, share in models]
    numbers = None if numbers is None else numbers.to(device)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those in the batch; some of them have ended
    over = [False] * len(prompts)
    for place in range(max(room)):
        every = [reader.logits() for reader, _ in readers[: 1 if numbers is None else None]]
        if scores:
            every = [_changed(every[0], [([*prompts[row], *written[row]], scores[row]) for row in rows])]
        if numbers is None:
            tokens = every[0].argmax(-1)
        else:
            p = sum(share * torch.softmax(z / how.temperature, -1) for z, (_, share) in zip(every, readers))
            tokens = drawn(p, numbers[rows, place], how.top_p)
        for row, token in zip(rows, tokens.tolist()):
            if not over[row]:
                written[row].append(token)
                over[row] = ended(written[row]) or len(written[row]) == room[row]
        going = [n for n, row in enumerate(rows) if not over[row]]
        if not going:
            break
        if len(going) <= LEAVE * len(rows):
            rows, tokens = [rows[n] for n in going], tokens[going]
            for reader, _ in readers:
                reader.keep(torch.tensor(going, device=device))
        for reader, _ in readers:
            reader.add(tokens)
    return written


def _changed(logits: Tensor, texts: Sequence[tuple[list[int], Sequence[Scores]]]) -> Tensor:
    """Scores of the next token after each text, changed row by row: padding would count as text."""
    made = logits.clone()
    for n, (ids, changes) in enumerate(texts):
        so_far, row = torch.tensor([ids], device=logits.device), made[n : n + 1]
        for change in changes:
            row = change(so_far, row)
        made[n] = row[0]
    return made


def penalised(how: Generation, prompt: int) -> Scores:
    """z_j - frequency_penalty n_j - presence_penalty [n_j > 0], where n_j is how often an answer has token j.

    Args:
        prompt: tokens of the prompt, which do not count.
    """

    def change(so_far: Tensor, z: Tensor) -> Tensor:
        n = torch.bincount(so_far[0, prompt:], minlength=z.shape[-1])
        return z - how.frequency_penalty * n - how.presence_penalty * (n > 0)

    return change


def drawn(p: Tensor, numbers: Tensor, top_p: float = 1.0) -> Tensor:
    """The token that each number selects: p (rows, tokens) >= 0, of any sum; numbers (rows,) -> (rows,)."""
    if top_p < 1:
        ordered, at = p.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p * ordered.sum(-1, keepdim=True)
        p = p.masked_fill(beyond.scatter(-1, at, beyond), 0)
    reached = p.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(reached, numbers[:, None] * reached[:, -1:], right=True).squeeze(-1)
    return found.clamp_max(p.shape[-1] - 1)


class _Reader:
    """One network and the texts so far. It keeps a cache where it can; otherwise it reads every text again."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad: int, device: torch.device):
        from transformers import DynamicCache

        self.network, self.classes, self.barred = model.model, model.classes, list(model.barred)
        prompts, self.more = model.opened(prompts)
        takes = inspect.signature(self.network.forward).parameters
        self.cache = DynamicCache(config=self.network.config) if "past_key_values" in takes else None
        self.keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.places = "position_ids" in takes
        self.first = True
        width = max(map(len, prompts))
        # padded on the left, so that all continue at the same position
        self.ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.padded = bool((lengths < width).any())
        self.mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()

    def logits(self) -> Tensor:
        """Of the next token, (rows, tokens) float32, without the padding of the vocabulary."""
        how = dict(self.keeps_last)
        if self.padded:
            how["attention_mask"] = self.mask
            if self.places:
                how["position_ids"] = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]
        if self.cache is not None:
            how |= {"past_key_values": self.cache, "use_cache": True}
        if self.first or self.cache is None:  # afterwards the cache has them
            how |= self.more
        self.first = False
        logits = self.network(input_ids=self.ids, **how).logits[:, -1, : self.classes].float()
        if self.barred:
            logits[:, self.barred] = -torch.inf
        return logits

    def add(self, tokens: Tensor) -> None:
        new = tokens[:, None]
        self.ids = new if self.cache is not None else torch.cat([self.ids, new], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(new)], 1)

    def keep(self, rows: Tensor) -> None:
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
            # what some networks remember of each row's pictures beside the cache
            if torch.is_tensor(deltas := getattr(self.network.base_model, "rope_deltas", None)):
                self.network.base_model.rope_deltas = deltas[rows]
