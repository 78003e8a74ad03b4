"""Nested slices (`autodistil`): what a step and a search cost, and whether the division into sub-spaces helps.

`step`: forward and backward passes of four members of a family, and of the same four networks alone, in turns;
seconds of the processor.

`members`: held-out relations of 256 members (1 to 4 layers, width 32 to 128, ratio 1 to 4, 1 to 4 heads of 32) on 512
sentences: seconds by the clock and of the processor to run all of them once, and to count what each costs.

`spaces`: a teacher of 4 layers of 64 on sentences. Two sub-spaces of 16 members (1-2 layers, 16-32, ratio 1-2, 1-2
heads; 3-4, 48-64, 3-4, 3-4) of `--steps` each, against one space of all 256 in as many steps, which a member there has
fewer of (`equal`), and in twice as many (`total`, the steps of both sub-spaces together): held-out loss, in thousandths
of each of the 32 nets that both have.

    python benchmarks/bench_nested.py step|members|spaces [--seeds 0 1 2] [--steps 300] [--texts 4000]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import record, spread

import kdhub

LEFT_OUT = ["wikisplit"]
SMALL = {"layers": [1, 2], "hidden": [16, 32], "ratio": [1, 2], "heads": [1, 2]}
LARGE = {"layers": [3, 4], "hidden": [48, 64], "ratio": [3, 4], "heads": [3, 4]}


def texts(many: int, held_out: bool = False) -> dict[str, Any]:
    return {"source": "sentences", "where" if held_out else "exclude": {"source": LEFT_OUT}, "sample": many}


def teacher(out: Path, many: int, size: str) -> str:
    """A small BERT that learned to fill in masked tokens."""
    student = {"source": f"config:{size}", "data": texts(many), "vocabulary": 4000, "max_length": 64}
    run = kdhub.distill(
        {
            "task": "fill-mask", "method": "supervised", "student": student, "data": {"train": [texts(many)]},
            "options": {"lr": 1e-3, "batch_size": 64, "epochs": 2, "warmup": 0.1, "precision": "float32"},
            "evaluation": {"data": [], "cost": False},
        },
        out=out,
    )  # fmt: skip
    return f"path:{run.student_folder}"


def slices(
    out: Path, of: str, spaces: dict[str, Any], many: int, steps: int, seed: int, held_out: int = 128
) -> dict[str, float]:
    """Train a family; the held-out loss of each member, in thousandths."""
    run = kdhub.distill(
        {
            "task": "fill-mask", "method": "autodistil", "teacher": of, "seed": seed,
            "student": {"source": "nested", "spaces": spaces},
            "data": {"train": [texts(many)], "validation": [texts(held_out, held_out=True)]},
            "options": {"max_steps": steps, "epochs": 1000, "lr": 1e-3, "batch_size": 32, "max_flops": None,
                        "max_length": 64, "precision": "float32"},
            "evaluation": {"data": [], "cost": False},
        },
        out=out,
    )  # fmt: skip
    found = json.loads((run.folder / "search.json").read_text())
    return {name.partition("-")[2]: round(1000 * one["loss"], 4) for name, one in found["members"].items()}


def spaces(seeds: list[int], steps: int, many: int) -> None:
    whole = {key: [*SMALL[key], *LARGE[key]] for key in SMALL}
    ways = {
        "two": ({"a": SMALL, "b": LARGE}, steps),
        "equal": ({"one": whole}, steps),
        "total": ({"one": whole}, 2 * steps),
    }
    with tempfile.TemporaryDirectory() as place:
        of = teacher(Path(place) / "teacher", many, "layers=4,width=64,heads=4")
        for seed in seeds:
            found = {
                way: slices(Path(place) / f"{way}-{seed}", of, given, many, most, seed)
                for way, (given, most) in ways.items()
            }
            for name, space in (("small", SMALL), ("large", LARGE)):
                nets = ["{}x{}-r{}-h{}".format(*choice) for choice in itertools.product(*space.values())]
                each = {way: [of[net] for net in nets] for way, of in found.items()}
                means = {way: round(statistics.mean(losses), 3) for way, losses in each.items()}
                better = {way: sum(a < b for a, b in zip(each["two"], each[way])) for way in ("equal", "total")}
                print(
                    f"seed {seed}, {name}: mean {means}, two sub-spaces better in {better} of {len(nets)}", flush=True
                )
                record("nested-spaces", seed=seed, steps=steps, texts=many, space=name, nets=nets, loss=each)


def _family(spaces: dict[str, Any], size: str) -> tuple[Any, Any]:
    """A family of slices of a fresh BERT, and its task."""
    source = {"source": f"nested:untrained:{size}", "spaces": spaces}
    return kdhub.open_student(source, "fill-mask"), kdhub.open_task("fill-mask")


def step() -> None:
    from kdhub_search.families.relations import RELATED, last_attention

    from kdhub.named_layers import Taps

    given = {"a": {"layers": [4, 6], "hidden": [192, 320], "ratio": [4], "heads": [10]}}
    family, task = _family(given, "packaged:all-minilm-l6-v2")
    data = kdhub.open_data(texts(24))
    batch = task.collate(task.preparer(family, None)([{"text": t} for t in data.split("train")["text"]]), family)
    batch = {**batch, "at": batch["at"][:0]}
    alone = [family.module.filled(name).train() for name in family.members]
    taps = [Taps(network, last_attention(network).kinds) for network in alone]

    def shared() -> None:
        family.module.zero_grad(set_to_none=True)
        for name in family.members:
            family.choose(name)
            out = family.module(batch)
            sum(out[kind].square().mean() for kind in RELATED).backward()

    def apart() -> None:
        for network, tap in zip(alone, taps):
            network.zero_grad(set_to_none=True)
            with tap.reading():
                network(batch)
            sum(x.square().mean() for x in tap.signals(batch).values()).backward()

    took: dict[str, list[float]] = {"family": [], "alone": []}
    for _ in range(4):
        for name, work in (("family", shared), ("alone", apart)):
            began = time.process_time()
            work()
            took[name].append(time.process_time() - began)
    ratios = [a / b for a, b in zip(took["family"][1:], took["alone"][1:])]
    print("family / alone:", spread(ratios))
    record("nested-step", ratios=ratios)


def members() -> None:
    from kdhub_search.methods.autodistil import AutoDistil

    took: dict[str, list[float]] = {}

    def timed(name: str) -> None:
        own = getattr(AutoDistil, name)

        def work(*given: Any) -> Any:
            began = time.monotonic(), time.process_time()
            made = own(*given)
            seconds = time.monotonic() - began[0], time.process_time() - began[1]
            took.setdefault(name, [round(one, 1) for one in seconds])  # a later call finds what the first one kept
            return made

        setattr(AutoDistil, name, work)

    timed("_held_out")
    timed("_costs")
    with tempfile.TemporaryDirectory() as place:
        given = {
            "a": {"layers": [1, 2, 3, 4], "hidden": [32, 64, 96, 128], "ratio": [1, 2, 3, 4], "heads": [1, 2, 3, 4]}
        }
        of = teacher(Path(place) / "teacher", 1000, "layers=4,width=128,heads=4")
        slices(Path(place) / "family", of, given, 1000, 1, 0, 512)
    print("256 members, seconds by the clock and of the processor: on 512 texts", took["_held_out"], ", counted",
          took["_costs"])  # fmt: skip
    record("nested-members", texts=512, held_out=took["_held_out"], counted=took["_costs"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("step", "members", "spaces"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--texts", type=int, default=4000)
    given = parser.parse_args()
    if given.part == "spaces":
        spaces(given.seeds, given.steps, given.texts)
    else:
        {"step": step, "members": members}[given.part]()
