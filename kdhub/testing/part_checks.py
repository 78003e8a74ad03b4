"""Checks of everything that is not a method: light declaration for all, then each kind's own."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np

from kdhub import named_layers
from kdhub.data.dataset import Data, DataOptions
from kdhub.data.prepare import named_rows
from kdhub.dataset_student import DatasetStudent
from kdhub.errors import KdhubError, TeacherError
from kdhub.evaluation.evaluator import Evaluator, student_encoder
from kdhub.fields import Field
from kdhub.plugins.discovery import CORE
from kdhub.ranks import device
from kdhub.recipes.folders import tasks_of
from kdhub.recipes.recipe import Recipe, Ref
from kdhub.recipes.resolve import Resolver
from kdhub.rows import Signals
from kdhub.sampler import Sampler, Seen
from kdhub.specs import SPECS
from kdhub.student import BuildContext
from kdhub.task import NetworkTask
from kdhub.teachers.saved import SavedTeacher
from kdhub.testing._bench import Bench
from kdhub.testing._register import check, describe_options, flat
from kdhub.training import saved

HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "pydantic", "datasets", "sklearn", "pandas", "jax")
"""What declaring may not import: `kdhub list` would wait for it."""

DECLARE = """
import importlib, json, sys
target, _, attribute = sys.argv[1].partition(":")
plugin = importlib.import_module(target)
plugin = getattr(plugin, attribute) if attribute else plugin
for hook in json.loads(sys.argv[2]):
    list(getattr(plugin, hook, tuple)() or ())
