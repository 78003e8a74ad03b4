"""Heavy labels out (`hello`, arXiv:2408.08201): a small data set whose labels are made, not stored.

1. **Projector.** Low-rank deltas of an image encoder, and of the linear map that begins as its class texts
   (`kdhub_vision.condensed.projector`), are trained on crops of the real images to give the mean of what weak
   classifiers give there: with Y' the mean of their logits,

       MSE(f(x), Y')  +  lambda CE(f(x), y)

2. **Images** as RDED selects them (arXiv:2312.03526): of each class, `crops` patches of each real image; the one that a
   classifier loses least on; the best ipc x factor^2 of these, factor x factor of them in one image.
3. **Pixels**: patches that were made smaller are moved until the adapted encoder sees in them what it sees in the ones
   of full resolution.

What comes out is the data set: images, deltas, texts and the encoder's digest; never a label beyond the class.
`hello-train` learns from it.

Reconstructed: how the two ranks are shared out, that checkpoints are averaged, lambda, the number of pixel steps, and
that the adapted encoder judges the pixels. The encoder's weights stand beside the deltas, so that whoever has the data
set has all of it; their bytes are counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.method import Method, Progress
from kdhub.metric import Measure
from kdhub_vision.methods.hello_train import ViewOptions, Views

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Signals
    from kdhub.student import Student

AT_ONCE = 1000
"""Rows that are read together."""
PROBED = 5000
"""Rows that a linear probe is fitted to, at most."""


class HelloOptions(ViewOptions):
    ipc: int = Field(10, ge=1, le=200, description="images of each class")
    factor: int = Field(2, ge=1, le=3, description="patches along each side of an image")
    crops: int = Field(5, ge=1, le=20, description="patches of each real image to choose from")
    candidates: int = Field(300, ge=1, description="real images of each class that are looked at, at most")
    images: Literal["selected", "random"] = Field(
        "selected", description="patches as RDED chooses them, or whole real images at random, as a control"
    )
    image_update_steps: int = Field(100, ge=0, le=1000, description="steps that move the pixels of small patches")
    rank_encoder: int = Field(8, ge=0, le=256, description="rank of the deltas of the encoder; 0 freezes it")
    rank_linear: int = Field(64, ge=0, le=256, description="rank of the delta of the linear map")
    init_linear: Literal["text", "random", "probe"] = Field(
        "text", description="what the linear map begins as: the class texts, random numbers, or a linear probe"
    )
    prompts: dict[str, str] = Field(default_factory=dict, description="text of each class, instead of the template")
    template: str = Field("a photo of a {}", description="text of a class; {} is its name")
    scale: float = Field(10.0, gt=0, description="factor on the cosine of image and text")
    lambda_ce: float = Field(0.1, ge=0, description="weight of the classes beside the weak classifiers")
    stored_epochs: float = Field(300.0, gt=0, description="epochs for which stored labels would be counted")


class Projector(Views):
    """The first stage."""

    Options = HelloOptions
    options: HelloOptions

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_vision.condensed.projector import label_terms

        return label_terms(student.logits, teacher.of("weak").logits, batch["targets"], self.options.lambda_ce)


class Hello(Method):
    Options = HelloOptions
    options: HelloOptions
    tiny_recipe = {
        "student": "distilled-set",
        "data": {"train": [{"source": "digits", "split": "train", "limit": 160}]},
        "options": {
            "init_linear": "random", "ipc": 1, "factor": 2, "candidates": 4, "crops": 2, "image_update_steps": 2,
            "rank_encoder": 2, "rank_linear": 2,
        },
    }  # fmt: skip

    def distill(self, run: RunContext) -> Student:
        labels = self._labels(run)
        student = run.student = self._begun(run)
        if self.options.rank_encoder or self.options.rank_linear:
            student = run.fit(Projector(self.options, self.spec), student)
        else:
            run.mark_start(student)
        self._errors = self._fill(run, student, labels)
        return student

    @property
    def wanted(self) -> int:
        """How many patches, or whole images, of each class."""
        return self.options.ipc * (self.options.factor**2 if self.options.images == "selected" else 1)

    def _labels(self, run: RunContext) -> np.ndarray:
        """The class of each training row.

        Raises:
            DataError: a class has fewer images than are wanted of it; before anything is trained.
        """
        import numpy as np

        from kdhub_vision.condensed import patches

        o, rows, classes = self.options, run.rows("train"), run.student.classes
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // AT_ONCE))
        labels = np.array([example["label"] for part in parts for example in rows[part]])
        said = f"ipc={o.ipc}, factor={o.factor}" if o.images == "selected" else f"ipc={o.ipc}"
        patches.enough([int((labels == c).sum()) for c in range(len(classes))], classes, self.wanted, said)
        return labels

    def _begun(self, run: RunContext) -> Any:
        """The data set without images, its projector at its start: zero-shot classification."""
        from kdhub_tasks.classification.model import NetworkClassifier

        from kdhub.errors import CompatibilityError
        from kdhub_vision.condensed.student import NETWORK, DistilledSet

        o, classes = self.options, run.student.classes
        encoder = run.teachers["encoder"].model
        if not isinstance(encoder, NetworkClassifier):
            raise CompatibilityError(
                f"the encoder is a {type(encoder).__name__}, which cannot be saved with a data set",
                hint="take a network of kdhub's own (kdhub list networks), such as tiny-clip",
            )
        if list(encoder.config["shape"]) != list(run.student.shape):
            raise CompatibilityError(
                f"the encoder sees images of {encoder.config['shape']}, the training rows have {run.student.shape}",
                hint="bring them to one size: resized:SIZE:DATA",
            )
        config = {
            "network": NETWORK, "shape": encoder.config["shape"], "classes": classes, "encoder": encoder.config,
            "prompts": [o.prompts.get(name) or o.template.format(name) for name in classes],
            "rank_encoder": o.rank_encoder, "rank_linear": o.rank_linear, "init_linear": o.init_linear,
            "scale": o.scale,
        }  # fmt: skip
        views = {"least_area": o.least_area, "flip": o.flip, "cutmix": o.cutmix}
        about = {"task_categories": [run.task.name], "prompts": config["prompts"], "views": views}
        start = {"how": f"an encoder's {o.init_linear} classifier, and no images"}
        import torch

        torch.manual_seed(run.seed)
        student = DistilledSet(run.task.name, config, encoder.module.state_dict(), {}, about, start)
        if o.init_linear == "probe":
            run.student = student
            self._probe(run, student)
        return student

    def _probe(self, run: RunContext, student: Any) -> None:
        """Have W_0 be the weights of a logistic regression on the encoder's directions."""
        import numpy as np
        import torch
        from sklearn.linear_model import LogisticRegression

        rows = run.rows("train")
        examples = rows[rows.some(PROBED)]
        x = student.signals(examples, "features")["features"]
        x = x / (x**2).sum(1, keepdims=True) ** 0.5
        fitted = LogisticRegression(max_iter=1000, fit_intercept=False).fit(x, [e["label"] for e in examples])
        # Of two classes it has one row, their difference.
        of_each = fitted.coef_ if len(fitted.coef_) > 1 else np.concatenate([-fitted.coef_, fitted.coef_]) / 2
        student.module.first[fitted.classes_] = torch.from_numpy(of_each / self.options.scale).float()

    # -- images -----------------------------------------------------------------------------------------------

    def _fill(self, run: RunContext, student: Any, labels: np.ndarray) -> list[tuple[float, float]]:
        """Make the images. Returns the encoder's error on the small patches of each class before and after their pixels
        were moved; none where none were made smaller."""
        import datasets
        import numpy as np
        import torch

        from kdhub_vision.condensed import patches

        o, rows, wanted = self.options, run.rows("train"), self.wanted
        made, errors = [], []
        for c in range(len(student.classes)):
            rng = np.random.default_rng([run.seed, c])
            some = np.sort(rng.permutation(np.flatnonzero(labels == c))[: max(o.candidates, wanted)])
            x = student.collate(rows[some])["x"].contiguous().to(student.device)
            if o.images == "random":
                made.append(x[rng.permutation(len(x))[: o.ipc]].cpu())
                continue
            chosen, boxes = patches.best_crops(
                x, c, o.crops, wanted, o.factor, o.least_area, lambda seen, of: self._losses(run, seen, of), rng
            )
            side = tuple(n // o.factor for n in x.shape[-2:])
            if o.factor > 1:
                whole = patches.crops(x[chosen], boxes)
                small, error = patches.updated(student.module.embed, whole, side, o.image_update_steps)
                errors.append(error)
            else:
                small = patches.crops(x[chosen], boxes)
            made.append(patches.tiled(small, o.factor, tuple(x.shape[-2:])).cpu())
        images = torch.cat(made).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
        names = [name for name in student.classes for _ in range(o.ipc)]
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(student.classes)))
        table = {"image": [_png(image) for image in images], "label": names}
        student.splits["train"] = datasets.Dataset.from_dict(table, features)
        return errors

    def _losses(self, run: RunContext, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the classifier that scores patches: the `scorer`, else the weak ones together."""
        import torch
        from torch.nn.functional import cross_entropy

        from kdhub.ranks import device

        module = run.teachers.get("scorer", run.teachers["weak"]).module.to(device())
        with torch.no_grad():
            given = module({"x": x.to(device())})["logits"].float().cpu()
        return cross_entropy(given, labels, reduction="none")

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also the bytes of images, projector and encoder, and of the labels that are not stored."""
        from kdhub_vision.condensed.projector import stored_label_bytes

        report, images = run.evaluate(student), len(student.splits["train"])
        found = student.bytes_of(run.folder / "student")
        found["stored-label"] = stored_label_bytes(self.options.stored_epochs, images, len(student.classes))
        report.measures += [
            Measure(metric=f"{name}-bytes", value=value, subject="student", unit="bytes", higher_is_better=False,
                    dataset="distilled set", examples=images)
            for name, value in found.items()
        ]  # fmt: skip
        report.notes.append(
            f"beside {found['image']:,} bytes of images, labels come from {found['projector']:,} bytes of deltas, "
            f"whatever the epochs; stored ones of {self.options.stored_epochs:g} epochs would be "
            f"{found['stored-label']:,} (ratio {found['projector'] / found['stored-label']:.2g})"
        )
        if self._errors:
            before, after = (sum(each) / len(self._errors) for each in zip(*self._errors))
            report.notes.append(
                f"moving the pixels of small patches changed what the encoder loses on them from {before:.3g} to "
                f"{after:.3g} (mean squared error)"
            )
        return report


def _png(image: Any) -> dict[str, Any]:
    """An image file, as the `datasets` library has it."""
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}
