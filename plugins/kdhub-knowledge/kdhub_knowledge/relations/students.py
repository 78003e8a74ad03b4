"""Students that find pairs: sentences in, pairs of spans out. Drug-centric (arXiv:2307.06439, section on the unified
architecture): heads are tagged first; then, for each, its sentence is read again with the head marked, and the tails of
that head are tagged. `pairwise` tags both at once and classifies each pair of a head and a tail, one pass a pair.

    config.json, model.safetensors       what it is, and all weights
    encoder/                             configuration and tokenizer of a model of the transformers library

A text longer than the network takes is read in windows that overlap by half; a marked pass reads the window around its
head. Nothing is cut off: a tail farther from its head than half a window is out of reach.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdhub_tasks.models import take_weights
from torch import nn

from kdhub.errors import CompatibilityError, DataError, UntrustedError, UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import BuildContext, Student, sizes
from kdhub_knowledge.relations.networks import (
    DRUG_CENTRIC,
    HEAD,
    LONGEST_WORD,
    PAIRWISE,
    TAIL,
    Encoder,
    Recurrent,
    Tagger,
)
from kdhub_knowledge.relations.profiles import profile
from kdhub_knowledge.relations.spans import Span, as_array, as_texts, longest, mentions, runs, words

NAME = "relation-extraction"
BATCH = 64
SETTINGS = {"structure": DRUG_CENTRIC, "profile": "ade", "threshold": 0.5, "drug_source": "tagger", "lexicon": []}


class Extractor(Student):
    """What both students share. A subclass says how a text becomes tokens.

    Args:
        config: what `config.json` has: `network` and its settings, and those of `SETTINGS` that are set.
    """

    task = NAME
    limit: int

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.config = {**SETTINGS, **config}
        self._read: dict[str, tuple[list[int], list[Span]]] = {}
        self.module = Tagger(*self._encoder(), self.config["structure"])

    def _encoder(self) -> tuple[nn.Module, int]:
        """The encoder and the width of its states."""
        raise NotImplementedError

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        """All tokens of a text, and their characters."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """What the network takes."""
        raise NotImplementedError

    def settle(self, **settings: Any) -> None:
        """How pairs are read from here on; another structure has a fresh part."""
        settings = {name: value for name, value in settings.items() if value is not None}
        if settings.get("structure", self.config["structure"]) != self.config["structure"]:
            width = self.module.tags.in_features
            self.module.pair = nn.Linear(2 * width, 1) if settings["structure"] == PAIRWISE else None
        self.config |= settings

    # -- windows ----------------------------------------------------------------------------------------------

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        if text not in self._read:
            if len(self._read) > 20_000:
                self._read.clear()
            self._read[text] = self.tokens(text)
        return self._read[text]

    def starts(self, text: str) -> list[int]:
        """The first token of each window of a text."""
        n, half = len(self.read(text)[0]), max(1, self.limit // 2)
        return [0] if n <= self.limit else [*range(0, n - self.limit, half), n - self.limit]

    def window(self, example: Example) -> tuple[int, int]:
        """First token of an example, and the one behind its last: the window that it names, else that around what is
        marked."""
        spans, begin = self.read(example["text"])[1], example.get("first", 0)
        if example.get("head"):
            inside = [i for i, (a, b) in enumerate(spans) if a < example["head"][1] and b > example["head"][0]]
            middle = inside[len(inside) // 2] if inside else 0
            begin = max(0, min(middle - self.limit // 2, len(spans) - self.limit))
        return begin, min(begin + self.limit, len(spans))

    def parts(self, example: Example) -> tuple[list[int], list[Span], list[int]]:
        """Tokens of an example's window, their characters, and which are marked (`HEAD`, `TAIL`, 0)."""
        (ids, spans), (first, end) = self.read(example["text"]), self.window(example)
        marked = [0] * (end - first)
        for number, side in ((HEAD, "head"), (TAIL, "tail")):
            for i, (a, b) in enumerate(spans[first:end]) if example.get(side) else ():
                if a < example[side][1] and b > example[side][0] and not marked[i]:
                    marked[i] = number
        return ids[first:end], spans[first:end], marked

    # -- pairs ------------------------------------------------------------------------------------------------

    def run(self, examples: Sequence[Example]) -> list[dict[str, np.ndarray]]:
        """What the network gives for each example."""
        where, was, found = device(), self.module.training, [{}] * len(examples)
        self.module.to(where).eval()
        order = sorted(range(len(examples)), key=lambda n: len(self.parts(examples[n])[0]))
        with torch.no_grad():
            for start in range(0, len(order), BATCH):
                some = order[start : start + BATCH]
                given = self.module({k: v.to(where) for k, v in self.collate([examples[n] for n in some]).items()})
                counts = np.cumsum([len(self.parts(examples[n])[0]) for n in some])[:-1]
                arrays = {name: value.float().cpu().numpy() for name, value in given.items()}
                for i, (n, tags) in enumerate(zip(some, np.split(arrays["pairs"], counts))):
                    found[n] = {"pairs": tags, **({"related": arrays["related"][i]} if "related" in arrays else {})}
        self.module.train(was)
        return found

    def tagged(self, text: str, seen: Sequence[tuple[Example, np.ndarray]], threshold: float) -> list[Span]:
        """The runs of words above a threshold. A word's logit is the mean of its tokens', in all windows.

        Args:
            seen: windows of the text, and a logit for each of their tokens.
        """
        sums, counts, grid = defaultdict(float), defaultdict(int), words(text)
        for example, logits in seen:
            at = 0
            for (a, b), logit in zip(self.parts(example)[1], logits):
                while at < len(grid) and grid[at][1] <= a:
                    at += 1
                n = at
                while n < len(grid) and grid[n][0] < b:
                    sums[n] += float(logit)
                    counts[n] += 1
                    n += 1
        return runs(text, {n for n, total in sums.items() if total / counts[n] > threshold})

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        if kind != "pairs":
            return super().signals(examples, kind)
        p, pairwise = self.config["threshold"], self.config["structure"] == PAIRWISE
        threshold, texts = float(np.log(p / (1 - p))), [e["text"] for e in examples]
        plain = [(n, {"text": t, "first": f}) for n, t in enumerate(texts) for f in self.starts(t)]
        needs_pass = pairwise or self.config["drug_source"] == "tagger"
        windows: list[list[tuple[Example, np.ndarray]]] = [[] for _ in texts]
        for (n, window), given in zip(plain, self.run([w for _, w in plain]) if needs_pass else ()):
            windows[n].append((window, given["pairs"]))

        def column(n: int, c: int) -> list[Span]:
            return self.tagged(texts[n], [(w, logits[:, c]) for w, logits in windows[n]], threshold)

        asked = []
        for n, example in enumerate(examples):
            for head in self.heads(example, lambda n=n: column(n, 0)):
                for tail in column(n, 1) if pairwise else [None]:
                    asked.append((n, {"text": texts[n], "head": head, "tail": tail}))
        found: list[list[tuple[Span, Span]]] = [[] for _ in texts]
        for (n, one), given in zip(asked, self.run([one for _, one in asked])):
            if pairwise:
                tails = [one["tail"]] if given["related"] > threshold else []
            else:
                tails = self.tagged(one["text"], [(one, given["pairs"][:, 1])], threshold)
            found[n] += [(one["head"], tail) for tail in tails]
        return {"pairs": [as_array(sorted(set(pairs))) for pairs in found]}

    def heads(self, example: Example, tagger: Any) -> list[Span]:
        """The heads of a sentence, by the source that is set.

        Raises:
            DataError: heads are given, and the row has none.
        """
        source, text = self.config["drug_source"], example["text"]
        if source == "tagger":
            return tagger()
        if source == "lexicon":
            return longest([*profile(self.config["profile"]).heads(text), *mentions(text, self.config["lexicon"])])
        if example.get("entities") is None:
            raise DataError(
                "drug_source=gold takes the heads from the column 'entities', which the rows do not have",
                hint="relation-corpus:DATA writes it with the option entities: true",
            )
        return mentions(text, example["entities"])

    def extract(self, text: str, entities: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """The pairs of a text, head and tail.

        Args:
            entities: its heads, for a student that takes them as given.
        """
        (found,) = self.signals([{"text": text, "entities": entities}], "pairs")["pairs"]
        return as_texts(text, found)

    def describe(self) -> dict[str, Any]:
        return {"widths": {"pairs": [None, 4]}}

    def usage(self) -> str:
        return (
            'import kdhub\nstudent = kdhub.load("{path}")\n'
            'print(student.extract("A rash appeared two days after amoxicillin was given."))'
        )

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config = {"kdhub": 1, "task": self.task, "extractor": self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")

    def restore(self, folder: Path) -> Extractor:
        take_weights(self.module, folder / "model.safetensors", str(folder))
        self.module.eval()
        return self


class RecurrentExtractor(Extractor):
    """`relations-lstm`: words that it knows, and the letters of all."""

    limit = 512

    def _encoder(self) -> tuple[nn.Module, int]:
        c = self.config
        self._words = {word: n for n, word in enumerate(c["words"], 2)}
        self._letters = {letter: n for n, letter in enumerate(c["letters"], 2)}
        return Recurrent(len(self._words), len(self._letters), **c["sizes"]), 2 * c["sizes"]["width"]

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        grid = words(text)
        return [self._words.get(text[a:b].lower(), 1) for a, b in grid], grid

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        parts = [self.parts(e) for e in examples]
        longest_row = max(1, *(len(ids) for ids, _, _ in parts))
        shape = len(parts), longest_row
        made = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "marked")}
        made["letters"] = np.zeros((*shape, LONGEST_WORD), np.int64)
        for n, (example, (ids, spans, marked)) in enumerate(zip(examples, parts)):
            made["input_ids"][n, : len(ids)], made["marked"][n, : len(ids)] = ids, marked
            made["attention_mask"][n, : len(ids)] = 1
            for i, (a, b) in enumerate(spans):
                letters = [self._letters.get(c, 1) for c in example["text"][a : min(b, a + LONGEST_WORD)]]
                made["letters"][n, i, : len(letters)] = letters
        made["scored"] = made["attention_mask"]
        return {name: torch.from_numpy(array) for name, array in made.items()}


