"""Students by modules: a mixture of experts, one module of a student in the teacher's meta model, and what is
assembled from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_student, open_teacher
from kdhub.errors import CompatibilityError, UsageError
from kdhub.recipes.recipe import TextRef
from kdhub.student import BuildContext, sizes
from kdhub_vision.modules.spec import IMAGE

if TYPE_CHECKING:
    from kdhub_tasks.classification.model import NetworkClassifier


def moe_vit(argument: str, context: BuildContext) -> NetworkClassifier:
    """`moe-vit:patch=2,width=32,layers=4,heads=4,experts=8,top=2`; each may be left out.

    Raises:
        UsageError: an unknown setting, sizes that do not divide, or more experts for a token than there are.
    """
    from kdhub_tasks.classification.students import network

    settings = sizes("moe-vit", argument, patch=2, width=32, layers=4, heads=4, experts=8, top=2)
    for small, large in (("heads", "width"), ("patch", None)):
        whole = [settings[large]] if large else context.facts.get("shape", [])[-2:]
        if any(n % settings[small] for n in whole):
            raise UsageError(f"student moe-vit:{argument}: {small} must divide {whole} ({small}={settings[small]})")
    if settings["top"] > settings["experts"]:
        raise UsageError(
            f"student moe-vit:{argument}: top must be at most experts (top={settings['top']}, "
            f"experts={settings['experts']})"
        )
    return network(context, {"network": "moe-vit", **settings}, f"moe-vit:{argument}")


class ModuleOptions(BaseModel):
    """Of one module of a student."""

    model_config = ConfigDict(extra="forbid")
    depths: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="blocks of each of the student's modules; even if unset"
    )
    stitch: Literal["layernorm_linear", "linear", "identity"] = Field(
        "layernorm_linear", description="what leads from the meta model's width into the student's and back"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="what stands beside the student's own source")


def module(argument: str, context: BuildContext) -> NetworkClassifier:
    """`module:SOURCE`: the module of a student that takes the place of its teacher's (`spliced`) in the meta model.

    Raises:
        CompatibilityError: another kind of teacher; networks that are not ours, or have other positions.
        UsageError: depths that do not add up.
    """
    import torch
    from kdhub_tasks.classification.model import NetworkClassifier
    from kdhub_tasks.splitting import Chain

    from kdhub_vision.modules.hybrid import depths_of

    options, teacher = ModuleOptions.model_validate(context.options), context.teacher
    if not hasattr(teacher, "meta"):
        raise CompatibilityError(
            f"student module:{argument} takes the place of its teacher's module in a meta model",
            hint="teacher: {source: spliced, of: ..., meta: ..., module: 0}",
        )
    source = {"source": argument, **options.settings}
    student = open_student(source, context.task.name, seed=context.seed, facts=context.facts)
    for who, model in (("student", student), ("meta model", teacher.meta.model)):
        if not isinstance(model, NetworkClassifier):
            raise CompatibilityError(
                f"the {who} of module:{argument} is a {type(model).__name__}, which cannot be saved in parts",
                hint="take a network of kdhub's own (kdhub list networks), or of timm",
            )
    meta = teacher.meta.model
    depths = depths_of(teacher.modules, len(Chain(student.module)), options.depths, "student")
    config = {
        "network": "spliced", "shape": student.config["shape"], "classes": student.classes, "meta": meta.config,
        "student": student.config, "module": teacher.options.module, "depths": depths, "stitch": options.stitch,
    }  # fmt: skip
    torch.manual_seed(context.seed)
    made = NetworkClassifier(context.task.name, config, {"how": f"module {teacher.options.module} of {argument}"})
    made.module.meta.load_state_dict(meta.module.state_dict())
    mine = made.module.other.state_dict()
    made.module.other.load_state_dict({name: t for name, t in student.module.state_dict().items() if name in mine})
    return made


module.Options = ModuleOptions


class AssembledOptions(BaseModel):
    """Of a student assembled from its modules."""

    model_config = ConfigDict(extra="forbid")
    modules: list[TextRef] = Field(default_factory=list, description="the trained modules, in any order")
    keep_stitch: bool = Field(False, description="keep the stitches between modules; dropped as in the paper if false")


def assembled(argument: str, context: BuildContext) -> NetworkClassifier:
    """A whole student from the modules that were trained apart (`module`).

    Raises:
        UsageError: a module is missing, or there twice. CompatibilityError: they are of several students.
    """
    from kdhub_tasks.classification.model import NetworkClassifier

    from kdhub_vision.modules.hybrid import SplicedNetwork, channels

    options = AssembledOptions.model_validate(context.options)
    parts: dict[int, Any] = {}
    for ref in options.modules:
        part = open_student(ref, context.task.name, seed=context.seed, facts=context.facts)
        if not isinstance(part.module, SplicedNetwork):
            raise CompatibilityError(f"student assembled: {ref.source} is not a module of a student (module:SOURCE)")
        if (number := part.config["module"]) in parts:
            raise UsageError(f"student assembled: module {number} is there twice", hint="set: {teacher.module: N}")
        parts[number] = part
    first = next(iter(parts.values()), None)
    wanted = len(first.config["depths"]) if first else 0
    if not first or sorted(parts) != [*range(wanted)]:
        lacking = ", ".join(str(n) for n in range(wanted) if n not in parts)
        raise UsageError(
            f"student assembled needs every module of a student, and has {sorted(parts)}"
            + (f" of {wanted}: {lacking} missing" if first else ""),
            hint="student: {source: assembled, modules: [{source: recipe:NAME, set: {teacher.module: 0}}, ...]}",
        )
    if any(part.config[key] != first.config[key] for part in parts.values() for key in ("student", "depths")):
        raise CompatibilityError("student assembled: its modules are of several students, or of other depths")
    config = {name: value for name, value in first.config["student"].items() if name not in ("task", "kdhub")}
    made = NetworkClassifier(context.task.name, config, {"how": f"assembled from {wanted} modules"})
    state = made.module.state_dict()
    for part in parts.values():
        state |= part.module.own_state()
    made.module.load_state_dict(state)
    if options.keep_stitch and wanted > 1:
        from kdhub_tasks.splitting import Chain

        ends = [*accumulate(first.config["depths"])][:-1]
        shapes, metas = Chain(made.module).shapes(made.blank()), Chain(first.module.meta).shapes(made.blank())
        own, width = [channels(shapes[end]) for end in ends], channels(metas[1])
        made.wrap("stitched", places=ends, width=width, own=own, stitch=first.config["stitch"])
        for number in range(wanted - 1):
            made.module.after[number].load_state_dict(parts[number].module.after.state_dict())
            made.module.before[number].load_state_dict(parts[number + 1].module.before.state_dict())
    return made


assembled.Options = AssembledOptions


def _of_one_module(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Options that the conformance kit tries it with: the tiny teacher is teacher and meta model of one block."""
    teacher = open_teacher({"source": "spliced", "of": recipe["teacher"], "meta": recipe["teacher"]}, IMAGE)
    own = teacher.of.model.config
    facts = {"shape": own["shape"], "classes": own["classes"], "mean": 0.0, "std": 1.0}
    student = open_student(
        "module:moe-vit:patch=4,width=4,layers=1,heads=2,experts=3", IMAGE, teacher=teacher, facts=facts
    )
    folder = Path(recipe["teacher"]["source"].removeprefix("path:")).parent / "module"
    folder.mkdir(exist_ok=True)
    student.save(folder)
    return {"modules": [{"source": f"path:{folder}"}]}


assembled.tiny_options = _of_one_module
