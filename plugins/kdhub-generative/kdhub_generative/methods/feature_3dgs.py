"""Feature 3DGS: a 2D model's features distilled into 3D Gaussians (arXiv:2312.03203).

Each Gaussian carries colour and a feature f. Both are composited by the same weights w, and for each view

    L = (1 - l) L1(C, I) + l (1 - SSIM(C, I)) + g L1(D(F), F_t)        C = sum w c        F = sum w f

with F_t the teacher's map, and D what brings the rendered map to its size (bilinear, corner on corner) and, with
`speed_up`, a 1x1 convolution from the feature's width N to the teacher's M. Features begin at zero.

Where the features' gradient goes: the authors' code stops it at the weights, F = sum sg(w) f, so that colours and
geometry are the same with and without them, and g has no effect under Adam; the paper presents a joint optimisation
(`feature_grad_to_geometry`).

Maps are divided by one standard deviation, which the scene keeps; so a teacher of large features does not outweigh the
colours where its gradient reaches geometry.

Departures: `background_feature: learned` adds T_end f_bg, since the original renders F = 0 where nothing is, while a
teacher has features of empty background, which matters for single objects. Without `densify`, the number of Gaussians
stays as it is. Large Gaussians are not pruned by their size on the screen.

The teacher's head, where it has one, is saved with the scene (frozen), to name what is rendered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.method import Method, MethodOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.student import Student
    from kdhub_generative.scenes.gaussians import Gaussians

logger = logging.getLogger("kdhub")

GROWTH, FIRST, LAST = 100, 500, 15_000
"""Steps between densifications, and the first and last of them."""
SMALL, SHRINK, FAINT = 0.01, 1.6, 0.005
"""Largest scale of a clone, as a share of the extent; of a split Gaussian's children; opacity that is pruned."""
RESET, RESET_TO = 3000, 0.01
DEGREES = 1000
"""Steps until a further degree of the harmonics is used."""
END = 0.01
"""Of the position's learning rate, at the last step."""


