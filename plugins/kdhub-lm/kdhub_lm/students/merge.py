"""Two students merged: weights on the great circle, or the straight line, between them (section 4d of `self-data`).

    cos = <a, b> / (|a| |b|),  theta = arccos(cos)
    slerp(t) = sin((1 - t) theta) / sin(theta) a + sin(t theta) / sin(theta) b

for each tensor, flattened. Where the two are nearly parallel, or one of them is 0, the linear mix (1 - t) a + t b. It
makes sense for two that were tuned from the same start.

    student: {source: merge, of: [{source: recipe:one}, {source: recipe:two}], t: 0.5}
    method: as-is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub import open_student
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import MethodOptions
from kdhub.recipes.recipe import Ref
from kdhub.student import BuildContext

if TYPE_CHECKING:
    from kdhub_tasks.language.model import CausalLm
    from torch import Tensor

ALIKE = 0.9995
"""Cosine above which the mix is linear."""
NOTHING = 1e-8
"""Norm below which a tensor has no direction."""


class MergeOptions(MethodOptions):
    of: list[dict[str, Any]] = Field(
        default_factory=list, description="the two students, each {source: ...}; short: merge:ONE+TWO"
    )
    t: float = Field(0.5, ge=0, le=1, description="share of the second one: 0 is the first, 1 the second")
    how: Literal["slerp", "linear"] = Field("slerp", description="along the great circle, or linear")


def merge(argument: str, context: BuildContext) -> CausalLm:
    """Two students merged.

    Raises:
        UsageError: they are not two.
        CompatibilityError: they differ in vocabulary, tensors or shapes.
    """
    options = context.options
    listed = options["of"] or [{"source": part} for part in argument.split("+") if part]
    if len(listed) != 2:
        raise UsageError(
            f"student merge needs two students, got {len(listed)}",
            hint="student: {source: merge, of: [{source: recipe:ONE}, {source: recipe:TWO}]}",
        )
    refs = [Ref.model_validate(value) for value in listed]
    one, two = (
        open_student(ref, context.task.name, teacher=context.teacher, seed=context.seed, facts=context.facts)
        for ref in refs
    )
    if one.vocabulary != two.vocabulary:
        raise CompatibilityError(f"student merge: {refs[0].source} and {refs[1].source} use different vocabularies")
    network, other = one.module.model, two.module.model
    a, b = network.state_dict(), other.state_dict()
    wrong = sorted(a.keys() ^ b.keys()) or [name for name in a if a[name].shape != b[name].shape]
    if wrong:
        raise CompatibilityError(
            f"student merge: {refs[0].source} and {refs[1].source} differ in {len(wrong)} tensors ({wrong[0]}, ...)",
            hint="merge two that were tuned from the same start",
        )
    network.load_state_dict({name: mixed(a[name], b[name], options["t"], options["how"]) for name in a})
    how = f"{options['how']} of {refs[0].source} and {refs[1].source} at {options['t']:g}"
    bases = list(dict.fromkeys(student.start.get("base_model") for student in (one, two)))
    base = None if None in bases else bases if len(bases) > 1 else bases[0]
    return one.like(network, {"base_model": base, "relation": "merge", "how": how})


merge.Options = MergeOptions


def mixed(a: Tensor, b: Tensor, t: float, how: str = "slerp") -> Tensor:
    """Two tensors of the same shape mixed, t in [0, 1]; of integers the first is taken."""
    import torch

    if not a.is_floating_point():
        return a.clone()
    x, y = a.detach().double().flatten(), b.detach().double().flatten()
    norms = x.norm(), y.norm()
    left, right = 1 - t, t
    if how == "slerp" and min(norms) >= NOTHING:
        cosine = (x @ y) / (norms[0] * norms[1])
        if abs(cosine) <= ALIKE:
            theta = torch.arccos(cosine)
            left, right = torch.sin((1 - t) * theta) / torch.sin(theta), torch.sin(t * theta) / torch.sin(theta)
    return (left * x + right * y).view_as(a).to(a.dtype)