print(json.dumps([name for name in json.loads(sys.argv[3]) if name in sys.modules]))
"""


@check("plugin")
def declares_lightly(bench: Bench) -> None:
    """Importing the module with the hooks, and reading its specs, imports nothing heavy."""
    hooks = [*(f"kdhub_{kind}s" for kind in SPECS), "kdhub_catalogs"]
    done = bench.group.child("-c", DECLARE, bench.record.target, json.dumps(hooks), json.dumps(HEAVY))
    assert done.returncode == 0, f"it cannot be imported alone: {done.stderr.strip().splitlines()[-1]}"
    heavy = json.loads(done.stdout.splitlines()[-1])
    assert not heavy, f"{bench.record.target} imports {', '.join(heavy)}; import them where they are used"


@check("plugin")
def states_its_range_of_kdhub(bench: Bench) -> None:
    """Its distribution depends on kdhub with an upper bound, so that a later contract does not break it silently."""
    from importlib.metadata import PackageNotFoundError, requires

    if bench.entry.distribution == CORE:
        raise SkipTest("it is kdhub itself")
    try:
        stated = [r for r in requires(bench.entry.distribution) or () if re.match(r"kdhub(?![\w-])", r)]
    except PackageNotFoundError:
        raise SkipTest("it is not installed as a distribution") from None
    assert stated, "it does not depend on kdhub"
    assert any("<" in r or "==" in r or "~=" in r for r in stated), f"{stated[0]!r} has no upper bound"


@check(*SPECS)
def target_can_be_loaded(bench: Bench) -> None:
    """The code that the spec names is there, and the spec has a summary."""
    bench.target  # noqa: B018
    assert bench.spec.summary.strip(), "the spec has no summary"


# -- teachers -------------------------------------------------------------------------------------------------


@check("teacher")
def teacher_options_are_documented(bench: Bench) -> None:
    _options_documented(bench)


@check("teacher")
def gives_what_it_declares(bench: Bench) -> None:
    """Each signal has one row an example, the fields and shapes its layout says, and no NaN."""
    for teacher, rows, gives in _teachers(bench):
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
    for teacher, rows, gives in _teachers(bench):
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
    for teacher, rows, gives in _teachers(bench):
        for kind in gives:
            _same_alone(teacher, rows, kind)


@check("teacher")
def identity_is_stable(bench: Bench) -> None:
    """Two teachers of one source have one identity, of JSON values: stored signals are found by it."""
    for (one, *_), (two, *_) in zip(_teachers(bench), _teachers(bench)):
        assert json.loads(json.dumps(one.identity)) == json.loads(json.dumps(two.identity)), "the identity changes"
        assert one.identity, "the identity is empty: another teacher's signals would be taken for its own"


@check("teacher")
def live_teachers_are_networks_at_rest(bench: Bench) -> None:
    """`live=True` means a local network, in eval mode."""
    if not bench.spec.live:
        raise SkipTest("it does not say that its network is local")
    for teacher, *_ in _teachers(bench):
        assert teacher.module is not None, "the spec says live=True, and there is no module"
        assert not teacher.module.training, "its network is in training mode"


@check("teacher")
def another_precision_gives_the_same_signals(bench: Bench) -> None:
    """A saved teacher whose file has its weights in bfloat16 gives what it gave, up to the rounding, and is another
    teacher to the store."""
    for teacher, rows, _ in _teachers(bench):
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
    _options_documented(bench)


@check("student")
def exposes_what_it_declares(bench: Bench) -> None:
    """In training its output carries the signals that the spec names, with a gradient."""
    from accelerate.utils import send_to_device

    for student, rows, task, exposed in _students(bench):
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
    for student, rows, task, _ in _students(bench):
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

    for (one, *_), (two, *_) in zip(_students(bench), _students(bench)):
        if one.module is None:
            raise SkipTest("it is not a network")
        theirs = two.module.state_dict()
        different = [n for n, value in one.module.state_dict().items() if not torch.equal(value, theirs[n])]
        assert not different, f"built twice under one seed it differs in {', '.join(different[:3])}"


@check("student")
def student_saves_and_loads_to_the_same_output(bench: Bench) -> None:
    """Saved in float32 and in bfloat16, the loaded student has the same weights and gives the same; on a CPU bit for
    bit."""
    for student, rows, task, _ in _students(bench):
        if student.module is None:
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
    close = 0.0 if device().type == "cpu" else saved.CLOSE
    for name, values in student.signals(rows, kind).items():
        worst = float(np.abs(flat(values) - flat(loaded.signals(rows, kind)[name])).max())
        assert worst <= close, f"{name} of the student loaded in {precision} is {worst:.2g} from what was saved"


@check("student")
def outputs_do_not_depend_on_the_batch(bench: Bench) -> None:
    """What it gives for a row, by `signals` and in a batch of training, is the same alone and beside longer rows."""
    for student, rows, task, _ in _students(bench):
        if student.module is None:
            raise SkipTest("it is not a network")
        _same_alone(student, rows, task.primary_signal)
        _same_in_a_batch(task, student, rows)


@check("student")
def students_are_saved_without_pickles(bench: Bench) -> None:
    from kdhub.hub.trust import PICKLES

    for student, *_ in _students(bench):
        folder = bench.empty_folder()
        student.save(folder)
        left = [p.name for p in folder.rglob("*") if p.suffix in (*PICKLES, ".py")]
        assert not left, f"a student folder holds safetensors and configuration, not {', '.join(left)}"


# -- data sets ------------------------------------------------------------------------------------------------


@check("dataset")
def rows_are_there_and_stay_the_same(bench: Bench) -> None:
    """Each split has rows, opened twice they are equal, and the splits that the spec names are there."""
    one, two = _data(bench), _data(bench)
    splits = one.splits if not callable(getattr(one, "splits", None)) else one.splits()
    missing = set(bench.spec.splits) - set(splits)
    assert not missing, f"the spec names the splits {', '.join(sorted(missing))}, which are not there"
    for split in splits:
        assert len(one.split(split)), f"split {split!r} is empty"
        assert one.fingerprint(split) == two.fingerprint(split), f"split {split!r} has other rows each time"


@check("dataset")
def unknown_data_options_are_refused(bench: Bench) -> None:
    try:
        _data(bench, no_such_option=1)
    except KdhubError:
        return
    raise AssertionError("an unknown option is accepted")


# -- tasks ----------------------------------------------------------------------------------------------------


@check("task")
def task_is_whole(bench: Bench) -> None:
    """Its name is the spec's, and each primary metric is registered for it."""
    assert bench.target.name == bench.entry.name, f"the class calls itself {bench.target.name!r}"
    known = {e.name for e in bench.registry.all("metric", bench.entry.name)}
    missing = set(bench.target.primary.values()) - known
    assert not missing, f"no metric is called {', '.join(sorted(missing))}"
    if issubclass(bench.target, NetworkTask):
        assert bench.target.primary_signal in bench.spec.signals, "its primary signal is not among those of its spec"


