"""The builder of `tiny-clip`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub_tasks.classification.model import NetworkClassifier


class ClipOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    texts: dict[str, str] = Field(default_factory=dict, description="text of each class, instead of the template")
    template: str = Field("a photo of a {}", description="text of a class; {} is its name")


def tiny_clip(argument: str, context: BuildContext) -> NetworkClassifier:
    """`tiny-clip:width=32,channels=16`: a fresh encoder of images and texts.

    Raises:
        UsageError: an unknown setting.
    """
    from kdhub_tasks.classes import classes_for
    from kdhub_tasks.classification.students import network

    settings = sizes("tiny-clip", argument, width=32, channels=16)
    options = ClipOptions.model_validate(context.options)
    texts = [options.texts.get(name) or options.template.format(name) for name in classes_for(context)]
    return network(context, {"network": "tiny-clip", "texts": texts, **settings}, f"tiny-clip:{argument}")


tiny_clip.Options = ClipOptions
