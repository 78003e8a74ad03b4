"""Causal language models of the transformers library, as students and as teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from kdhub_logits.classifiers import Classifier, padded
from kdhub_logits.positions import Head, TokenSignals
from kdhub_logits.students import keep_layers
from kdhub_logits.teachers import LocalClassifier, local
from torch import nn

from kdhub._ranks import device
from kdhub.errors import UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.student import BuildContext, sizes
from kdhub.task import Example, Signals
from kdhub_lm.decoding import draws, write
from kdhub_lm.generation import Generation, encoded, is_text, layout
from kdhub_lm.lora import StudentOptions, builder, folded
from kdhub_lm.packing import packed
from kdhub_lm.rows import vocabulary

BATCH = 32


class LanguageModel(nn.Module):
    """A transformers language model that gives its last states and its head, from which logits are made when they are
    asked for (see `kdhub_logits.positions`), at the positions `at` of a batch.

    Args:
        classes: columns of the head that are tokens. Others are padding; they are cut, for a logit of theirs would get
            a share of the probability.
    """

    def __init__(self, model: nn.Module, classes: int):
        super().__init__()
        self.model, self.classes = model, classes
        config = model.config
        self._scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._head: bool | None = None

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Signals:
        ids, at = inputs["input_ids"], inputs["at"]
        if "position_ids" in inputs:  # with a cache, or a mask, they would not be taken for several rows
            how = {"position_ids": inputs["position_ids"], "use_cache": False}
        else:
            how = {"attention_mask": inputs["attention_mask"]}
        if not self.has_head(ids):
            given = self.model(input_ids=ids, **how, output_hidden_states=True)
            logits, states = given.logits[..., : self.classes], given.hidden_states[-1]
            return Signals(logits=logits.flatten(0, 1)[at].float(), features=states.flatten(0, 1)[at].float())
        states = self.model.base_model(input_ids=ids, **how).last_hidden_state
        return TokenSignals(head=self._of(states.flatten(0, 1)[at]))

    def _of(self, states: torch.Tensor) -> Head:
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return Head(states, head.weight[: self.classes], None if bias is None else bias[: self.classes],
                    float(self._scale), self._cap)  # fmt: skip

    def has_head(self, ids: torch.Tensor) -> bool:
        """Whether states and head make the model's own logits, tried once. Some models do more between the two."""
        if self._head is None:
            self._head = False
            head = self.model.get_output_embeddings()
            if isinstance(head, nn.Linear) and self.model.base_model is not self.model:
                was = self.model.training
                self.model.eval()
                with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                    own = self.model(input_ids=ids[:1]).logits[0, :, : self.classes].float()
                    made = self._of(self.model.base_model(input_ids=ids[:1]).last_hidden_state[0])[:]
                self.model.train(was)
                self._head = torch.allclose(own, made, rtol=1e-2, atol=1e-3 * float(own.abs().max()))
        return self._head


class CausalLm(Classifier):
    """A causal language model with its tokenizer, in the library's own format. Signals are those of the positions from
    which a token is predicted: one less than the tokens of a text.

    Attributes:
        adapter: what alone is trained of it, None for all (see `lora`); it is saved in the weights.
        packing: whether a batch has several rows in one sequence (see `packing`).
    """

    ragged = True
    batch = BATCH
    adapter: Any = None
    packing = False

    def __init__(self, model: nn.Module, tokenizer: Any, start: Mapping[str, Any] | None = None):
        classes = min(len(tokenizer), model.config.vocab_size)
        super().__init__("causal-lm", LanguageModel(model, classes), [], start)
        self.tokenizer = tokenizer
        limit = getattr(model.config, "max_position_embeddings", None) or 2048
        self.max_length = min(n for n in (limit, tokenizer.model_max_length) if n)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        if self.packing:
            return packed(examples, self.max_length, self.tokenizer.pad_token_id or 0)
        batch = padded([e["ids"] for e in examples], self.tokenizer.pad_token_id or 0)
        width = batch["input_ids"].shape[1]
        at = [n * width + place for n, e in enumerate(examples) for place in e["at"]]
        return {**batch, "at": torch.tensor(at, dtype=torch.long)}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if not is_text(kind):
            return super().signals(examples, kind)
        how = Generation.parse(kind)
        rows = [int.from_bytes(hashlib.sha256(e["content"]).digest()[:8], "big") for e in examples]
        written = self.generate([e["ids"] for e in examples], how, how.seed, rows)
        ends = {self.tokenizer.eos_token_id}
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return encoded(texts, [bool(ids) and ids[-1] in ends for ids in written])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        how: Generation,
        seed: int,
        rows: Sequence[int] | None = None,
        mixed: tuple[CausalLm, float] | None = None,
    ) -> list[list[int]]:
        """What it writes after some prompts: token ids, with the end where it came to one. No generator of the process
        is drawn from.

        Args:
            prompts: token ids, at least one each; those of like length are run together.
            seed: of sampling.
            rows: a number of each prompt, which with the seed gives its draws; its place by default.
            mixed: a model with the same tokens, and its share in the mixture that each token is drawn from.
        """
        models = [(self.module, 1.0)] if mixed is None else [(self.module, 1 - mixed[1]), (mixed[0].module, mixed[1])]
        rows = range(len(prompts)) if rows is None else rows
        room = [min(how.max_new_tokens, self.max_length - len(prompt)) for prompt in prompts]
        order = [i for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])) if room[i] > 0]
        written: list[list[int]] = [[] for _ in prompts]
        were = [model.model.training for model, _ in models]
        for model, _ in models:
            model.to(device()).model.eval()
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            longest = max(room[i] for i in some)
            numbers = draws(seed, [rows[i] for i in some], longest) if how.temperature else None
            given = write(
                models, [prompts[i] for i in some], [room[i] for i in some], numbers, how,
                self.tokenizer.eos_token_id, self.tokenizer.pad_token_id or 0,
            )  # fmt: skip
            for i, ids in zip(some, given):
                written[i] = ids
        for (model, _), was in zip(models, were):
            model.model.train(was)
        return written

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokens and their numbers."""
        return vocabulary(self.tokenizer)

    def width(self, kind: str) -> tuple[int, ...]:
        return (self.module.classes if kind == "logits" else self.module.model.config.hidden_size,)

    def save(self, folder: Path) -> None:
        network = self.module.model if self.adapter is None else folded(self.adapter)
        network.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def usage(self) -> str:
        return (
            "from transformers import pipeline\n\n"
            'write = pipeline("text-generation", model="{path}")\n'
            'print(write("Once upon a time", max_new_tokens=40))'
        )

    @property
    def library(self) -> str:
        return "transformers"


def load(folder: Path, *, name: str | None = None, start: Mapping[str, Any] | None = None) -> CausalLm:
    """A language model from its folder; safetensors alone, no code of its own.

    Raises:
        UntrustedError: pickled weights, or code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(Path(folder), name=name)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return CausalLm(model.eval(), tokenizer, start)