@check("task")
def traits_are_true(bench: Bench) -> None:
    """With the trait `classes`, the training loss of any soft target can be computed: a batch has `labels`, `logits`
    have a row for each of them, and `counts` says how many there are. With the trait `rows`, students are rows."""
    if not {"classes", "rows"} & set(bench.spec.traits):
        raise SkipTest("it has neither the trait classes nor the trait rows")
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    student = _start(resolver, task, recipe, parts)
    if "rows" in bench.spec.traits:
        assert isinstance(student, DatasetStudent), f"its student is a {type(student).__name__}, not a DatasetStudent"
        return
    batch = task.collate(_examples(task, parts, student, None), student)
    where = device()
    moved = {name: value.to(where) if hasattr(value, "to") else value for name, value in batch.items()}
    logits = task.forward(student.module.to(where), moved).logits
    assert len(batch["labels"]) == len(logits), f"{len(batch['labels'])} labels for {len(logits)} rows of logits"
    counts = task.counts(batch)
    assert counts.get("positions") == len(logits), f"counts says {counts.get('positions')} positions, not {len(logits)}"
    labelled = int((batch["labels"] >= 0).sum())
    assert counts.get("labels") == labelled, f"counts says {counts.get('labels')} labels, not {labelled}"


@check("task")
def models_do_not_see_the_batch(bench: Bench) -> None:
    """So do the student and the teacher of its tiny recipe."""
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    if not isinstance(task, NetworkTask):
        raise SkipTest("its models are not networks")
    student = _start(resolver, task, recipe, parts)
    rows = _examples(task, parts, student, None)
    _same_alone(student, rows, task.primary_signal)
    _same_in_a_batch(task, student, rows)
    if recipe.teacher is not None:
        teacher = resolver.teacher(recipe.teacher, task.name)
        _same_alone(teacher, _examples(task, parts, None, teacher), task.primary_signal)


@check("task")
def texts_end_where_the_model_says(bench: Bench) -> None:
    """Where models write texts: one more end token in a teacher's `generation_config.json` ends them, and is no part of
    them."""
    if "text" not in bench.spec.writes:
        raise SkipTest("its models write no texts")
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    folder = bench.empty_folder() / "teacher"
    shutil.copytree(resolver.teacher(recipe.teacher, task.name).folder, folder)

    def written() -> tuple[Any, list[tuple[str, bool]]]:
        teacher = resolver.teacher(Ref(source=f"path:{folder}"), task.name)
        given = teacher.signals(
            _examples(task, parts, None, teacher, prompts=8), 'text:{"max_new_tokens":8,"temperature":1}'
        )
        texts = [bytes(text).decode(errors="replace") for text in given["text"]]
        return teacher.tokenizer, list(zip(texts, map(bool, given["ended"])))

    tokenizer, before = written()
    tokens = {c: tokenizer(c, add_special_tokens=False)["input_ids"] for text, _ in before for c in text if c.isalnum()}
    letter, (end,) = next((c, ids) for c, ids in tokens.items() if len(ids) == 1)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    ends = np.atleast_1d(settings.get("eos_token_id") or []).astype(int).tolist()
    file.write_text(json.dumps({**settings, "eos_token_id": [*ends, end]}))
    for (whole, _), (text, ended) in zip(before, written()[1]):
        if letter in whole:
            assert (text, ended) == (whole.partition(letter)[0], True), f"{whole!r} goes on after its end {letter!r}"


