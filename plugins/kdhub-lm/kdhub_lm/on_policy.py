"""Batches of responses that models generate, in place of those of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub_tasks.language.generation import Generation
from kdhub_tasks.losses import ClassifierOptions
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from kdhub_tasks.language.model import CausalLm
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Rows


class OnPolicyOptions(ClassifierOptions):
    epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    lmbda: float = Field(0.5, ge=0, le=1, description="probability that a batch has the student's own responses")
    max_new_tokens: int = Field(128, ge=1, description="most tokens of a sample")
    sampling_temperature: float = Field(0.9, ge=0, description="of samples; 0 takes the most probable token")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the top tokens with this total probability")
    sample_after: float = Field(0.0, ge=0, lt=1, description="share of the steps before sampling starts")
    seq_kd: bool = Field(False, description="replace the data's responses by the teacher's answers")


class OnPolicy(ObjectiveMethod):
    """A method of whose batches a share `lmbda` has the student's own responses, the others those of the data, or of
    the teacher (`seq_kd`)."""

    Options = OnPolicyOptions
    options: OnPolicyOptions
    tiny_recipe = {"options": {"max_new_tokens": 4}}

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self.done = 0.0  # share of the steps

    @property
    def samples(self) -> Generation:
        o = self.options
        return Generation(max_new_tokens=o.max_new_tokens, temperature=o.sampling_temperature, top_p=o.top_p)

    def rows(self, run: RunContext) -> Rows:
        from kdhub_lm.methods.seqkd import answered_rows

        return answered_rows(run, self.samples, self.settings()) if self.options.seq_kd else super().rows(run)

    def adapt(self, student: Any, teacher: Any) -> None:
        self.student = student

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        coin = torch.rand((), generator=generator).item()
        seed = torch.randint(2**62, (), generator=generator).item()
        if coin >= self.options.lmbda or self.done < self.options.sample_after:
            return batch
        return responded(batch, self.student, self.samples, seed)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        self.done = (progress.step + 1) / progress.steps

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]


def prompts_of(batch: Mapping[str, Any]) -> list[list[int]]:
    """What precedes the first label of each row: a prompt, or the begin token of a plain text. A row without labels is
    a prompt as a whole."""
    from kdhub_tasks.language.packing import mask_of

    if "seen" in batch:  # tokens and pictures, as any model may read them
        return batch["seen"].prompts()
    ids, starts = batch["input_ids"], batch["counts"].cumsum(0) - batch["counts"]
    at, width, lengths = batch["at"].tolist(), ids.shape[1], mask_of(batch).sum(-1).tolist()
    found = []
    for row, (start, count) in enumerate(zip(starts.tolist(), batch["counts"].tolist())):
        size = at[start] - row * width + 1 if count else lengths[row]
        found.append(ids[row, :size].tolist())
    return found


def responded(
    batch: Mapping[str, Any],
    student: CausalLm,
    how: Generation,
    seed: int,
    mixed: tuple[CausalLm, float] | None = None,
) -> dict[str, Any]:
    """The batch with the student's responses to its prompts; unchanged if no prompt leaves room for a token.

    A response depends on the seed and on its own row, so ranks may share a seed.

    Args:
        mixed: see `CausalLm.generate`.
    """
    prompts, rows = prompts_of(batch), response_seeds(batch["keys"].tolist())
    written = student.generate(prompts, how, seed, rows, mixed, trained=True)
    if not any(written):
        return dict(batch)
    made = {**written_batch(student, prompts, written), "keys": batch["keys"]}
    return {name: value.to(batch["input_ids"].device) for name, value in made.items()}


def response_seeds(keys: Sequence[int]) -> list[int]:
    """A number for each row of a batch, by its key (32 bits) and how often that came before, also on ranks before this
    one: a row that is twice in a batch gets two responses."""
    import torch

    from kdhub.ranks import rank, world_size

    everywhere: list[Sequence[int]] = [keys] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(everywhere, keys)
    seen = Counter(key for before in everywhere[: rank()] for key in before)
    numbers = []
    for key in keys:
        numbers.append(key + (seen[key] << 32))
        seen[key] += 1
    return numbers


def written_batch(
    student: CausalLm, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """A batch of prompts and responses, token ids: its `labels` are the responses."""
    import torch

    examples = [
        {"ids": prompt + list(ids), "at": range(len(prompt) - 1, len(prompt) + len(ids) - 1)}
        for prompt, ids in zip(prompts, written)
    ]
    return {
        **student.collate(examples),
        "labels": torch.tensor([i for ids in written for i in ids], dtype=torch.long),
        "counts": torch.tensor([len(ids) for ids in written]),
    }
