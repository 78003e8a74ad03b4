"""Checks of teachers and students."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np

from kdhub import named_layers
from kdhub.errors import KdhubError
from kdhub.evaluation.counting import count_costs
from kdhub.fields import Field
from kdhub.ranks import device
from kdhub.rows import Signals
from kdhub.student import RELATIONS
from kdhub.teachers.saved import SavedTeacher
from kdhub.testing._bench import Bench
from kdhub.testing._register import check, flat
from kdhub.testing._tried import (
    options_documented,
    same_alone,
    same_in_a_batch,
    students_of,
    teachers_of,
)
from kdhub.training import saved

# -- teachers -------------------------------------------------------------------------------------------------


@check("teacher")
def teacher_options_are_documented(bench: Bench) -> None:
    options_documented(bench)


@check("teacher")
def gives_what_it_declares(bench: Bench) -> None:
    """Each signal has one row an example, the fields and shapes its layout says, and no NaN."""
    for teacher, rows, gives in teachers_of(bench):
        _gives(teacher, rows, gives)


def _gives(teacher: Any, rows: list[Any], gives: Iterable[str]) -> None:
    for kind in gives:
        layout = teacher.layout(kind)
        given = teacher.signals(rows, kind)
        assert set(given) == set(layout), f"{kind} has the fields {sorted(given)}, its layout says {sorted(layout)}"
        for name, shape in layout.items():
            assert len(given[name]) == len(rows), f"{kind}: {len(given[name])} rows of {name} for {len(rows)} examples"
            for value in given[name]:
                if isinstance(value, str):
                    continue
                value = np.asarray(value)
                fixed = shape.shape if isinstance(shape, Field) else tuple(n for n in shape if n is not None)
                assert value.shape[-len(fixed) or value.ndim :] == fixed, (
                    f"{kind}: {name} has the shape {value.shape}, its layout says {shape}"
                )
                assert np.isfinite(value).all(), f"{kind}: {name} is not finite"


@check("teacher")
def equal_examples_get_equal_signals(bench: Bench) -> None:
    """Asked again, in another order and alone, it gives the same."""
    for teacher, rows, gives in teachers_of(bench):
        for kind in gives:
            first, back = teacher.signals(rows, kind), teacher.signals(rows[::-1], kind)
            alone = teacher.signals(rows[:1], kind)
            for name, values in first.items():
                for a, b in [*zip(values, list(back[name])[::-1]), (values[0], alone[name][0])]:
                    same = a == b if isinstance(a, str) else np.allclose(np.asarray(a), np.asarray(b), atol=1e-3)
                    assert same, f"{kind}: {name} of the same example differs between calls"


@check("teacher")
def signals_do_not_depend_on_the_batch(bench: Bench) -> None:
    """Each example's signals are the same alone and beside longer and shorter ones: padding counts nowhere."""
    for teacher, rows, gives in teachers_of(bench):
        for kind in gives:
            same_alone(teacher, rows, kind)


@check("teacher")
def identity_is_stable(bench: Bench) -> None:
    """Two teachers of one source have one identity, of JSON values: stored signals are found by it."""
    for (one, *_), (two, *_) in zip(teachers_of(bench), teachers_of(bench)):
        assert json.loads(json.dumps(one.identity)) == json.loads(json.dumps(two.identity)), "the identity changes"
        assert one.identity, "the identity is empty: another teacher's signals would be taken for its own"


@check("teacher")
def live_teachers_are_networks_at_rest(bench: Bench) -> None:
    """`live=True` means a local network, in eval mode."""
    if not bench.spec.live:
        raise SkipTest("it does not say that its network is local")
    for teacher, *_ in teachers_of(bench):
        assert teacher.module is not None, "the spec says live=True, and there is no module"
        assert not teacher.module.training, "its network is in training mode"


