"""Causal language models of the transformers library."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdhub.errors import UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.ranks import device
from kdhub.rows import Example, Signals
from kdhub_tasks.language.decoding import draws, penalised, takes_padding, together, write
from kdhub_tasks.language.generation import Generation, encoded, is_text
from kdhub_tasks.language.logits import first_tokens, written_log_probs
from kdhub_tasks.language.own_settings import OwnSettings, Scores
from kdhub_tasks.language.packing import packed
from kdhub_tasks.language.rows import LONGEST, vocabulary
from kdhub_tasks.models import Classifier
from kdhub_tasks.positions import Head, TokenSignals
from kdhub_tasks.quantization import opening, opens_alone
from kdhub_tasks.reading import longest, pad_of, text_config
from kdhub_tasks.transformer import padded, pretrained

BATCH = 32


class LanguageModel(nn.Module):
    """A transformers language model that gives its last states and its head at the positions `at` of a batch; logits
    are computed from them on demand (see `kdhub_tasks.positions`).

    Args:
        classes: columns of the head that are tokens. The others are padding and are cut off: their logits would take a
            share of the probability.

    Attributes:
        barred: tokens that it never writes.
        alone: whether only prompts of one length are continued together, whatever it makes of padding.
    """

    barred: Sequence[int] = ()
    alone = False

    def __init__(self, model: nn.Module, classes: int):
        super().__init__()
        self.model, self.classes = model, classes
        config = text_config(model.config)
        self._scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._head: bool | None = None

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Signals:
        inputs = self.own(inputs)
        ids, at = inputs["input_ids"], inputs["at"]
        if "position_ids" in inputs:  # with a cache or a mask, several rows in a sequence would go unnoticed
            how = {"position_ids": inputs["position_ids"], "use_cache": False}
        else:
            how = {"attention_mask": inputs["attention_mask"]}
        how |= (more := self.more(inputs))
        if not self.has_head(ids, more):
            given = self.model(input_ids=ids, **how, output_hidden_states=True)
            logits, states = given.logits[..., : self.classes], given.hidden_states[-1]
            return Signals(logits=logits.flatten(0, 1)[at].float(), features=states.flatten(0, 1)[at].float())
        states = self.model.base_model(input_ids=ids, **how).last_hidden_state
        return TokenSignals(head=self._of(states.flatten(0, 1)[at]))

    def own(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """A batch as this network takes it, where it was made for another one that reads its rows otherwise."""
        return inputs

    def more(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the network is given of a batch beside its tokens."""
        return {}

    def opened(self, prompts: Sequence[Sequence[int]]) -> tuple[Sequence[Sequence[int]], dict[str, torch.Tensor]]:
        """Prompts as the network takes them, and what it is given with them when it begins to write."""
        return prompts, {}

    def _of(self, states: torch.Tensor) -> Head:
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return Head(states, head.weight[: self.classes], None if bias is None else bias[: self.classes],
                    float(self._scale), self._cap)  # fmt: skip

    def has_head(self, ids: torch.Tensor, more: Mapping[str, torch.Tensor] | None = None) -> bool:
        """Whether states and head yield the model's own logits, tried once: some models do more between the two.

        Args:
            more: as `more` gives it; it may be of all rows together, which are then tried together.
        """
        if self._head is None:
            self._head = False
            head = self.model.get_output_embeddings()
            if isinstance(head, nn.Linear) and self.model.base_model is not self.model:
                was = self.model.training
                self.model.eval()
                with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                    how = {"input_ids": ids, **more} if more else {"input_ids": ids[:1]}
                    own = self.model(**how).logits[0, :, : self.classes].float()
                    made = self._of(self.model.base_model(**how).last_hidden_state[0])[:]
                self.model.train(was)
                self._head = torch.allclose(own, made, rtol=1e-2, atol=1e-3 * float(own.abs().max()))
        return self._head