def byte_tokenizer(max_length: int = 1024) -> Any:
    """A tokenizer whose tokens are the 256 bytes, and a begin and an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, pad_token="<pad>", bos_token="<s>", eos_token="<s>"
    )


# -- teachers -------------------------------------------------------------------------------------------------


class LocalLm(LocalClassifier):
    """A language model whose weights are at hand; its identity is read from its files."""

    group_rows = 64
    kind = "causal-lm"

    @staticmethod
    def read(folder: Path, name: str | None) -> CausalLm:
        return load(folder, name=name)

    def layout(self, kind: str) -> dict[str, Any]:
        return layout() if is_text(kind) else super().layout(kind)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.model.signals(examples, kind) if is_text(kind) else super().signals(examples, kind)

    def probe(self) -> Mapping[str, Any]:
        widths = {kind: [None, *self.model.width(kind)] for kind in self.model.kinds}
        return {"vocabulary": self.model.vocabulary, "widths": widths}

    @property
    def vocabulary(self) -> str:
        return self.facts["vocabulary"]

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        check_model_folder(self.folder, name=self.known.get("id"))
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @property
    def max_length(self) -> int:
        return self.model.max_length


path_teacher, hub_teacher = local(LocalLm)


# -- students -------------------------------------------------------------------------------------------------


def tokens_for(context: BuildContext, length: int) -> tuple[Any, int]:
    """The tokenizer of a fresh student, and how many tokens it must know: those of the teacher, where it has any."""
    teacher = context.teacher
    tokenizer = (teacher.tokenizer if teacher is not None else None) or byte_tokenizer(length)
    return tokenizer, teacher.layout("logits")["logits"][-1] if isinstance(teacher, LocalLm) else len(tokenizer)


@builder(StudentOptions)
def llama(argument: str, context: BuildContext) -> CausalLm:
    """`llama:width=64,layers=2,heads=4`: a fresh one with the teacher's tokenizer, without a teacher with bytes.

    Raises:
        UsageError: an unknown setting, or heads that do not divide the width.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    settings = sizes("llama", argument, width=64, layers=2, heads=4, length=512)
    width, heads = settings["width"], settings["heads"]
    if width % (2 * heads):
        raise UsageError(f"student llama:{argument}: {heads} heads of an even width do not divide {width}")
    tokenizer, wide = tokens_for(context, settings["length"])
    config = LlamaConfig(
        vocab_size=wide,
        hidden_size=width,
        intermediate_size=-(-8 * width // 24) * 8,
        num_hidden_layers=settings["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=settings["length"],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_seed(context.seed)
    return CausalLm(LlamaForCausalLM(config), tokenizer, {"how": f"fresh llama:{argument}"})


@builder(StudentOptions)
def path_student(argument: str, context: BuildContext) -> CausalLm:
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        raise UsageError(f"student folder {folder} does not exist")
    return load(folder, start={"how": "a model in a local folder"})


@builder(StudentOptions)
def hub_student(argument: str, context: BuildContext) -> CausalLm:
    from kdhub.hub.fetch import fetch_model

    folder, repo, commit = fetch_model(argument)
    return load(folder, name=repo, start={"base_model": repo, "revision": commit, "how": "as it is"})


@builder(StudentOptions)
def layers(argument: str, context: BuildContext) -> CausalLm:
    """N evenly spaced layers of the teacher, first and last among them, with its embeddings and head.

    Raises:
        UsageError: N is no number from 1 to the teacher's layers.
        CompatibilityError: the teacher's weights are not at hand.
    """
    model, start = keep_layers(argument, context, CausalLm)
    return CausalLm(model, context.teacher.tokenizer, start)