class EncoderExtractor(Extractor):
    """An encoder of the transformers library; marked spans stand between marker tokens, which the vocabulary gets.

    Args:
        folder: with its configuration and tokenizer, and of a start its weights as well.
    """

    MARKERS = 4

    def __init__(self, folder: Path, config: Mapping[str, Any], start: Mapping[str, Any] | None, fresh: bool = False):
        from kdhub_tasks.reading import longest as most
        from kdhub_tasks.reading import settle_pad
        from transformers import AutoTokenizer

        self._folder, self._fresh = folder, fresh
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        super().__init__({"network": "encoder", **config}, start)
        model = self.module.encoder.model
        self.pad = settle_pad(model, self.tokenizer)
        plain, whole = (self.tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
        at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self._around = whole[:at], whole[at + len(plain) :]
        self.limit = most(model, self.tokenizer, default=512) - len(whole) + len(plain) - self.MARKERS
        if self.limit < 2:
            raise CompatibilityError(f"an encoder for pairs must take more than {len(whole) + self.MARKERS} tokens")

    def _encoder(self) -> tuple[nn.Module, int]:
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(self._folder, local_files_only=True)
        if self._fresh:
            model = AutoModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
            model.resize_token_embeddings(config.vocab_size + self.MARKERS, mean_resizing=False)
        else:
            model = AutoModel.from_config(config)
        if getattr(model, "pooler", None) is not None:  # reads the first token alone
            model.pooler = None
        self._first = model.config.vocab_size - self.MARKERS
        return Encoder(model), model.config.hidden_size

    def tokens(self, text: str) -> tuple[list[int], list[Span]]:
        from kdhub_tasks.masked.masking import trim_space

        given = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return given["input_ids"], [trim_space(text, *span) for span in given["offset_mapping"]]

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        from kdhub_tasks.transformer import padded

        rows, scored, marks = [], [], []
        for example in examples:
            ids, marked = self._marked(example)
            before, behind = self._around
            rows.append([*before, *(i for i in ids), *behind])
            real = [int(i < self._first) for i in ids]
            scored.append([0] * len(before) + real + [0] * len(behind))
            marks.append([0] * len(before) + marked + [0] * len(behind))
        batch = padded(rows, self.pad)
        more = {name: padded(values, 0)["input_ids"] for name, values in (("scored", scored), ("marked", marks))}
        return {**batch, **more}

    def _marked(self, example: Example) -> tuple[list[int], list[int]]:
        """Tokens with markers around what is marked, and what each is part of."""
        ids, _, marked = self.parts(example)
        made, of, before = [], [], 0
        for token, mark in [*zip(ids, marked), (None, 0)]:
            if mark != before:
                for side, end in ((before, 1), (mark, 0)):
                    if side:
                        made.append(self._first + 2 * (side - 1) + end)
                        of.append(0)
                before = mark
            if token is not None:
                made.append(token)
                of.append(mark)
        return made, of

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.module.encoder.model.config.save_pretrained(folder / "encoder")
        self.tokenizer.save_pretrained(folder / "encoder")


def load(folder: Path, *, name: str | None = None) -> Extractor:
    """
    Raises:
        UntrustedError: it is not a student of this task that kdhub saved.
    """
    check_model_folder(folder, name=name)
    config = config_of(folder)
    if config is None:
        raise UntrustedError(f"{name or folder} is not a student for {NAME} that kdhub saved")
    if config["network"] == "encoder":
        return EncoderExtractor(folder / "encoder", config, None).restore(folder)
    return RecurrentExtractor(config).restore(folder)


def config_of(folder: Path) -> dict[str, Any] | None:
    try:
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {**given["extractor"], "network": given["extractor"]["network"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def with_heads(folder: Path, seed: int, start: Mapping[str, Any]) -> Extractor:
    """A checked folder's encoder with fresh heads."""
    from transformers import set_seed

    set_seed(seed)
    return EncoderExtractor(folder, {}, start, fresh=True)


def lstm(argument: str, context: BuildContext) -> Extractor:
    """`relations-lstm:width=96,words=64,chars=30`: a fresh one with the words of the training rows.

    Raises:
        UsageError: an unknown setting, or no training rows.
    """
    settings = sizes("relations-lstm", argument, width=96, words=64, chars=30)
    if not context.facts.get("words"):
        raise UsageError("relations-lstm needs training rows to know the words", hint="give --data")
    torch.manual_seed(context.seed)
    config = {"network": "lstm", "sizes": {**settings, "dropout": 0.3}}
    config |= {name: list(context.facts[name]) for name in ("words", "letters")}
    return RecurrentExtractor(config, {"how": f"fresh relations-lstm:{argument}"})
