"""Two students as one: their weights on a great circle, or a straight line, between them (section 4d of `self-data`).

    cos = <a, b> / (|a| |b|),  theta = arccos(cos)
    slerp(t) = sin((1 - t) theta) / sin(theta) a + sin(t theta) / sin(theta) b

for each tensor, flattened. Where the two have nearly one direction, or one of them none, the straight mix
(1 - t) a + t b. It makes sense for two that were tuned from the same start.

    student: {source: merge, of: [{source: recipe:one}, {source: recipe:two}], t: 0.5}
    method: as-is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.recipe import Ref
from kdhub.student import BuildContext
from kdhub_lm.lora import StudentOptions, builder, folded

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub_lm.models import CausalLm

ALIKE = 0.9995
"""A cosine above which the mix is straight."""
NOTHING = 1e-8
"""A norm below which a tensor has no direction."""


class MergeOptions(StudentOptions):
    of: list[dict[str, Any]] = Field(
        default_factory=list, description="two students, each {source: ...}; `merge:ONE+TWO` says the same"
    )
    t: float = Field(0.5, ge=0, le=1, description="the second one's share; 0 is the first, 1 the second")
    how: Literal["slerp", "linear"] = Field("slerp", description="along a great circle, or straight")


@builder(MergeOptions)
def merge(argument: str, context: BuildContext) -> CausalLm:
    """The mix of two students.

    Raises:
        UsageError: not two.
        CompatibilityError: they have other tokens, tensors or shapes.
    """
    from kdhub.resolve import Resolver

    options = context.options
    given = options["of"] or [{"source": part} for part in argument.split("+") if part]
    if len(given) != 2:
        raise UsageError(
            f"student merge needs two students, it has {len(given)}",
            hint="student: {source: merge, of: [{source: recipe:ONE}, {source: recipe:TWO}]}",
        )
    refs = [Ref.model_validate(value) for value in given]
    one, two = (
        Resolver().student(ref, BuildContext(context.task, context.teacher, context.seed, facts=context.facts))
        for ref in refs
    )
    if one.vocabulary != two.vocabulary:
        raise CompatibilityError(f"student merge: {refs[0].source} and {refs[1].source} have other tokens")
    network, other = ((s.module.model if s.adapter is None else folded(s.adapter)) for s in (one, two))
    a, b = network.state_dict(), other.state_dict()
    wrong = sorted(a.keys() ^ b.keys()) or [name for name in a if a[name].shape != b[name].shape]
    if wrong:
        raise CompatibilityError(
            f"student merge: {refs[0].source} and {refs[1].source} differ in {len(wrong)} tensors ({wrong[0]}, ...)",
            hint="merge two that were tuned from one start",
        )
    network.load_state_dict({name: mixed(a[name], b[name], options["t"], options["how"]) for name in a})
    how = f"{options['how']} of {refs[0].source} and {refs[1].source} at {options['t']:g}"
    bases = {s.start.get("base_model") for s in (one, two)}
    return type(one)(network, one.tokenizer, {"base_model": bases.pop() if len(bases) == 1 else None, "how": how})


def mixed(a: Tensor, b: Tensor, t: float, how: str = "slerp") -> Tensor:
    """Two tensors of one shape as one of it, t in [0, 1]; what are no real numbers are those of the first."""
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