class CausalLm(Classifier):
    """A causal language model with its tokenizer, in the library's own format. It has signals at the positions from
    which a token is predicted: one less than the tokens of a text.

    Attributes:
        adapter: the only trained part (see `lora`), merged into the weights in the end; None if all is trained.
        packing: whether a batch has several rows in one sequence (see `packing`).
    """

    task_name = "causal-lm"
    ragged = True
    layered = True
    batch = BATCH
    adapter: Any = None
    packing = False
    _told = False

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        classes = min(len(tokenizer), text_config(model.config).vocab_size)
        super().__init__(self.task_name, self.network(model, classes), [], start)
        self.tokenizer, self.pad = tokenizer, pad_of(model.config, tokenizer)
        self.max_length = longest(model, tokenizer, default=LONGEST)

    def network(self, model: nn.Module, classes: int) -> LanguageModel:
        return LanguageModel(model, classes)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        if self.packing:
            return packed(examples, self.max_length, self.pad)
        batch = padded([e["ids"] for e in examples], self.pad)
        width = batch["input_ids"].shape[1]
        at = [n * width + position for n, e in enumerate(examples) for position in e["at"]]
        return {**batch, "at": torch.tensor(at, dtype=torch.long)}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if not is_text(kind):
            return super().signals(examples, kind)
        how = Generation.parse(kind)
        if any(e.get("prefix", "") != how.prefix for e in examples):
            raise UsageError(
                f"these prompts do not end with the beginning of the answer (prefix={how.prefix!r})",
                hint="prepare them with **Generation.prompting",
            )
        rows = [int.from_bytes(hashlib.sha256(e["content"]).digest()[:8], "big") for e in examples]
        prompts = [e["ids"] for e in examples]
        written = self.generate(prompts, how, how.seed, rows)
        log_probs = written_log_probs(self, prompts, written) if how.log_probs else None
        first = first_tokens(self, prompts, how.first_tokens) if how.first_tokens else None
        return encoded(*self.texts(written, how), log_probs, first)

    def texts(self, written: Sequence[Sequence[int]], how: Generation | None = None) -> tuple[list[str], list[bool]]:
        """What it wrote as texts, without what ends them, and whether each was ended."""
        own, how = self.own_settings, how or Generation()
        found = [how.cut(own.text(ids)) for ids in written]
        return [text for text, _ in found], [cut or own.ended(ids) for ids, (_, cut) in zip(written, found)]

    @property
    def own_settings(self) -> OwnSettings:
        return OwnSettings(getattr(self.module.model, "generation_config", None), self.tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        how: Generation,
        seed: int,
        rows: Sequence[int] | None = None,
        mixed: tuple[CausalLm, float] | None = None,
        trained: bool = False,
    ) -> list[list[int]]:
        """Its continuations of some prompts: token ids, with the end token where there is one. The process's random
        generators are left alone.

        Args:
            prompts: token ids, at least one each; those of similar length are run together.
            seed: of sampling.
            rows: a number for each prompt, from which and the seed its random numbers come; its index by default.
            mixed: a model with the same vocabulary, and its share in the mixture that each token is drawn from.
            trained: whether these are samples to train on, to which its own settings do not apply (`own_settings`).
        """
        own = self.own_settings
        ends = [own, *([mixed[0].own_settings] if mixed else [])]
        penalty, changing = how.presence_penalty or how.frequency_penalty, not trained and own.beyond_ends

        def ended(ids: Sequence[int]) -> bool:
            return any(one.ended(ids) for one in ends) or bool(how.stop) and how.cut(own.text(ids))[1]

        def changes(n: int) -> list[Scores]:
            made = own.scores(len(prompts[n]), room[n]) if changing else []
            return [*made, penalised(how, len(prompts[n]))] if penalty else made

        if not self._told:
            own.tell(type(self.module.model).__name__, trained)
            self._told = True
        models = [(self.module, 1.0)] if mixed is None else [(self.module, 1 - mixed[1]), (mixed[0].module, mixed[1])]
        rows = range(len(prompts)) if rows is None else rows
        sizes = [len(ids) for ids in self.module.opened(prompts)[0]]
        room = [min(how.max_new_tokens, self.max_length - size) for size in sizes]
        order = [i for i in sorted(range(len(prompts)), key=lambda i: -sizes[i]) if room[i] > 0]
        written: list[list[int]] = [[] for _ in prompts]
        were = [model.model.training for model, _ in models]
        for model, _ in models:
            model.to(device()).model.eval()
        alike = all(takes_padding(model, [prompts[i] for i in order], self.pad) for model, _ in models)
        for some in together([sizes[i] for i in order], self.batch, alike):
            some = [order[n] for n in some]
            numbers = draws(seed, [rows[i] for i in some], max(room[i] for i in some)) if how.temperature else None
            continued = write(
                models, [prompts[i] for i in some], [room[i] for i in some], numbers, how, ended, self.pad,
                [changes(i) for i in some] if changing or penalty else [],
            )  # fmt: skip
            for i, ids in zip(some, continued):
                written[i] = ids
        for (model, _), was in zip(models, were):
            model.model.train(was)
        return written

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokens and their ids."""
        return vocabulary(self.tokenizer)

    def finalise(self) -> None:
        self._merge()
        super().finalise()

    def _merge(self) -> None:
        if self.adapter is not None:
            self.module.model = self.adapter.merge_and_unload()
            self.adapter = self.module._head = None

    def width(self, kind: str) -> tuple[int, ...]:
        return (self.module.classes if kind == "logits" else text_config(self.module.model.config).hidden_size,)

    def describe(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "widths": {kind: list(self.shape(kind)) for kind in self.kinds}}

    def like(self, network: nn.Module, start: Mapping[str, Any]) -> CausalLm:
        network.generation_config = copy.deepcopy(self.module.model.generation_config)
        return CausalLm(network, self.tokenizer, start)

    def save(self, folder: Path) -> None:
        """With all that ends its texts in its generation settings, so that it ends them wherever it is loaded."""
        self._merge()
        network, own = self.module.model, self.own_settings
        if own.ends - set(own.listed):
            ends = sorted(own.ends)
            network.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        network.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def usage(self) -> str:
        """With the prompt that its configuration names as `example_prompt`, where it expects a certain form."""
        prompt = str(getattr(self.module.model.config, "example_prompt", ""))
        plain = 0 < len(prompt) < 200 and prompt.isprintable() and not {*prompt} & {*"{}"}
        return (
            "from transformers import pipeline\n\n"
            'write = pipeline("text-generation", model="{path}")\n'
            f"print(write({quoted(prompt if plain else 'Once upon a time')}, max_new_tokens=40))"
        )

    @property
    def library(self) -> str:
        return "transformers" if opens_alone(self.module) else "kdhub"


def quoted(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


@opening
def load(folder: Path, *, name: str | None = None) -> CausalLm:
    """A language model from its folder; safetensors only, no code from the folder.

    Raises:
        UntrustedError: pickled weights, or code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(Path(folder), name=name)
    model = pretrained(AutoModelForCausalLM, folder, name=name)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return CausalLm(model.eval(), tokenizer)
