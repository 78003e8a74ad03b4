"""Logit distillation of an image classifier, epoch by epoch, beside torchdistill and timm (`make bench-peers`).

ResNet-56 to ResNet-20 for images of 32 x 32, the very same networks and weights
(`kdhub_tasks.classification.networks`), images, order of rows and batches, AdamW, T = 4, float32. kdhub runs as it
does in a recipe: rows from disk, the teacher's logits once through the signal store (in float32, so that losses can
be compared), then training from there. Its first epoch counts all of that: reading the rows, labelling them,
training; not that the data set was opened and its fingerprint taken, once for all of its runs. The others run the
teacher in each step, with images as tensors in memory. Each in a process of its own, in turns; the first batch must
have the same loss. On a busy machine processor time says more than seconds.

    python benchmarks/bench_image_logits.py [--rounds 3] [--threads 2] [--images 2048] [--epochs 3] [--batch 64]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import PEERS, in_turns, record, spread

IMAGE_PEERS = PEERS.parents[2] / "image-peers" / "bin" / "python"
CLASSES, BATCH, TEMPERATURE, ALPHA, LR, DECAY = 10, 64, 4.0, 0.9, 1e-3, 0.01
SCALE = {"mean": [[[0.49]], [[0.48]], [[0.45]]], "std": [[[0.25]], [[0.24]], [[0.26]]]}
JOBS = ("kdhub", "torchdistill", "timm")


def peak() -> float:
    """MB of this process, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """MB of this process now. What the work adds counts from here: a peak of opening models and data would hide a part
    of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Clock:
    """When each epoch ended; the first counts from `start`."""

    def __init__(self) -> None:
        self.before, self.loss = resident(), None
        self.ends, self.cpu_ends = [time.perf_counter()], [time.process_time()]

    def step(self, loss: float) -> None:
        self.loss = loss if self.loss is None else self.loss

    def epoch(self) -> None:
        self.ends.append(time.perf_counter())
        self.cpu_ends.append(time.process_time())

    def found(self) -> dict[str, Any]:
        seconds, cpu = np.diff(self.ends).tolist(), np.diff(self.cpu_ends).tolist()
        return {"seconds": seconds, "cpu": cpu, "mb": peak() - self.before, "mb_whole": peak(), "loss": self.loss}


# -- what all are given ---------------------------------------------------------------------------------------


def prepare(folder: Path, images: int, epochs: int) -> None:
    """Images, the order of rows, and both networks."""
    import torch
    from kdhub_tasks.classification.model import NetworkClassifier

    from kdhub.sampler import ShuffledSampler

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (images, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    pixels = (coarse * 0.7 + rng.integers(0, 77, coarse.shape)).astype(np.uint8)
    np.savez(folder / "train.npz", image=pixels, label=rng.integers(0, CLASSES, images))
    sampler = ShuffledSampler(np.ones(images, np.int32), BATCH, 0)
    np.save(folder / "order.npy", np.stack([sampler.epoch(e) for e in range(epochs)]))
    for name, depth in (("teacher", 56), ("student", 20)):
        torch.manual_seed(depth)
        config = {"network": "resnet", "depth": depth, "shape": [3, 32, 32], "classes": list(map(str, range(CLASSES)))}
        (folder / name).mkdir()
        NetworkClassifier("image-classification", {**config, **SCALE}).save(folder / name)


# -- kdhub ----------------------------------------------------------------------------------------------------


def kdhub(folder: Path, epochs: int) -> dict[str, Any]:
    from kdhub.recipes.chain import resolve_recipe
    from kdhub.recipes.resolve import Resolver
    from kdhub.recipes.run import Run
    from kdhub.training.engine import Engine
    from kdhub.training.session import Session

    recipe = {
        "task": "image-classification", "method": "kd", "seed": 0,
        "teacher": f"path:{folder / 'teacher'}", "student": f"path:{folder / 'student'}",
        "data": {"train": [f"path:{folder / 'train.npz'}"]}, "signals": {"dtype": "float32"},
        "options": {
            "lr": LR, "batch_size": BATCH, "epochs": epochs, "weight_decay": DECAY, "schedule": "constant",
            "temperature": TEMPERATURE, "alpha": ALPHA, "grad_clip": 0, "precision": "float32",
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        resolver = Resolver()
        session = Session(Run.create(Path(made) / "run", resolve_recipe(recipe, resolver=resolver)), resolver)
        session.student, session.teacher.model  # noqa: B018  (made now, as the others have theirs)
        clock = Clock()
        rows = session.method.rows(session)
        read = time.perf_counter()
        stored = session.signals(rows, "logits")
        labelled = time.perf_counter()
        work = Engine(
            session.run, session.method, session.task, session.student,
            extras={}, rows=rows, signals={"logits": stored}, seed=0,
        )  # fmt: skip
        stepped, observed = work.stepped, work.observe

        def after(step: int) -> None:
            stepped(step)
            if (step + 1) % work.steps_per_epoch == 0:
                clock.epoch()

        def seen(step: int, loss: Any, terms: Any) -> None:
            clock.step(loss.item())
            observed(step, loss, terms)

        work.stepped, work.observe = after, seen
        work.train()
    began = clock.ends[0]
    return {**clock.found(), "reading": read - began, "labelling": labelled - read}


# -- the others -----------------------------------------------------------------------------------------------


def networks(folder: Path) -> tuple[Any, Any]:
    """Teacher and student as modules of one tensor that give logits."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugins/kdhub-logits"))  # imports torch alone
    import torch
    from kdhub_tasks.classification.networks import build
    from safetensors.torch import load_file

    class Logits(torch.nn.Module):
        num_classes, in_chans = CLASSES, 3
        pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # the networks scale their inputs themselves

        def __init__(self, name: str):
            super().__init__()
            self.network = build(json.loads((folder / name / "config.json").read_text()))
            self.network.load_state_dict(load_file(folder / name / "model.safetensors"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network({"x": x})["logits"]

    teacher = Logits("teacher").eval().requires_grad_(False)
    return teacher, Logits("student").train()


def tensors(folder: Path) -> Any:
    import torch

    with np.load(folder / "train.npz") as file:
        x = torch.from_numpy(file["image"]).permute(0, 3, 1, 2).float().div_(255).contiguous()
        return torch.utils.data.TensorDataset(x, torch.from_numpy(file["label"]))


class Order:
    """The rows of one epoch after the other, as kdhub draws them."""

    def __init__(self, data: Any, order: np.ndarray):
        self.order, self.epoch = order, 0

    def __iter__(self) -> Any:
        self.epoch += 1
        return iter(self.order[self.epoch - 1].tolist())

    def __len__(self) -> int:
        return self.order.shape[1]


def without_torchvision() -> Any:
    """timm and torchdistill import torchvision, whose package fails beside a torch of another build unless two of its
    operators have a schema. Keep what this gives."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def timm(folder: Path, epochs: int) -> dict[str, Any]:
    kept = without_torchvision()  # noqa: F841
    import torch
    from timm.task import LogitDistillationTask

    teacher, student = networks(folder)
    task = LogitDistillationTask(
        student_model=student, teacher_model=teacher, criterion=torch.nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA, distill_loss_weight=ALPHA, temperature=TEMPERATURE, verbose=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    clock = Clock()
    data = tensors(folder)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=Order(data, np.load(folder / "order.npy")))
    for _ in range(epochs):
        for x, y in loader:
            loss = task(x, y)["loss"]
            clock.step(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clock.epoch()
    return clock.found()


def torchdistill(folder: Path, epochs: int) -> dict[str, Any]:
    kept = without_torchvision()  # noqa: F841
    import logging

    import torch
    import torchdistill.losses.high_level  # noqa: F401
    import torchdistill.losses.mid_level  # noqa: F401
    from torchdistill.core.distillation import DistillationBox

    logging.disable(logging.INFO)
    teacher, student = networks(folder)
    model = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
    paths = {"student_module_path": ".", "student_module_io": "output"}
    paths |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    clock = Clock()
    order = np.load(folder / "order.npy")
    config = {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train", "sampler": {"class_or_func": Order, "kwargs": {"order": order}},
            "kwargs": {"batch_size": BATCH},
        },
        "teacher": {**model, "requires_grad": False}, "student": {**model, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": DECAY, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {
            "criterion": {"key": "KDLoss", "kwargs": {
                **paths, "temperature": TEMPERATURE, "alpha": 1 - ALPHA, "reduction": "batchmean"}},
            "weight": 1.0}}}},
    }  # fmt: skip
    box = DistillationBox(teacher, student, {"train": tensors(folder)}, config, torch.device("cpu"), [], False, 1.0)
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for x, y, extra in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(x, y, extra)
            clock.step(loss.item())
            box.post_forward_process(loss)
        clock.epoch()
    return clock.found()


def main() -> None:
    global BATCH
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=JOBS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH)
    o = parser.parse_args()
    BATCH = o.batch
    if o.job:
        import torch

        torch.set_num_threads(o.threads)
        work = {"kdhub": kdhub, "timm": timm, "torchdistill": torchdistill}[o.job]
        print(json.dumps(work(o.folder, o.epochs)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder, o.images, o.epochs)
        common = ["--folder", str(folder)]
        common += [w for n in ("epochs", "threads", "batch") for w in (f"--{n}", str(getattr(o, n)))]
        jobs = {name: ["--job", name, *common] for name in JOBS if name == "kdhub" or IMAGE_PEERS.exists()}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for _ in range(o.rounds):  # each with an empty store, for the first epoch's sake
            with tempfile.TemporaryDirectory() as home:
                for name, rows in in_turns(
                    __file__, jobs, 1, peers=JOBS[1:], interpreter=IMAGE_PEERS, KDHUB_HOME=home
                ).items():
                    found[name] += rows
    print(f"{o.images} images, {o.epochs} epochs, batches of {o.batch}, {o.threads} threads; images/s, median (range)")
    print(f"{'':14} {'first epoch':28} {'later epochs':28} extra MB, whole MB, first loss")
    ours, ratios = found["kdhub"], {}

    def faster(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
        """Times the images in the same time as these, in pairs."""
        pairs = [(row[key], mine[key]) for row, mine in zip(rows, ours)]
        later = [statistics.median(theirs[1:]) / statistics.median(mine[1:]) for theirs, mine in pairs]
        return {"first": statistics.median(a[0] / b[0] for a, b in pairs), "later": statistics.median(later)}

    for name, rows in found.items():
        first = [o.images / row["seconds"][0] for row in rows]
        later = [o.images / statistics.median(row["seconds"][1:]) for row in rows]
        mb, whole = (statistics.median(row[key] for row in rows) for key in ("mb", "mb_whole"))
        print(f"{name:14} {spread(first):28} {spread(later):28} {mb:.0f}, {whole:.0f}, {rows[0]['loss']:.7g}")
        ratios[name] = {key: faster(rows, key) for key in ("seconds", "cpu")}
        if abs(rows[0]["loss"] - ours[0]["loss"]) > 1e-5 * abs(ours[0]["loss"]):
            print(f"{name}: another loss of the first batch than kdhub's {ours[0]['loss']:.7g}", file=sys.stderr)
    for name, ratio in ratios.items():
        if name != "kdhub":
            wall, cpu = ratio["seconds"], ratio["cpu"]
            print(
                f"kdhub over {name}: {wall['first']:.3g} in the first epoch, {wall['later']:.3g} later; "
                f"by processor time {cpu['first']:.3g}, {cpu['later']:.3g}"
            )
    parts = {key: statistics.median(row[key] for row in ours) for key in ("reading", "labelling")}
    print(f"of kdhub's first epoch: reading {parts['reading']:.2f} s, labelling {parts['labelling']:.2f} s")
    settings = {"images": o.images, "epochs": o.epochs, "batch": o.batch, "threads": o.threads}
    record("image_logits", **settings, rounds=found, faster=ratios)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