@check("task")
def names_decide_classes(bench: Bench) -> None:
    """With the trait `named-classes`, rows score alike whether their labels are texts, or numbers of a file that lists
    the names in another order than the model."""
    import datasets

    if "named-classes" not in bench.spec.traits:
        raise SkipTest("it does not have the trait named-classes")
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    student = _start(resolver, task, recipe, parts)
    evaluator = Evaluator(task, resolver, recipe.evaluation, resolver.evaluation_options(task, recipe))
    metrics = [e for e in bench.registry.all("metric", bench.entry.name) if not e.spec.fidelity and not e.spec.rows]
    for data, split in evaluator.data:
        rows, known, names = list(named_rows(data.split(split))), set(student.classes), student.classes[::-1]
        column = next((c for c in rows[0] if all(_names(row[c]) <= known for row in rows)), None)
        assert column, f"no column of the tiny recipe has labels among the classes {', '.join(student.classes[:6])}"
        kind, found = datasets.ClassLabel(names=names), []
        for of, value in ((datasets.Value("string"), str), (kind, kind.str2int)):
            given = [{**row, column: _each(row[column], lambda label, value=value: value(str(label)))} for row in rows]
            features = data.split(split).features.copy()
            features[column] = datasets.List(of) if isinstance(rows[0][column], list) else of
            made = datasets.Dataset.from_list(given, features=features)
            outputs = task.outputs(student_encoder(task, student), Data.from_dataset("rows", {split: made}), split)
            found.append({entry.name: bench.registry.load(entry)(outputs) for entry in metrics})
        assert found[0] == found[1], f"as texts the rows score {found[0]}, as numbers with names {found[1]}"


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A label, or each of a list, changed."""
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _names(value: Any) -> set[str]:
    return set(map(str, value)) if isinstance(value, list) else {str(value)}


@check("task")
def saved_students_are_recognised(bench: Bench) -> None:
    """A bare folder of one of its students is opened by its own format, or is one of several that it might be."""
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    if recipe.student is None:
        raise SkipTest("the tiny recipe names no student")
    folder = bench.empty_folder()
    _start(resolver, task, recipe, parts).save(folder)
    sure, possible = tasks_of(folder, bench.registry)
    if not bench.spec.formats and not sure:
        raise SkipTest("its spec names no formats")
    assert bench.entry.name in (*sure, *possible), f"its student looks like one for {', '.join(sure) or 'no task'}"


@check("task")
def opens_the_starts_that_it_names(bench: Bench) -> None:
    """A student of each task in `starts` is one of its own after `open`."""
    if not bench.spec.starts:
        raise SkipTest("it opens students of its own task alone")
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    for name in bench.spec.starts:
        folder = bench.empty_folder()
        _start(*_world(bench, name)).save(folder)
        student = task.open(folder, _context(resolver, task, recipe, parts), {"how": name})
        outputs = task.forward(student.module, task.collate(_examples(task, parts, student, None), student))
        assert student.task == task.name, f"what it opens of {name} is a student for {student.task}"
        assert task.primary_signal in outputs, f"what it opens of {name} gives no {task.primary_signal}"


@check("task")
def shows_its_examples(bench: Bench) -> None:
    """With the trait `shown`, every example is some texts by name."""
    if "shown" not in bench.spec.traits:
        raise SkipTest("it does not have the trait shown")
    resolver, task, recipe, parts = _world(bench, bench.entry.name)
    for example in _examples(task, parts, _start(resolver, task, recipe, parts), None):
        texts = task.shown(example)
        assert texts and all(isinstance(text, str) and text for text in texts.values()), f"it shows {texts}"


@check("task")
def evaluation_options_are_documented(bench: Bench) -> None:
    problems = describe_options(bench.target.EvaluationOptions)
    assert not problems, "; ".join(problems)


@check("task")
def has_a_tiny_recipe(bench: Bench) -> None:
    """`tiny_recipe` names a student, training rows and data to score on; methods for this task are tried on it."""
    tiny = bench.tiny(bench.entry.name)
    assert tiny is not None, "it has no tiny_recipe(): methods for this task cannot be checked"
    assert tiny.get("student") and tiny.get("data") and tiny.get("evaluation", {}).get("data"), sorted(tiny)


# -- samplers -------------------------------------------------------------------------------------------------

LENGTHS = np.asarray([3 + (7 * i) % 11 for i in range(40)], np.int32)


@check("sampler")
def selects_different_rows(bench: Bench) -> None:
    """A rule of active learning gives as many different rows as asked for, all where there are no more, the same from
    the same generator."""
    if not bench.spec.selects:
        raise SkipTest("it orders training rows")
    rng = np.random.default_rng(0)
    pool = Seen(rng.dirichlet(np.ones(4), 30), rng.normal(size=(30, 6)))
    labelled = Seen(rng.dirichlet(np.ones(4), 5), rng.normal(size=(5, 6)), rng.integers(4, size=5))
    for n in (1, 7, 30, 50):
        first, second = (bench.target(pool, labelled, n, np.random.default_rng(1)).tolist() for _ in range(2))
        assert first == second, "one generator gives two choices"
        assert len(set(first)) == len(first) == min(n, 30), f"{len(set(first))} different rows of {n} asked for"
        assert set(first) <= set(range(30)), f"rows {sorted(set(first) - set(range(30)))} are not in the pool"


@check("sampler")
def gives_whole_batches_of_rows(bench: Bench) -> None:
    for batch in (1, 8, 16):
        rows = [int(i) for i in _sampler(bench, batch).epoch(0)]
        assert rows and len(rows) % batch == 0, f"{len(rows)} rows are not whole batches of {batch}"
        assert min(rows) >= 0 and max(rows) < len(LENGTHS), f"row {max(rows)} of {len(LENGTHS)}"


@check("sampler")
def order_follows_the_seed(bench: Bench) -> None:
    def order(seed: int) -> list[int]:
        return [int(i) for number in range(3) for i in _sampler(bench, 8, seed).epoch(number)]

    assert order(1) == order(1), "one seed gives two orders"


@check("sampler")
def sampler_state_comes_back(bench: Bench) -> None:
    """What it learned from losses is in `state`, as JSON values: another one that takes it goes on alike."""
    one = _sampler(bench, 8)
    for step in range(3):
        list(one.epoch(step))
        one.observe(step, {"loss": 1.0 / (step + 1)})
    two = _sampler(bench, 8)
    two.load_state(json.loads(json.dumps(one.state())))
    assert [int(i) for i in one.epoch(3)] == [int(i) for i in two.epoch(3)], "with its state back the order is another"


# -- metrics --------------------------------------------------------------------------------------------------


@check("metric")
def scores_are_numbers(bench: Bench) -> None:
    """On the outputs of its tasks' tiny recipes it gives one finite number, the same twice."""
    spec, found = bench.spec, False
    if spec.files:
        raise SkipTest("it reads a student's files; the check evaluation_is_complete_and_true of methods has them")
    for task in bench.task_names:
        for outputs, form in _outputs(bench, task) if bench.tiny(task) else ():
            if spec.forms and form not in spec.forms:
                continue
            values = [bench.target(outputs, outputs) if spec.fidelity else bench.target(outputs) for _ in range(2)]
            if values[0] is None:
                continue
            found = True
            assert math.isfinite(values[0]), f"it gives {values[0]}"
            assert values[0] == values[1], "it gives another number each time"
    if not found:
        raise SkipTest("no tiny recipe of its tasks has rows that it means something for")


