"""Self-distillation: the specification's numbers, closed forms against iteration, and the facts it calls assertable."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_logits.kernel import kernel
from kdhub_logits.methods import self_distillation
from kdhub_logits.methods.self_distillation import KernelSteps, SelfDistillation, check_steps
from kdhub_tasks.classification.data import change_labels
from kdhub_tasks.classification.model import NetworkClassifier
from told import Told

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.student import BuildContext

DIAGONAL = KernelSteps(np.diag([2.0, 0.5]), np.ones((2, 1)), 0.5)


def fitted(fits) -> list[tuple[float, ...]]:
    return [tuple(fit.fitted.ravel()) for fit in fits]


def approx(value, abs=1e-6):
    return pytest.approx(np.asarray(value), abs=abs)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.5, [(0.8, 0.5), (0.72, 0.375), (0.688, 0.34375), (0.6752, 0.335938)]),
        (0.0, [(0.8, 0.5), (0.64, 0.25), (0.512, 0.125), (0.4096, 0.0625)]),
        (1.0, [(0.8, 0.5)] * 4),
    ],
)
def test_the_diagonal_example_of_the_specification(alpha, expected):
    assert np.asarray(fitted(DIAGONAL.fit(4, alpha))) == approx(expected)
    assert np.asarray(fitted(DIAGONAL.fit(4, [alpha] * 3))) == approx(expected)


def test_the_limit_of_the_specification():
    assert DIAGONAL.limit(0.5).fitted.ravel() == approx([2 / 3, 1 / 3])


def test_the_best_alpha_of_the_specification_and_above_a_grid():
    kernel, y = np.diag([2.0, 0.5]), np.array([[0.7], [0.4]])
    fits = DIAGONAL.fit(4, "optimal", (kernel, y))
    assert [f.alpha for f in fits[1:]] == pytest.approx([0.534620, 0.631416, 0.632490], abs=1e-6)
    expected = [(0.725539, 0.383655), (0.719070, 0.386413), (0.717404, 0.387250)]
    assert np.asarray(fitted(fits[1:])) == approx(expected)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    kernel = np.exp(-np.square(x[:, None] - x[None]).sum(-1))
    train, held = slice(0, 30), slice(30, 40)
    y = np.sin(x) + rng.normal(size=(40, 3))
    ridge, against = KernelSteps(kernel[train, train], y[train], 0.01), kernel[held, train]

    def error(fit) -> float:
        return float(np.square(against @ fit.coefficients - y[held]).mean())

    best = error(ridge.fit(2, "optimal", (against, y[held]))[1])
    grid = [error(ridge.fit(2, a)[1]) for a in np.linspace(0, 1, 101)]
    assert best <= min(grid) + 1e-12 and min(grid) < max(grid)


def toy() -> tuple[KernelSteps, np.ndarray, np.ndarray]:
    x, grid = np.arange(11) / 10, np.arange(101) / 100
    y = np.sin(2 * np.pi * x) + 0.8 * np.cos(3 * np.arange(11))
    kernel = np.exp(-80 * np.square(x[:, None] - x[None]))
    return (
        KernelSteps(kernel, y[:, None], 0.2),
        np.exp(-80 * np.square(grid[:, None] - x[None])),
        np.sin(2 * np.pi * grid),
    )


@pytest.mark.parametrize(
    ("alpha", "expected", "limit"),
    [
        (0.0, [0.05665, 0.03496, 0.04469, 0.06472, 0.08868, 0.11423], 0.49505),
        (0.25, [0.05665, 0.03744, 0.03868, 0.04332, 0.04774, 0.05121], 0.05949),
        (0.35, [0.05665, 0.03898, 0.03873, 0.04093, 0.04289, 0.04425], 0.04642),
    ],
)
def test_the_toy_curve_of_the_specification(alpha, expected, limit):
    ridge, against, truth = toy()

    def error(fit):
        return float(np.square((against @ fit.coefficients).ravel() - truth).mean())

    assert [error(fit) for fit in ridge.fit(6, alpha)] == approx(expected, abs=6e-6)
    if alpha:
        assert error(ridge.limit(alpha)) == approx(limit, abs=6e-6)
        assert np.abs(ridge.step(400, alpha).fitted - ridge.limit(alpha).fitted).max() < 1e-10
    else:
        assert error(ridge.step(4000, alpha)) == approx(limit, abs=6e-6), "the zero function"
    assert ((1 - 0.35) * ridge.shrinkage).max() == pytest.approx(0.589273, abs=1e-6)


def test_closed_forms_are_the_iteration():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(25, 4)), rng.normal(size=(25, 3))
    kernel, lam = x @ x.T, 0.7
    smoother = kernel @ np.linalg.inv(kernel + lam * np.eye(25))
    ridge = KernelSteps(kernel, y, lam)

    def iterate(alphas):
        now = smoother @ y
        for a in alphas:
            now = smoother @ (a * y + (1 - a) * now)
        return now

    for alpha in (0.0, 0.25, 0.35, 0.7, 1.0):
        for tau in (1, 2, 3, 6):
            fit = ridge.step(tau, alpha)
            assert np.abs(fit.fitted - iterate([alpha] * (tau - 1))).max() < 1e-10
            assert np.abs(kernel @ fit.coefficients - fit.fitted).max() < 1e-8, "off-sample form"
    several = [0.2, 0.7, 0.45, 0.9]
    assert np.abs(ridge.fit(5, several)[-1].fitted - iterate(several)).max() < 1e-10


WRONG = [(0, 0.5), (3, [0.5]), (2, 1.5), (2, [-0.1]), ("inf", 0), ("inf", "optimal"), ("inf", [0.5])]


@pytest.mark.parametrize("wrong", WRONG)
def test_options_that_mean_nothing(wrong):
    with pytest.raises(UsageError):
        check_steps(*wrong)


def test_options_that_mean_something():
    assert [check_steps(n, a) for n, a in ((1, "optimal"), (3, [0.0, 1.0]), (4, 0), (2, 1.0), ("inf", 1))] == [
        1, 3, 4, 2, 2
    ]  # fmt: skip


def test_the_best_alpha_may_lie_beyond_what_is_kept():
    """Validation targets far above, and far below, what any mixture of both fits gives."""
    kernel = np.diag([2.0, 0.5])
    for far, kept in ((9.0, 1.0), (-9.0, 0.0)):
        clipped, open_ = (DIAGONAL.fit(2, "optimal", (kernel, np.full((2, 1), far)), clip=c)[1] for c in (True, False))
        d = np.array([0.8 - 0.64, 0.5 - 0.25])
        best = (d * (far - np.array([0.64, 0.25]))).sum() / (d * d).sum()
        assert (clipped.alpha, clipped.best) == (
            kept,
            pytest.approx(best),
        ) and open_.alpha == open_.best == clipped.best
        assert open_.fitted.ravel() == approx([a * (best + (1 - best) * a) for a in (0.8, 0.5)], abs=1e-9)


def test_where_both_fits_are_the_same_the_best_alpha_stays():
    validation = np.diag([2.0, 0.5]), np.ones((2, 1))
    assert DIAGONAL._best(DIAGONAL.targets, validation, 0.3) == 0.3
    assert DIAGONAL._best(DIAGONAL.targets, validation, None) == 1.0
    small = KernelSteps(np.diag([2.0, 0.5]), 1e-6 * np.ones((2, 1)), 0.5)  # small targets are no reason
    fits = small.fit(2, "optimal", (validation[0], 1e-6 * np.array([[0.7], [0.4]])))
    assert fits[1].alpha == pytest.approx(0.534620, abs=1e-6)


def test_a_kernel_that_is_nearly_symmetric_and_nearly_positive():
    skew, even = (
        KernelSteps(np.array(k), np.ones((2, 1)), 0.5) for k in ([[2, 0.2], [0, 0.5]], [[2, 0.1], [0.1, 0.5]])
    )
    assert skew.step(1, 0.5).fitted == approx(even.step(1, 0.5).fitted, abs=1e-9)
    below = KernelSteps(np.diag([2.0, -0.1]), np.ones((2, 1)), 0.5)
    assert below.step(1, 0.5).fitted.ravel() == approx([0.8, 0.0])


def digits(seed: int, noise: float):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order] / 4, y[order]
    _, noisy = change_labels([int(v) for v in y[:700]], noise=noise, noise_kind="random", seed=seed)
    targets = np.eye(10)[noisy] - 0.1
    kernel = np.exp(-0.02 * (np.square(x[:, None, : 500 // 500 * 64] - x[None, :500]).sum(-1)))
    return kernel[:500], targets[:500], (kernel[500:700], targets[500:700]), kernel[700:], y[700:]


def accuracy(fit, against, labels) -> float:
    return float(((against @ fit.coefficients).argmax(1) == labels).mean())


def test_noisy_labels_of_digits_five_seeds():
    """Section 7 of the specification: 40 % random labels, lambda .05."""
    gains = {0.0: [], 0.35: [], "optimal": []}
    for seed in range(5):
        kernel, y, validation, against, labels = digits(seed, 0.4)
        ridge = KernelSteps(kernel, y, 0.05)
        for alpha, found in gains.items():
            fits = ridge.fit(6, alpha, validation)
            found.append(accuracy(fits[-1], against, labels) - accuracy(fits[0], against, labels))
    assert min(gains[0.0]) >= 0.05 and min(gains["optimal"]) >= 0.05
    assert np.mean(gains[0.35]) < np.mean(gains[0.0])


def test_clean_labels_decline_distillation():
    kernel, y, validation, against, labels = digits(0, 0.0)
    fits = KernelSteps(kernel, y, 0.05).fit(3, "optimal", validation)
    assert all(fit.alpha >= 0.95 for fit in fits[1:])


FEATURES = {"form": "features"}


def test_a_run_measures_the_first_fit_and_the_last(tmp_path):
    recipe = {
        "task": "tabular-classification",
        "method": "self-distillation",
        "student": "kernel",
        "data": {
            "train": [{"source": "labels:digits", "options": {"noise": 0.4, "options": FEATURES}, "limit": 500}],
            "validation": [{"source": "digits", "split": "validation", "options": FEATURES}],
        },
        "evaluation": {
            "data": [{"source": "digits", "split": "test", "options": FEATURES}], "cost": False,
        },
        "options": {"lam": 0.05, "gamma": 0.00125, "steps": 6},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    scores = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "accuracy"}
    assert scores["student"] > scores["student-before"] + 0.05
    student = kdhub.load(run.folder)
    assert len(student.module.support) == 500 and [r["step"] for r in run.metrics()] == [1, 2, 3, 4, 5, 6]
    for change, error in (
        ({"student": "mlp:4"}, CompatibilityError),
        ({"data": {**recipe["data"], "validation": []}}, UsageError),
        ({"options": {"backend": "nn"}}, UsageError),
    ):
        with pytest.raises(error):
            kdhub.distill({**recipe, **change}, out=tmp_path / f"wrong-{error.__name__}-{len(str(change))}")


def test_the_networks_objective():
    method = SelfDistillation(SelfDistillation.Options(backend="nn", alpha=0.25, reg_coef=0.5))
    method._weights = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0]])]
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])

    def terms(teacher, label=0):
        batch = {"labels": torch.tensor([label])}
        return method.objective(Signals(logits=s), Signals(teacher), batch, Progress(0, 1, 0.0))

    both = terms({"logits": t})
    # p = (.5, .5); one-hot (1, 0): MSE .25; teacher (.75, .25): MSE .0625
    assert both["labels"].item() == pytest.approx(0.25 * 0.25) and both["teacher"].item() == pytest.approx(
        0.75 * 0.0625
    )
    assert both["weights"].item() == pytest.approx(0.5 * 6.0), "norms, not squared"
    assert terms({})["labels"].item() == pytest.approx(0.25), "the first step learns from labels alone"
    assert terms({"logits": t}, -1)["labels"].item() == 0


# -- a kernel machine, by plain algebra -----------------------------------------------------------------------


def kernel_run(**options):
    """Seven rows of three classes, the last one without a label, and four to validate on."""
    rng = np.random.default_rng(0)
    rows, held = (
        [{"x": x, "label": y} for x, y in zip(rng.normal(size=(len(labels), 2)).astype(np.float32), labels)]
        for labels in ([0, 1, 2, 0, 1, 2, -1], [0, 1, 2, 1])
    )
    config = {"network": "kernel", "shape": [2], "classes": ["a", "b", "c"]}
    student = NetworkClassifier("tabular-classification", config, {"how": "from nothing"})
    options = {"lam": 0.5, "alpha": 0.25, "steps": 3} | options
    return SelfDistillation(SelfDistillation.Options(**options)), Told(student, {"train": rows, "validation": held})


def plain(run, use="train"):
    rows = [row for row in run.of_use[use].examples if row["label"] >= 0]
    return np.stack([row["x"] for row in rows]).astype(float), np.eye(3)[[row["label"] for row in rows]] - 1 / 3


def like(kernel, a, b, gamma=0.5):
    return a @ b.T if kernel == "linear" else np.exp(-gamma * np.square(a[:, None] - b[None]).sum(-1))


@pytest.mark.parametrize(
    "options", [{}, {"kernel": "linear"}, {"gamma": 2.0}, {"steps": "inf"}, {"alpha": [0.9, 0.1]}, {"steps": 1}]
)
def test_a_kernel_machine_by_plain_algebra(options):
    """Gamma is 1 / features unless set; rows without a label are left out; targets are centred, scores are not."""
    method, run = kernel_run(**options)
    made, (x, y), held = method.distill(run), plain(run), plain(run, "validation")[0]
    how = {"kernel": options.get("kernel"), "gamma": options.get("gamma", 0.5)}
    k, steps = like(a=x, b=x, **how), options.get("steps", 3)
    inverse = np.linalg.inv(k + 0.5 * np.eye(6))
    alphas = {"inf": [0.25] * 400, 3: options.get("alpha", [0.25] * 2), 1: []}[steps]
    fits, coefficients = [k @ inverse @ y], [inverse @ y]
    for a in alphas:
        mixed = a * y + (1 - a) * fits[-1]
        fits.append(k @ inverse @ mixed)
        coefficients.append(inverse @ mixed)
    for student, of in ((run.starts[0], coefficients[0]), (made, coefficients[-1])):
        given = student.signals([{"x": row.astype(np.float32)} for row in held], "logits")["logits"]
        assert given == approx(like(a=held, b=x, **how) @ of + 1 / 3, abs=1e-5)
        assert not student.module.training and student.start == {"how": "from nothing"}
    assert made.config["rows"] == 6 and len(run.starts) == 1
    told = [fits[0], fits[-1]] if steps == "inf" else fits
    assert [(line["step"], line["alpha"]) for line in run.lines] == (
        [(1, 1.0), (-1, 0.25)] if steps == "inf" else list(enumerate([1.0, *alphas], 1))
    )
    assert [line["train_mse"] for line in run.lines] == pytest.approx([np.square(f - y).mean() for f in told], abs=1e-7)
    assert all(line["best_alpha"] is None for line in run.lines)


def test_a_machine_without_rows():
    """One stored input, at 0: the default is rbf with gamma 1, and scores are centred at 1 / classes."""
    facts = {"shape": [2, 2], "classes": ["a", "b"], "mean": 0.0, "std": 1.0}
    context = BuildContext(SimpleNamespace(name="tabular-classification"), None, 0, facts=facts)
    made = kernel("", context)
    assert made.network == "kernel" and made.start == {"how": "fresh kernel machine"}
    module, x = made.module, torch.tensor([[[1.0, 0], [0, 0.5]], [[0, 0], [0, 0]]])
    assert module({"x": x})["logits"].tolist() == [[0.5, 0.5]] * 2
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float64}
    module.coefficients.data.copy_(torch.tensor([[1.0, -2.0]]))
    given = module({"x": x})
    near = np.exp(-1.25)
    assert given["logits"].tolist() == [pytest.approx([0.5 + near, 0.5 - 2 * near]), [1.5, -1.5]]
    assert given["features"].tolist() == [[1, 0, 0, 0.5], [0, 0, 0, 0]] and given["logits"].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module({"x": x})["logits"], given["logits"])


def test_the_best_alpha_is_that_of_validation_rows():
    method, run = kernel_run(alpha="optimal")
    method.distill(run)
    (x, y), (held, truth) = plain(run), plain(run, "validation")
    fits = KernelSteps(like("rbf", x, x), y, 0.5).fit(3, "optimal", (like("rbf", held, x), truth))
    assert [line["best_alpha"] for line in run.lines] == [None, *(pytest.approx(f.best, abs=1e-5) for f in fits[1:])]
    method, run = kernel_run(alpha="optimal", clip_alpha=False)
    for row in run.of_use["validation"].examples:
        row["label"] = (row["label"] + 1) % 3  # so that it lies outside
    method.distill(run)
    line = run.lines[1]
    assert line["alpha"] == line["best_alpha"] and not 0 <= line["alpha"] <= 1
    del run.of_use["validation"]
    with pytest.raises(UsageError, match="the recipe has none"):
        method.distill(run)
    kernel_run(alpha="optimal", steps=1)[0].distill(run)  # one fit has no alpha


def test_rows_and_students_that_kernels_do_not_take(monkeypatch):
    method, run = kernel_run()
    monkeypatch.setattr(self_distillation, "ROWS_LIMIT", 6)
    method.distill(run)
    monkeypatch.setattr(self_distillation, "ROWS_LIMIT", 5)
    with pytest.raises(UsageError, match="6 rows are too many"):
        method.distill(run)
    for row in run.of_use["train"].examples:
        row["label"] = -1
    with pytest.raises(UsageError, match="no row has a label"):
        method.distill(run)
    run.student = object()
    with pytest.raises(CompatibilityError, match="makes a kernel machine"):
        method.distill(run)


def test_a_network_is_one_step_a_run():
    class Fits:
        student = "start"

        def fit(self, method, student):
            return method, student

    method = SelfDistillation(SelfDistillation.Options(backend="nn", alpha=0.5))
    assert method.distill(Fits()) == (method, "start")
    assert method.needs(None) == () and method.needs(object()) == ("logits",)
    module = torch.nn.Linear(2, 3)
    method.adapt(type("S", (), {"module": module}), None)
    assert [id(w) for w in method._weights] == [id(w) for w in module.parameters()]
    for alpha in ("optimal", [0.5]):
        with pytest.raises(UsageError, match="one number"):
            SelfDistillation(SelfDistillation.Options(backend="nn", alpha=alpha)).distill(Fits())
    plain = SelfDistillation(SelfDistillation.Options(backend="nn", alpha=0.5, reg_coef=0.0))
    # p = (.2, .6, .2) and thirds; labels 0 and none; the teacher the other way round
    s = torch.tensor([[0.0, np.log(3.0), 0.0], [0.0, 0.0, 0.0]])
    terms = plain.objective(Signals(logits=s), Signals(logits=s.flip(0)), {"labels": torch.tensor([0, -1])}, None)
    assert set(terms) == {"labels", "teacher"}
    assert (terms["labels"].item(), terms["teacher"].item()) == pytest.approx(
        (0.5 * (0.64 + 0.36 + 0.04) / 3, 0.5 * (2 * (0.2 - 1 / 3) ** 2 + (0.6 - 1 / 3) ** 2) / 3)
    )
