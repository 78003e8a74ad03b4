"""Fresh families of students of many sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError
from kdhub.student import BuildContext, sizes

if TYPE_CHECKING:
    from kdhub.student import Student


class PoolOptions(BaseModel):
    """Of a pool."""

    model_config = ConfigDict(extra="forbid")
    widths: list[Annotated[int, Field(ge=1)]] = Field(
        [16, 48], min_length=2, description="of its anchors, ascending; the widest is usually the teacher's"
    )
    window: int = Field(2, ge=1, description="blocks that a stitch may lead from and to (paired stitching)")
    stride: int = Field(1, ge=1, description="blocks from one window to the next")
    all_pairs: bool = Field(False, description="stitch each anchor to each wider one, not the first to the last alone")


def pool(argument: str, context: BuildContext) -> Student:
    """`pool:patch=2,layers=3,heads=4`: vision transformers of some `widths`, and stitches between them: a family.

    Raises:
        UsageError: an unknown setting, heads or patches that do not divide, widths that do not ascend.
    """
    from kdhub_tasks.classification.students import network

    settings = sizes("pool", argument, patch=2, layers=3, heads=4)
    options = PoolOptions.model_validate(context.options).model_dump()
    shape = context.facts.get("shape", [])
    if shape and any(n % settings["patch"] for n in shape[-2:]):
        raise UsageError(f"student pool:{argument}: patches of {settings['patch']} do not divide {shape[-2:]} pixels")
    if wrong := [w for w in options["widths"] if w % settings["heads"]]:
        raise UsageError(
            f"student pool:{argument}: heads must divide every width (heads={settings['heads']}, width={wrong[0]})"
        )
    return network(context, {"network": "vit-pool", **settings, **options}, f"pool:{argument}")


pool.Options = PoolOptions


class UntrainedOptions(BaseModel):
    """Of a student with random weights."""

    model_config = ConfigDict(extra="forbid")
    settings: dict[str, Any] = Field(default_factory=dict, description="what stands beside the source itself")


def untrained(argument: str, context: BuildContext) -> Student:
    """`untrained:SOURCE`: the architecture of any student that is one network, with weights drawn from the seed.

    Raises:
        CompatibilityError: such a student cannot be made again.
    """
    from kdhub import open_student
    from kdhub_search.scores import fresh

    source = {"source": argument, **UntrainedOptions.model_validate(context.options).settings}
    student = open_student(source, context.task.name, teacher=context.teacher, seed=context.seed, facts=context.facts)
    state = fresh(student, context.seed).state_dict()
    student.module.load_state_dict(state)
    student.start = {"how": f"the architecture of {argument}, with random weights"}
    return student


untrained.Options = UntrainedOptions