@check("teacher")
def another_precision_gives_the_same_signals(bench: Bench) -> None:
    """A saved teacher whose file has its weights in bfloat16 gives what it gave, up to the rounding, and is another
    teacher to the store."""
    for teacher, rows, _ in teachers_of(bench):
        if not isinstance(teacher, SavedTeacher):
            raise SkipTest("it is not a saved student")
        folder = bench.empty_folder() / "bfloat16"
        in_bfloat16(teacher.folder, folder)
        other = type(teacher)(teacher.argument, teacher.options, task=teacher.task, folder=folder, known=teacher.known)
        assert other.identity != teacher.identity, "another precision is the same teacher to the store"
        assert other.provenance.get("dtype") == "bfloat16", "its provenance does not say in which precision it is"
        kind = teacher.task.primary_signal
        theirs = other.signals(rows, kind)
        for name, values in teacher.signals(rows, kind).items():
            exact, rounded = flat(values), flat(theirs[name])
            worst = float(np.abs(exact - rounded).max() / max(np.abs(exact).max(), 1e-9))
            assert worst < 0.1, f"{name} of the same weights in bfloat16 is {worst:.2g} of the largest away"


def in_bfloat16(source: Path, target: Path) -> None:
    """A copy of a model's folder with its weights in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for file in target.rglob("*.safetensors"):
        weights = {n: t.bfloat16() if t.dtype == torch.float32 else t for n, t in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    for file in target.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if "dtype" in config:  # as the transformers library says it
            file.write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")


# -- students -------------------------------------------------------------------------------------------------


@check("student")
def student_options_are_documented(bench: Bench) -> None:
    if not hasattr(bench.target, "Options"):
        raise SkipTest("it takes no options")
    options_documented(bench)


@check("student")
def exposes_what_it_declares(bench: Bench) -> None:
    """In training its output carries the signals that the spec names, with a gradient; what its start says it is to its
    base model is known to hubs."""
    from accelerate.utils import send_to_device

    for student, rows, task, exposed in students_of(bench):
        relation = student.start.get("relation", RELATIONS[0])
        assert relation in RELATIONS, f"its relation to the base model is {relation!r}, not {', '.join(RELATIONS)}"
        if student.module is None:
            raise SkipTest("it is not a network")
        batch = send_to_device(task.collate(rows, student), device())
        outputs = task.forward(student.module.to(device()).train(), batch)
        missing = [name for name in exposed if name not in outputs]
        assert not missing, f"it does not give {', '.join(sorted(missing))}, only {', '.join(sorted(outputs))}"
        assert isinstance(outputs, Signals)
        for kind in exposed:
            assert outputs[kind] is None or outputs[kind].requires_grad, f"no gradient flows from {kind}"


@check("student")
def layers_are_those_of_their_rows(bench: Bench) -> None:
    """The first module that can be read as `layer:NAME` gives each row the same alone and among longer ones: a batch
    says under `attention_mask` which positions are real."""
    for student, rows, task, _ in students_of(bench):
        if student.module is not None:
            named_layers.run(task, student, rows, [])  # in its first pass a network may look at itself
        for name in dict(student.module.named_modules()) if student.module is not None else ():
            try:
                together = named_layers.run(task, student, rows, [kind := f"layer:{name}"])[kind]
            except KdhubError:
                continue
            for row, value in zip(rows, together):
                (alone,) = named_layers.run(task, student, [row], [kind])[kind]
                assert np.allclose(alone, value, atol=1e-3), f"{kind} of a row differs with the rows beside it"
            return
    raise SkipTest("no module of it can be read")


@check("student")
def equal_seeds_build_equal_students(bench: Bench) -> None:
    import torch

    for (one, *_), (two, *_) in zip(students_of(bench), students_of(bench)):
        if one.module is None:
            raise SkipTest("it is not a network")
        theirs = two.module.state_dict()
        different = [n for n, value in one.module.state_dict().items() if not torch.equal(value, theirs[n])]
        assert not different, f"built twice under one seed it differs in {', '.join(different[:3])}"


@check("student")
def student_saves_and_loads_to_the_same_output(bench: Bench) -> None:
    """Saved in float32 and in bfloat16, the loaded student has the same weights and gives the same; on a CPU bit for
    bit."""
    for student, rows, task, _ in students_of(bench):
        if student.module is None:
            if getattr(student, "splits", None) == {}:
                raise SkipTest("it has no rows yet; checks of methods have those that were filled")
            folder = bench.empty_folder()
            student.save(folder)
            task.load(folder)
            continue
        student.finalise()
        for precision in ("float32", "bfloat16"):
            saved.narrow(student.module, precision)
            folder = bench.empty_folder()
            student.save(folder)
            loaded = task.load(folder)
            with saved.in_float32(student.module), saved.in_float32(loaded.module):
                _same(student, loaded, rows, task.primary_signal, precision)


def _same(student: Any, loaded: Any, rows: list[Any], kind: str, precision: str) -> None:
    mine, theirs = saved.weights(student.module), saved.weights(loaded.module)
    different = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    assert not different, f"saved in {precision} and loaded it has other weights: {', '.join(different[:3])}"
    worst = _far(student.signals(rows, kind), loaded.signals(rows, kind))
    assert worst <= _close(), f"{kind} of the student loaded in {precision} is {worst:.2g} from what was saved"


@check("student")
def outputs_do_not_depend_on_the_batch(bench: Bench) -> None:
    """What it gives for a row, by `signals` and in a batch of training, is the same alone and beside longer rows."""
    for student, rows, task, _ in students_of(bench):
        if student.module is None:
            raise SkipTest("it is not a network")
        same_alone(student, rows, task.primary_signal)
        same_in_a_batch(task, student, rows)


@check("student")
def students_are_saved_without_pickles(bench: Bench) -> None:
    from kdhub.hub.trust import PICKLES

    for student, *_ in students_of(bench):
        folder = bench.empty_folder()
        student.save(folder)
        left = [p.name for p in folder.rglob("*") if p.suffix in (*PICKLES, ".py")]
        assert not left, f"a student folder holds safetensors and configuration, not {', '.join(left)}"


@check("student")
def members_give_what_the_family_gives(bench: Bench) -> None:
    """Of a family of sizes: each member, cut out, and saved and opened, gives what the family gives with it chosen, on
    a CPU bit for bit; it has weights of its own; and members are listed from the smallest to the largest."""
    for family, rows, task, _ in students_of(bench):
        if not family.members:
            raise SkipTest("it is not a family of sizes")
        kind, folder, sizes = task.primary_signal, bench.empty_folder(), []
        family.save(folder)
        opened = task.load(folder)
        assert json.loads(json.dumps(dict(family.members))) == dict(opened.members), "opened it has other members"
        before, whole = saved.weights(family.module), family.signals(rows, kind)
        for name in family.members:
            family.choose(name)
            given = family.signals(rows, kind)
            family.choose(None)
            assert _far(whole, family.signals(rows, kind)) <= _close(), "choose(None) does not undo a choice"
            part, folder = family.cut(name), bench.empty_folder()
            assert not part.members, f"member {name} is a family itself"
            part.save(folder)
            for which, one in (
                ("", part),
                (", opened", task.load(folder)),
                (" of the opened family", opened.cut(name)),
            ):
                far = _far(given, one.signals(rows, kind))
                assert far <= _close(), f"member {name}{which} is {far:.2g} from the family with that member chosen"
            sizes.append(count_costs(part)["parameters"])
            for tensor in part.module.state_dict().values():
                tensor.zero_()
            assert saved.weights(family.module) == before, f"member {name} shares weights with the family"
        assert sizes == sorted(sizes), f"members are not listed from the smallest to the largest: {sizes} parameters"


def _far(mine: Any, theirs: Any) -> float:
    """The largest difference of two signals."""
    return max(float(np.abs(flat(values) - flat(theirs[name])).max()) for name, values in mine.items())


def _close() -> float:
    """The largest difference of two signals that are the same."""
    return 0.0 if device().type == "cpu" else saved.CLOSE
