"""The builder of `resnet3d`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub_tasks.classification.model import NetworkClassifier


def resnet3d(argument: str, context: BuildContext) -> NetworkClassifier:
    """`resnet3d:width=16,stage1=1,stage2=1,stage3=1`: a fresh ResNet of 3D convolutions; each may be left out.

    Raises:
        UsageError: an unknown setting.
    """
    from kdhub_tasks.classification.students import network

    settings = sizes("resnet3d", argument, width=16, stage1=1, stage2=1, stage3=1)
    width = settings.pop("width")
    config = {"network": "resnet3d", "width": width, "depths": [*settings.values()]}
    return network(context, config, f"resnet3d:{argument}")