# -- what they share ------------------------------------------------------------------------------------------


def _options_documented(bench: Bench) -> None:
    problems = describe_options(bench.target.Options) if hasattr(bench.target, "Options") else []
    assert not problems, "; ".join(problems)


def _source(bench: Bench, key: str, task: str) -> dict[str, Any]:
    """What to build: the spec's example, or what the tiny recipe has when it is of this kind."""
    if bench.spec.example:
        return {"source": f"{bench.entry.name}:{bench.spec.example}"}
    if not bench.spec.argument:
        own = getattr(bench.target, "tiny_options", None)
        return {"source": bench.entry.name, **(own(bench.tiny(task)) if own else {})}
    for given in map(bench.tiny(task).get, (key, "teacher")):  # a folder that is a teacher is a start as well
        given = {"source": given} if isinstance(given, str) else given
        if given and given["source"].partition(":")[0] == bench.entry.name:
            return given if key == "teacher" else {"source": given["source"]}
    raise SkipTest(f"its spec gives no example of {bench.spec.argument}, and the tiny recipe has none")


def _same_alone(model: Any, rows: list[Any], kind: str) -> None:
    """Signals of all rows together, the longest first, and of each alone."""
    rows = sorted(rows, key=lambda row: -row["length"])
    for name, values in model.signals(rows, kind).items():
        for row, value in zip(rows, values):
            _equal_apart(value, model.signals([row], kind)[name][0], f"{kind}: {name}")


