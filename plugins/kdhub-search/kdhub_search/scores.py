"""How alike two networks see a batch of images, trained or not: class maps and relations (DisWOT, arXiv:2303.15678).

With A (B, C, P) the last feature map of a network, P its positions, and w (K, C) its linear classifier:

    class maps   G[b, n] = sum_c w[n, c] A[b, c]                      (B, K, P)
    semantic     of each image G G^T, each row by its L2 norm         (B, K, K)
    relation     A A^T over images, each row by its L2 norm           (B, B)

    M_s, M_r = || of the teacher - of the student ||_F                "norm", the paper's; M_s is the mean over images
             = the same squared, over K^2 and B^2                     "squared", as in the authors' code

None of these shapes depends on width or resolution. The code has another semantic matrix, of the gradient g (K, C) of
the classifier: of each class g g^T (C, C), rows normalised, squared differences over C K. It needs equal widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from kdhub.student import Student

Reduction = Literal["norm", "squared"]
EPS = 1e-12
"""Below which a row's norm counts as this, as `torch.nn.functional.normalize` has it."""


# -- matrices and distances -----------------------------------------------------------------------------------


def relations(features: Tensor) -> Tensor:
    """(B, B) of features (B, ...): inner products of images, each row of norm 1."""
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=-1, eps=EPS)


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """(B, K, P) of features (B, C, P) and the classifier's weight (K, C)."""
    return torch.einsum("kc,bcp->bkp", weight, features)


def semantics(maps: Tensor) -> Tensor:
    """(B, K, K) of class maps (B, K, P): inner products of classes, each row of norm 1."""
    return F.normalize(maps @ maps.mT, dim=-1, eps=EPS)


def gradient_semantics(gradient: Tensor) -> Tensor:
    """(K, C, C) of the gradient of the classifier's weight (K, C): of each class g g^T, each row of norm 1."""
    return F.normalize(gradient.unsqueeze(2) * gradient.unsqueeze(1), dim=-1, eps=EPS)


