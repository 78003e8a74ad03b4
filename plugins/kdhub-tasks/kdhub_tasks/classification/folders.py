"""How a classifier's folder is opened: as it is, and as a student's start with the classes that it shall have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.student import BuildContext
from kdhub_tasks.classes import classes_for, problem_for
from kdhub_tasks.classification.model import NetworkClassifier, TokenClassifier
from kdhub_tasks.quantization import opening
from kdhub_tasks.transformer import TextClassifier
from kdhub_tasks.wrappers import network_class

if TYPE_CHECKING:
    from kdhub_tasks.models import Classifier

HEADED = ("Classification", "QuestionAnswering")
"""What the classes of the transformers library with a head of ours end with."""


@opening
def load(folder: Path, *, name: str | None = None) -> Classifier:
    """A classifier from its folder: ours, the transformers library's, or timm's.

    Raises:
        UntrustedError: no readable configuration, pickled weights, or code of its own.
        UsageError: timm is needed and not installed. CompatibilityError: no plugin provides its network.
    """
    config = _config(folder, name)
    if "architecture" in config:
        return NetworkClassifier.of_timm(folder, config, name=name)
    if "network" in config:
        return network_classifier(config).load(folder, config)
    kinds = [str(n) for n in config.get("architectures") or ()]
    if any(n.endswith("ForImageClassification") for n in kinds):
        from kdhub_tasks.classification.vision import ImageClassifier

        return ImageClassifier.load(folder, name=name)
    of_tokens = any(n.endswith("ForTokenClassification") for n in kinds)
    return (TokenClassifier if of_tokens else TextClassifier).load(folder, name=name)


def network_classifier(config: Mapping[str, Any]) -> type[NetworkClassifier]:
    """The class of students that reads rows for a registered network: its own `student`, if it has one."""
    return getattr(network_class(config["network"]), "student", NetworkClassifier)


def as_start(folder: Path, context: BuildContext, start: Mapping[str, Any], name: str | None) -> Classifier:
    """A folder as a start: a classifier as it is, or an encoder with a fresh classifier. So gets an image classifier,
    or a model of the Hub, that was made for other classes."""
    config, start = _config(folder, name), dict(start)
    if "architecture" in config:
        import torch

        torch.manual_seed(context.seed)
        student = NetworkClassifier.of_timm(
            folder, config, classes=classes_for(context), problem=problem_for(context), name=name
        )
        student.start = start
        return student
    headed = "network" in config or str((config.get("architectures") or [""])[0]).endswith(HEADED)
    if context.task.name == "image-classification" and "architectures" in config:
        from kdhub_tasks.classification.vision import ImageClassifier

        of = {"classes": classes_for(context), "problem": problem_for(context)}
        return ImageClassifier.load(folder, name=name, **of, seed=context.seed, start=start)
    if headed and name is None:
        student = context.task.load(folder)
        student.start = start
        return student
    if not headed:
        start["how"] = f"{start.get('how', 'as it is')}, with a fresh classifier"
    check_model_folder(folder, name=name)
    facts = {**context.facts, "problem": problem_for(context)}
    return context.task.with_head(facts, folder, classes_for(context), context.seed, start)


def _config(folder: Path, name: str | None) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UntrustedError(f"{name or folder} has no readable config.json ({error})") from error
    if not isinstance(config, dict):
        raise UntrustedError(f"{name or folder} has a config.json that is not a mapping")
    return config