def _same_in_a_batch(task: Any, student: Any, rows: list[Any]) -> None:
    """A forward pass of all rows, and of each alone: one row after the other, where rows have several outputs."""
    import torch
    from accelerate.utils import send_to_device

    module, kind = student.module.to(device()).eval(), task.primary_signal

    def given(some: list[Any]) -> Any:
        with torch.no_grad():
            return task.forward(module, send_to_device(task.collate(some, student), device()))[kind].float().cpu()

    _equal_apart(given(rows).numpy(), torch.cat([given([row]) for row in rows]).numpy(), f"{kind} of a forward pass")


def _equal_apart(beside: Any, alone: Any, what: str) -> None:
    if isinstance(alone, str):
        assert beside == alone, f"{what} of an example depends on the examples beside it"
        return
    beside, alone = np.asarray(beside, np.float64), np.asarray(alone, np.float64)
    assert beside.shape == alone.shape, f"{what} has the shape {alone.shape} alone and {beside.shape} beside others"
    most = np.abs(alone).max(initial=0.0)  # arithmetic may be bfloat16
    worst = np.abs(beside - alone).max(initial=0.0)
    assert worst <= 1e-2 * most + 1e-6, f"{what} of an example depends on the examples beside it, by {worst:.2g}"


def _parts(task: Any, recipe: Recipe, resolver: Resolver) -> list[tuple[Data, str]]:
    parts = []
    for ref in recipe.data["train"]:
        data = resolver.data(ref)
        parts.append((data, data.pick("train")))
    return parts


def _world(bench: Bench, task_name: str) -> tuple[Resolver, Any, Recipe, list[tuple[Data, str]]]:
    """Resolver, task, the tiny recipe and its training data."""
    resolver = Resolver(bench.registry)
    task = resolver.task(task_name)
    recipe = Recipe.model_validate({**bench.tiny(task_name), "task": task_name, "method": "none"})
    return resolver, task, recipe, _parts(task, recipe, resolver)


def _examples(task: Any, parts: list[tuple[Data, str]], student: Any, teacher: Any, **settings: Any) -> list[Any]:
    """Rows as a network of the task takes them; none of a task without networks, or of a student that answers none."""
    if not isinstance(task, NetworkTask) or (student is not None and not student.answers):
        return []
    table = task.training_table(parts)
    columns = table[: min(8, len(table))]
    return task.preparer(student, teacher, **settings)(
        [dict(zip(columns, values)) for values in zip(*columns.values())]
    )


def _tasks(bench: Bench, declared: tuple[str, ...] | None) -> list[str]:
    """The tasks to try a kind of model on: one, but all where what it gives is that of the task."""
    if declared is not None:
        return [bench.task]
    return [name for name in bench.task_names if bench.tiny(name) is not None]