class Feature3dgs(Method):
    """The scene is fitted to photographs, and its features to the teacher's maps of them."""

    class Options(MethodOptions):
        iterations: int = Field(30_000, ge=1, description="steps, each of one view; 7,000 are typical")
        feature_dim: int | None = Field(
            None, ge=1, description="N, width of a Gaussian's feature; the teacher's, or with speed_up a quarter of it"
        )
        speed_up: bool = Field(False, description="a 1x1 convolution leads from N to the teacher's width")
        feature_weight: float = Field(
            1.0, ge=0, description="g, factor on the term of the features; 0: none are learnt"
        )
        dssim_weight: float = Field(0.2, ge=0, le=1, description="l, share of 1 - SSIM in the term of the colours")
        feature_grad_to_geometry: bool = Field(
            False, description="features move geometry as well, as in the paper; false: as in the authors' code"
        )
        background_feature: Literal["none", "learned"] = Field(
            "none", description="what is behind all: no feature, as in the paper, or one that is learnt"
        )
        densify: bool = Field(True, description="clone, split and prune Gaussians on the way")
        densify_threshold: float = Field(
            2e-4, gt=0, description="mean gradient on the screen from which one is densified"
        )
        query_temperature: float = Field(1.0, gt=0, description="of the softmax over prompts, kept with the scene")
        backend: Literal["torch", "gsplat"] = Field(
            "torch", description="rasteriser; gsplat needs CUDA and its package"
        )
        position_lr: float = Field(
            1.6e-4, gt=0, description="of centres, times the scene's extent; ends at a hundredth"
        )
        colour_lr: float = Field(2.5e-3, gt=0, description="of colours; of their higher harmonics a twentieth")
        opacity_lr: float = Field(0.05, gt=0, description="of opacities")
        scale_lr: float = Field(0.005, gt=0, description="of scales")
        rotation_lr: float = Field(0.001, gt=0, description="of rotations")
        feature_lr: float = Field(0.001, gt=0, description="of features")
        decoder_lr: float = Field(1e-4, gt=0, description="of the 1x1 convolution")

    options: Options
    tiny_recipe = {"options": {"iterations": 6, "densify": False, "background_feature": "learned"}}

    def distill(self, run: RunContext) -> Student:
        import torch

        from kdhub_generative.scenes.fitting import Fitting

        o, scene = self.options, run.student
        rows = run.rows("train")
        examples = rows[range(len(rows))]
        self._checked(scene, examples)
        torch.manual_seed(run.seed)
        self._maps = run.signals(rows, "features")
        self._take_features(run, scene, examples)
        run.mark_start(scene)
        module = scene.module.train()
        module.backend = o.backend
        self._true = [torch.from_numpy(e["image"].astype("float32") / 255) for e in examples]
        self._extent = scene.config.get("extent", 1.0)
        geometry = self._optimiser(module)
        optimisers = {"scene": geometry}
        if module.decoder is not None:
            optimisers["decoder"] = torch.optim.Adam(module.decoder.parameters(), lr=o.decoder_lr)
        counted = {"gradient": torch.zeros(len(module.means)), "seen": torch.zeros(len(module.means))}
        fitting = Fitting({"scene": module}, optimisers, counted)
        views = [e["camera"] for e in examples]

        def step(n: int) -> None:
            at = _turn(run.seed, n, len(views))
            geometry.param_groups[0]["lr"] = o.position_lr * self._extent * END ** (n / o.iterations)
            terms, view = self._terms(module, views[at], at, n)
            sum(terms.values()).backward()
            with torch.no_grad():
                if o.densify:
                    self._grow(run.seed, n, module, geometry, counted, view, views[at])
                for optimiser in optimisers.values():
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
            if n % 50 == 0 or n + 1 == o.iterations:
                loss = {name: round(value.item(), 6) for name, value in terms.items()}
                run.log(step=n + 1, loss=round(sum(loss.values()), 6), terms=loss, gaussians=len(module.means))

        fitting.run(run.folder / "fitting" / "scene.safetensors", o.iterations, step)
        module.eval()
        module.degree = module.settings()["sh_degree"]
        scene.limits = [
            "Features are those of the 2D teacher on the training photographs, averaged over views: what it confuses "
            "in all of them, the scene confuses."
        ]
        return scene

    # -- before -----------------------------------------------------------------------------------------------

    def _checked(self, scene: Any, examples: Sequence[Mapping[str, Any]]) -> None:
        """
        Raises:
            CompatibilityError: the student is no scene of Gaussians. DataError: no point is in front of a camera.
        """
        import torch

        from kdhub_generative.scenes.gaussians import Gaussians
        from kdhub_generative.scenes.splats import NEAR

        o = self.options
        if not isinstance(scene.module, Gaussians):
            raise CompatibilityError("feature-3dgs fits Gaussians", hint="--student gaussians: or gaussians:N")
        means = scene.module.means.detach()
        for camera in (e["camera"] for e in examples):
            depth = means @ torch.tensor(camera.viewmat[2, :3], dtype=means.dtype) + float(camera.viewmat[2, 3])
            if camera.orthographic or (depth > NEAR).any():
                break
        else:
            raise DataError(
                f"all {len(means)} points lie behind each of the {len(examples)} cameras",
                hint="are the cameras in OpenCV axes (x right, y down, z forward), and points in the same world?",
            )
        if o.feature_weight not in (0, 1) and not o.feature_grad_to_geometry:
            logger.warning(
                "feature_weight=%g changes nothing: the features' gradient stops at the weights, and Adam has no "
                "scale; set feature_grad_to_geometry",
                o.feature_weight,
            )

    def _map(self, n: int) -> Tensor:
        """(h, w, channels) of the teacher's map of a view, at its own scale."""
        import numpy as np
        import torch

        given = self._maps[[n]]
        flat, size = np.asarray(given["features"][0]), np.asarray(given["size"][0])
        return torch.from_numpy(flat.reshape(*size).astype(np.float32))

    def _take_features(self, run: RunContext, scene: Any, examples: Sequence[Mapping[str, Any]]) -> None:
        """Room for features, and what they are: the teacher's width, scale and size, its head.

        Raises:
            CompatibilityError: maps of different widths or of sizes that do not fit their pictures, or features of
                another width in the scene to begin with.
        """
        import numpy as np

        from kdhub_generative.scenes.gaussians import Gaussians

        o, old = self.options, scene.module
        old.joint = o.feature_grad_to_geometry
        head = getattr(run.teacher, "head", None)
        size = None
        total = square = count = 0.0
        for n, example in enumerate(examples):
            given = self._map(n)
            cells = [a / b for a, b in zip(given.shape, example["image"].shape[:2])]
            if size is None:
                size, scene.config["cells"] = given.shape, cells
            shape = tuple(round(c * n) for c, n in zip(scene.config["cells"], example["image"].shape[:2]))
            if given.shape[2] != size[2] or max(abs(a - b) for a, b in zip(shape, given.shape)) > 1:
                raise CompatibilityError(
                    f"the feature map of view {n + 1} is {' x '.join(map(str, given.shape))}, and with the first one "
                    f"{' x '.join(map(str, (*shape, size[2])))} is expected",
                    hint="a teacher's maps have one width, and one size in relation to the picture",
                )
            total, square, count = (
                total + float(given.sum()),
                square + float(given.square().sum()),
                count + given.numel(),
            )
        M = int(size[2])
        N = o.feature_dim or (max(1, M // 4) if o.speed_up else M)
        if N > M or (N != M and not o.speed_up):
            raise CompatibilityError(
                f"feature_dim must be at most the teacher's {M}, and less only with speed_up (feature_dim={N}, "
                f"speed_up={o.speed_up})"
            )
        if old.features.shape[1] and old.features.shape[1] != N:
            raise CompatibilityError(f"the scene carries features of {old.features.shape[1]} channels, not {N}")
        if head is not None and head.in_features != M:
            raise CompatibilityError(f"the teacher's head reads {head.in_features} channels, and its maps have {M}")
        settings = old.settings() | {
            "features": N, "decoded": M if o.speed_up else 0, "classes": 0 if head is None else head.out_features,
            "feature_background": o.background_feature == "learned",
            "spread": float(max(np.sqrt(max(square / count - (total / count) ** 2, 0)), 1e-8)),
        }  # fmt: skip
        module = Gaussians(**settings)
        kept = {k: v for k, v in old.state_dict().items() if v.shape == module.state_dict()[k].shape}
        module.load_state_dict(kept, strict=False)
        if head is not None:
            module.head.load_state_dict(head.state_dict())
            scene.config["names"] = list(run.teacher.knows or map(str, range(head.out_features)))
        module.joint = old.joint
        scene.module, scene.config["query_temperature"] = module, o.query_temperature

    def _optimiser(self, module: Gaussians) -> torch.optim.Adam:
        import torch

        o = self.options
        rates = {
            "means": o.position_lr * self._extent, "quats": o.rotation_lr, "scales": o.scale_lr,
            "opacities": o.opacity_lr, "sh0": o.colour_lr, "shN": o.colour_lr / 20, "features": o.feature_lr,
            "feature_background": o.feature_lr,
        }  # fmt: skip
        groups = [
            {"params": [p], "lr": rates[name], "name": name}
            for name, p in module.named_parameters()
            if name in rates and p.numel()
        ]
        return torch.optim.Adam(groups, eps=1e-15)

    # -- a step -----------------------------------------------------------------------------------------------

    def _terms(self, module: Gaussians, camera: Any, at: int, n: int) -> tuple[dict[str, Tensor], Any]:
        from kdhub_generative.scenes.metrics import ssim

        o = self.options
        module.degree = min(n // DEGREES, module.settings()["sh_degree"])
        view, true = module.render(camera), self._true[at]
        terms = {"colour": (1 - o.dssim_weight) * (view.image - true).abs().mean()}
        if o.dssim_weight:
            terms["structure"] = o.dssim_weight * (1 - ssim(view.image, true))
        if o.feature_weight:
            wanted = self._map(at) / module.spread
            given = module.maps(view.features, *wanted.shape[:2])
            terms["features"] = o.feature_weight * (given - wanted).abs().mean()
        return terms, view

    def _grow(
        self, seed: int, n: int, module: Gaussians, optimiser: Any, counted: dict[str, Tensor], view: Any, camera: Any
    ) -> None:
        """Count gradients on the screen; each hundredth step clone, split and prune; each 3,000th have all begin again
        faint."""
        import torch

        from kdhub_generative.scenes.fitting import resized

        render = view.render
        if render.means2d.grad is not None and n < LAST:
            half = torch.tensor([camera.width / 2, camera.height / 2])
            counted["gradient"] += (render.means2d.grad * half).norm(dim=1) * render.visible
            counted["seen"] += render.visible
        if FIRST <= n + 1 <= LAST and (n + 1) % GROWTH == 0:
            mean = counted["gradient"] / counted["seen"].clamp(min=1)
            large = module.scales.exp().amax(1) > SMALL * self._extent
            busy = mean > self.options.densify_threshold
            keep = torch.nonzero(~(busy & large))[:, 0]
            clones, parents = torch.nonzero(busy & ~large)[:, 0], torch.nonzero(busy & large)[:, 0].repeat(2)
            made = grown(module, keep, clones, parents, torch.Generator().manual_seed(seed * 1_000_003 + n))
            left = made["opacities"].sigmoid() >= FAINT
            if not left.any():
                raise DataError("all Gaussians became transparent", hint="lower the learning rates, or densify=false")
            old = len(keep)

            def moments(m: Tensor) -> Tensor:
                fresh = m.new_zeros(len(left) - old, *m.shape[1:])
                return torch.cat([m[keep], fresh])[left]

            for name, value in made.items():
                resized(optimiser, getattr(module, name), value[left], moments)
            counted |= {name: torch.zeros(int(left.sum())) for name in ("gradient", "seen")}
        if (n + 1) % RESET == 0 and n + 1 <= LAST:
            most = torch.logit(torch.tensor(RESET_TO))
            resized(optimiser, module.opacities, module.opacities.clamp(max=float(most)), torch.zeros_like)


def grown(
    module: Gaussians, keep: Tensor, clones: Tensor, parents: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters of those that are kept, copies of the clones, and of each mention of a parent a smaller child at a
    place drawn from it. Children have their parent's features.

    Returns:
        name -> rows, in this order.
    """
    from math import log

    import torch

    from kdhub_generative.scenes.splats import rotations

    of = torch.cat([keep, clones, parents])
    made = {name: getattr(module, name).detach()[of] for name in module.PER}
    first = len(keep) + len(clones)
    drawn = torch.randn(len(parents), 3, generator=generator) * module.scales[parents].exp()
    made["means"][first:] += (rotations(module.quats[parents]) @ drawn[..., None])[..., 0]
    made["scales"][first:] -= log(SHRINK)
    return made


def _turn(seed: int, step: int, views: int) -> int:
    """Which view is looked at: all of them in an order of its own in each pass."""
    import numpy as np

    return int(np.random.default_rng([seed, step // views]).permutation(views)[step % views])
