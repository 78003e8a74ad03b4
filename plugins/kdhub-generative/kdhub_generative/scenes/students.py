"""Builders of scenes."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.shared import shared
from kdhub.errors import UsageError
from kdhub.student import BuildContext
from kdhub_generative.scenes.scene import Scene

Share = Annotated[float, Field(ge=0, le=1)]
SPREAD = 0.5
"""Of random points, as a share of the cameras' distance from what they look at."""


class GaussiansOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sh_degree: int = Field(3, ge=0, le=3, description="of the harmonics of colour: 0 is alike from all sides")
    background: tuple[Share, Share, Share] = Field((0.0, 0.0, 0.0), description="colour behind all, 0 to 1")
    spread: float = Field(
        SPREAD, gt=0, description="half a side of the cube of random points, as a share of the cameras' distance"
    )


def gaussians(argument: str, context: BuildContext) -> Scene:
    """`gaussians:`: one Gaussian at each point that comes with the views; `gaussians:N`: at N of them, or at N random
    ones in a cube around what the cameras look at, where there are none.

    Raises:
        UsageError: no such number, or no views to know cameras from. DataError: no point at all.
    """
    if argument and (not argument.isdigit() or not int(argument)):
        raise UsageError(f"student gaussians:{argument} takes how many, a whole number from 1, or nothing")
    facts, options = context.facts, GaussiansOptions(**context.options)
    known = _points(facts)
    draw = np.random.default_rng(context.seed)
    if argument and not len(known["points"]):
        half = options.spread * facts["distance"]
        known = {"points": np.array(facts["centre"]) + draw.uniform(-half, half, (int(argument), 3))}
    elif argument:
        some = np.sort(draw.permutation(len(known["points"]))[: int(argument)])
        known = {name: np.asarray(value)[some] for name, value in known.items()}
    settings = {"count": len(known["points"]), "sh_degree": options.sh_degree, "background": list(options.background)}
    scene = Scene(config_of("radiance-field", "gaussians", settings, facts), {"how": f"fresh gaussians:{argument}"})
    scene.module.take_points(np.asarray(known["points"]), known.get("colours"))
    return scene


gaussians.Options = GaussiansOptions


def _points(facts: dict[str, Any]) -> dict[str, np.ndarray]:
    if not facts.get("camera"):
        raise UsageError("a scene needs training views to know its cameras", hint="--data shells")
    if (name := facts.get("points")) is None:
        return {"points": np.zeros((0, 3))}
    return dict(shared(name))


def config_of(task: str, network: str, settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    known = {name: facts[name] for name in ("camera", "centre", "up", "extent") if name in facts}
    return {"task": task, "network": network, "settings": settings, **known}


class FieldOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    samples: int = Field(32, ge=2, le=1024, description="along each ray")
    background: tuple[Share, Share, Share] = Field((0.0, 0.0, 0.0), description="colour behind all, 0 to 1")
    extent: float = Field(1.0, gt=0, description="half a side of its cube, units of the world")


def seeded(network: str, settings: dict[str, Any], options: FieldOptions, context: BuildContext) -> Scene:
    torch.manual_seed(context.seed)
    more = {"samples": options.samples, "background": list(options.background), "extent": options.extent}
    config = config_of(context.task.name, network, {**settings, **more}, context.facts)
    return Scene(config, {"how": f"fresh {network}"})


def voxels(argument: str, context: BuildContext) -> Scene:
    """`voxels:N`: a grid of N x N x N.

    Raises:
        UsageError: no such number.
    """
    if argument and (not argument.isdigit() or not 2 <= int(argument) <= 512):
        raise UsageError(f"student voxels:{argument} takes points along a side, a whole number of 2 to 512")
    return seeded("voxels", {"resolution": int(argument or 20)}, FieldOptions(**context.options), context)


voxels.Options = FieldOptions


def hashgrid(argument: str, context: BuildContext) -> Scene:
    """`hashgrid:levels=8,table=4096,finest=48,width=32`."""
    from kdhub.student import sizes

    settings = sizes("hashgrid", argument, levels=8, table=4096, finest=48, width=32)
    return seeded("hashgrid", settings, FieldOptions(**context.options), context)


hashgrid.Options = FieldOptions