def _tried(bench: Bench, declared: tuple[str, ...] | None, build: Callable[[str], Any]) -> Iterator[Any]:
    """What `build` gives for each task.

    Raises:
        SkipTest: it cannot be built for any of them.
    """
    reason, built = "no task has a tiny recipe", False
    for name in _tasks(bench, declared):
        try:
            made = build(name)
        except SkipTest as skipped:
            reason = str(skipped)
            continue
        built = True
        yield made
    if not built:
        raise SkipTest(reason)


def _laid_out(teacher: Any, kind: str) -> bool:
    try:
        return kind in teacher.layout(kind)
    except TeacherError:
        return False


def _teachers(bench: Bench) -> Iterator[tuple[Any, list[Any], list[str]]]:
    """Teachers of this kind, some rows for each, and the signals that each gives."""

    def build(name: str) -> tuple[Any, list[Any], list[str]]:
        resolver, task, _, parts = _world(bench, name)
        teacher = resolver.teacher(_ref(bench, "teacher", name), task.name)
        given = bench.spec.gives
        if given is None:  # what the task's models may give, as far as this one does
            of_task = bench.registry.find("task", name).spec
            given = [kind for kind in of_task.signals if _laid_out(teacher, kind)]
            assert task.primary_signal in given, f"a saved model for {name} gives no {task.primary_signal}"
        return teacher, _examples(task, parts, None, teacher), list(given)

    yield from _tried(bench, bench.spec.gives, build)


def _students(bench: Bench) -> Iterator[tuple[Any, list[Any], Any, list[str]]]:
    """Students of this kind, some rows for each, the task, and the signals that each exposes."""

    def build(name: str) -> tuple[Any, list[Any], Any, list[str]]:
        resolver, task, recipe, parts = _world(bench, name)
        if bench.spec.from_teacher and recipe.teacher is None:
            raise SkipTest("the tiny recipe has no teacher to make it from")
        context = _context(resolver, task, recipe, parts)
        student = resolver.student(_ref(bench, "student", name), context)
        exposed = bench.spec.exposes
        if exposed is None:
            kinds = getattr(student, "kinds", None)
            of_task = bench.registry.find("task", name).spec.signals
            exposed = tuple(kind for kind in of_task if kinds is None or kind in kinds)
        return student, _examples(task, parts, student, None), task, list(exposed)

    yield from _tried(bench, bench.spec.exposes, build)


def _context(resolver: Resolver, task: Any, recipe: Recipe, parts: Any) -> BuildContext:
    teacher = resolver.teacher(recipe.teacher, task.name) if recipe.teacher else None
    return BuildContext(task, teacher, 0, facts=task.survey(parts))


def _start(resolver: Resolver, task: Any, recipe: Recipe, parts: Any) -> Any:
    """The student of the tiny recipe."""
    return resolver.student(recipe.student, _context(resolver, task, recipe, parts))


def _ref(bench: Bench, key: str, task: str) -> Ref:
    source = _source(bench, key, task)
    source["source"] = f"{bench.entry.qualified}:{source['source'].partition(':')[2]}".rstrip(":")
    return Ref.model_validate(source)


def _data(bench: Bench, **options: Any) -> Data:
    if bench.spec.argument and not bench.spec.example:
        raise SkipTest(f"its spec gives no example of {bench.spec.argument}")
    text = f"{bench.entry.name}:{bench.spec.example}" if bench.spec.argument else bench.entry.name
    return Resolver(bench.registry).open_data(text, DataOptions(), options)


def _sampler(bench: Bench, batch: int, seed: int = 0) -> Sampler:
    if bench.spec.selects:
        raise SkipTest("it chooses rows to have labelled")
    return bench.target(LENGTHS, batch, seed)


def _outputs(bench: Bench, task_name: str) -> Iterator[tuple[Any, str]]:
    """What metrics read, for the tiny recipe's untrained student on each of its evaluation sets, and its form."""
    resolver, task, recipe, parts = _world(bench, task_name)
    evaluator = Evaluator(task, resolver, recipe.evaluation, resolver.evaluation_options(task, recipe))
    student = _start(resolver, task, recipe, parts)
    for data, split in evaluator.data:
        yield task.outputs(student_encoder(task, student), data, split), data.form(split)