def classifier_gradient(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(K, C): of the mean cross-entropy of logits (B, K) by the classifier's weight."""
    return torch.autograd.grad(F.cross_entropy(logits, labels), weight)[0]


def distance(of_teacher: Tensor, of_student: Tensor, reduction: Reduction, parts: int) -> Tensor:
    """Of two matrices (..., n, m), the mean over what stands in front.

    Args:
        reduction: `norm`, that of Frobenius; `squared`, its square over `parts`.
        parts: K^2 for classes, B^2 for images, C for gradients.
    """
    gap = of_teacher - of_student
    if reduction == "norm":
        return torch.linalg.matrix_norm(gap).mean()
    return gap.square().sum((-2, -1)).mean() / parts


# -- where a network has its last map -------------------------------------------------------------------------


@dataclass(frozen=True)
class LastMap:
    """Where a classifier has its last feature map.

    Attributes:
        layer: as a signal gives it (`layer:NAME:all`, see `kdhub.named_layers`); where the classifier is given no mean
            of a map, what it is given, a map of one position.
        classifier: the name of the linear layer that gives the logits.
    """

    layer: str
    classifier: str

    def weight(self, module: nn.Module) -> Tensor:
        """(K, C)."""
        return module.get_submodule(self.classifier).weight


def last_map(module: nn.Module, inputs: Mapping[str, Tensor], classes: int) -> LastMap:
    """Find them by running a network: the last layer of so many outputs, and the last map before it with as many
    channels as that takes: (B, C, H, W), or tokens (B, P, C).

    Raises:
        CompatibilityError: no linear classifier, or one that is given several vectors of an image.
    """
    latest: dict[int, str] = {}
    found: list[LastMap] = []

    def look(name: str, layer: nn.Module, given: Any, made: Any) -> None:
        if isinstance(layer, nn.Linear) and layer.out_features == classes:
            if given[0].dim() != 2:
                return
            last = f"{latest[layer.in_features]}:all" if layer.in_features in latest else f"{name}:input"
            found.append(LastMap(f"layer:{last}", name))
        elif isinstance(made, Tensor) and name and made.dim() in (3, 4):
            positions, channels = made.shape[1:] if made.dim() == 3 else (made[0, 0].numel(), made.shape[1])
            if positions > 1:
                latest[channels] = name

    hooks = [
        layer.register_forward_hook(lambda layer, given, made, name=name: look(name, layer, given, made))
        for name, layer in module.named_modules()
    ]
    try:
        with batch_statistics(module), torch.no_grad():
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise CompatibilityError(
            f"a {type(module).__name__} has no linear classifier of {classes} classes on one vector of an image, so "
            "it has no class maps",
            hint="take a network that ends with a linear layer (resnet, residual, vit, mlp, timm:, hf:)",
        )
    return found[-1]


# -- networks without training --------------------------------------------------------------------------------


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms by the batch's own statistics, as fresh ones have no others; all else at rest, as dropout is."""
    was = {part: part.training for part in module.modules()}
    module.eval()
    kept = [(part, part.track_running_stats) for part in was if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for part, _ in kept:
        part.training, part.track_running_stats = True, False  # and what they have learned stays
    try:
        yield
    finally:
        for part, mode in was.items():
            part.training = mode
        for part, tracked in kept:
            part.track_running_stats = tracked


def fresh(student: Student, seed: int, init: str = "default") -> nn.Module:
    """A network of a student's architecture with weights of its own, whatever the student has learned.

    Args:
        init: `default`, the architecture's own; `gaussian`, convolutions and linear layers from N(0, 1) with biases 0.

    Raises:
        CompatibilityError: the architecture of such a student is not known.
    """
    from kdhub_tasks.classification.model import NetworkClassifier

    model = getattr(student.module, "model", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(student, NetworkClassifier):
            made = NetworkClassifier(student.task, student.config).module
        elif hasattr(model, "config") and hasattr(student, "like"):  # of the transformers library
            made = student.like(type(model)(model.config), {}).module
        else:
            raise CompatibilityError(
                f"a {type(student).__name__} cannot be made again with other weights",
                hint="take a built-in network, timm:NAME, or a transformers image classifier (hf:, path:)",
            )
        if init == "gaussian":
            for part in made.modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    nn.init.normal_(part.weight)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
    return made


@dataclass(frozen=True)
class View:
    """What a score compares of a network on a batch: its semantic matrices and its relation matrix."""

    semantic: Tensor | None
    relation: Tensor | None


def view(module: nn.Module, inputs: Mapping[str, Tensor], classes: int, semantic: str, relation: bool) -> View:
    """Of a batch of at least two images, with `labels` where the semantic matrix is of gradients.

    Args:
        semantic: `cam`, `grad`, or `off`.

    Raises:
        CompatibilityError: no class maps (`last_map`), or features of norm 0 or no numbers.
    """
    images = {name: value for name, value in inputs.items() if name != "labels"}
    where = last_map(module, {name: value[:2] for name, value in images.items()}, classes)
    with torch.set_grad_enabled(semantic == "grad"), batch_statistics(module):
        features, logits = _run(module, images, where.layer)
        of_classes = None
        if semantic == "cam":
            of_classes = semantics(class_maps(features, where.weight(module)))
        elif semantic == "grad":
            gradient = classifier_gradient(logits, inputs["labels"], where.weight(module))
            of_classes, features = gradient_semantics(gradient), features.detach()
        of_images = relations(features) if relation else None
    told = [part for part in (of_classes, of_images, features) if part is not None]
    if not all(part.isfinite().all() and part.abs().max() > EPS for part in told):
        raise CompatibilityError("its features on the batch are of norm 0, or no numbers")
    return View(of_classes, of_images)


def _run(module: nn.Module, inputs: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    """The last map (B, C, P) and the logits (B, K)."""
    name, _, what = layer.removeprefix("layer:").rpartition(":")
    kept: list[Tensor] = []
    hook = module.get_submodule(name).register_forward_hook(
        lambda _, given, made: kept.append(given[0] if what == "input" else made)
    )
    try:
        logits = module(inputs)["logits"]
    finally:
        hook.remove()
    made = kept[-1].float()
    return made.mT if made.dim() == 3 else made.flatten(2) if made.dim() == 4 else made.unsqueeze(2), logits.float()


def jacobian_score(module: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """A score without training and without a teacher: how differently a network reacts to different images (NAS
    without training, arXiv:2006.04647v1): with v the eigenvalues of the correlations of d sum(logits) / dx between the
    images of a batch, -sum(log(v + k) + 1 / (v + k)), k = 1e-5. Higher is better; -inf where there is no correlation.
    """
    x = inputs["x"].detach().clone().requires_grad_()
    with torch.enable_grad(), batch_statistics(module):
        jacobian = torch.autograd.grad(module({**inputs, "x": x})["logits"].sum(), x)[0].flatten(1).double()
    return eigenvalue_score(torch.corrcoef(jacobian))


def eigenvalue_score(correlations: Tensor) -> float:
    """-sum(log(v + k) + 1 / (v + k)) over the eigenvalues v of a correlation matrix."""
    if not correlations.isfinite().all():
        return float("-inf")
    values = torch.linalg.eigvalsh(correlations).clamp_min(0) + 1e-5
    return float(-(values.log() + 1 / values).sum())
