"""Nested slices of a masked language model of transformers (BERT, RoBERTa, XLM-R)."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub_tasks.masked.model import MaskedLm, Network
from kdhub_tasks.models import Classifier
from kdhub_tasks.narrow import CONFIGS, narrow_config
from torch import nn

from kdhub.errors import CompatibilityError, UsageError
from kdhub.hub.trust import check_model_folder
from kdhub_search.families.nested import Nested, NestedOptions

if TYPE_CHECKING:
    from kdhub.student import BuildContext

NETWORK = "nested-text"


class NestedText(Nested):
    """Sub-spaces of a masked language model.

    Args:
        source: configuration of the model that it is cut out of, as transformers has it.
        classes: columns of its head that are tokens.
        spaces, keep_layers, best: see `Nested`.
    """

    def __init__(self, source: Mapping[str, Any], classes: int, **how: Any):
        import transformers

        given = dict(source)
        self.classes = classes
        config = narrow_config(transformers.AutoConfig.for_model(given.pop("model_type"), **given))

        def make(layers: int, hidden: int, wide: int, heads: int) -> nn.Module:
            own = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": wide}
            chosen = narrow_config(config, **own, num_attention_heads=heads)
            return Network(transformers.AutoModelForMaskedLM.from_config(chosen), classes)

        limits = {"hidden": config.hidden_size, "wide": config.intermediate_size, "heads": config.num_attention_heads}
        super().__init__(make, config.head_dim, layers=config.num_hidden_layers, limits=limits, **how)

    @property
    def model(self) -> nn.Module:
        """The chosen member, without weights: its configuration is what is asked for."""
        return self._skeleton(self.chosen)[0].model

    @staticmethod
    def load(folder: Path, name: str | None = None) -> NestedMaskedLm:
        """A saved family."""
        import transformers
        from safetensors.torch import load_file

        check_model_folder(folder, name=name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = {k: v for k, v in config.items() if k not in ("kdhub", "task", "network")}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        student = NestedMaskedLm(family, tokenizer)
        own = dict(student.module.named_parameters())
        for key, value in load_file(folder / "model.safetensors").items():
            own.pop(key).data.copy_(value)
        if own:
            raise CompatibilityError(f"{name or folder} has no weights for {sorted(own)[0]} and {len(own) - 1} more")
        student.module.eval()
        return student


class NestedMaskedLm(MaskedLm):
    """A family of masked language models with one tokenizer.

    Args:
        family: arguments of `NestedText`, which are kept as `config`.
    """

    kinds = ("logits", "features")

    def __init__(self, family: Mapping[str, Any], tokenizer: Any, start: Mapping[str, Any] | None = None):
        if tokenizer.mask_token_id is None:
            raise CompatibilityError("masked language modelling needs a tokenizer with a mask_token, and it has none")
        self.config = dict(family)
        Classifier.__init__(self, self.task_name, NestedText(**family), [], start)
        self.tokenizer, self.pad = tokenizer, self.module.model.config.pad_token_id

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        return self.module.members

    def choose(self, name: str | None) -> None:
        self.module.member = name

    def cut(self, name: str) -> MaskedLm:
        return MaskedLm(self.module.filled(name).model.eval(), copy.deepcopy(self.tokenizer), self.start)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        known = {"kdhub": 1, "task": self.task_name, "network": NETWORK, **self.config}
        (folder / "config.json").write_text(json.dumps(known, indent=2), encoding="utf-8")
        state = {name: p.detach().contiguous() for name, p in self.module.named_parameters()}
        save_file(state, folder / "model.safetensors")
        self.tokenizer.save_pretrained(folder)

    def usage(self) -> str:
        return Classifier.usage(self)

    @property
    def library(self) -> str:
        return "kdhub"


def nested(argument: str, context: BuildContext) -> NestedMaskedLm:
    """`nested`: slices of the teacher; `nested:SOURCE`: of any masked language model. Its `spaces` are options.

    Raises:
        UsageError: neither, or a member that would be larger than the network it is cut out of.
        CompatibilityError: a model without nested slices here.
    """
    from kdhub import open_student

    options = NestedOptions.model_validate(context.options)
    if argument:
        start = open_student(argument, context.task.name, teacher=context.teacher, seed=context.seed)
    elif context.teacher is not None:
        start = context.teacher.model
    else:
        raise UsageError("student nested needs weights to be cut out of: a teacher's, or nested:SOURCE")
    config = start.module.model.config
    if config.model_type.removeprefix("kdhub-narrow-") not in CONFIGS:
        raise CompatibilityError(
            f"nested slices are made of {', '.join(CONFIGS)}, not of {config.model_type}", hint="take one of these"
        )
    family = {"source": config.to_dict(), "classes": start.module.classes, **options.model_dump()}
    how = f"nested slices of {argument or 'the teacher'}"
    made = NestedMaskedLm(family, copy.deepcopy(start.tokenizer), {**start.start, "how": how})
    made.module.begin(dict(start.module.named_parameters()))
    return made


nested.Options = NestedOptions
