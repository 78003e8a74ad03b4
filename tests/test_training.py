"""The engine, with the toy family: what is trained, what a checkpoint holds, exact resume, bad losses, full disks."""

from __future__ import annotations

import errno
import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kdhub.errors import CompatibilityError, DataError, ExitCode, RunError, TrainingError, UsageError
from kdhub.files import read_sealed, write_sealed
from kdhub.method import ObjectiveMethod, TrainingOptions, step_count
from kdhub.ranks import resolve_precision
from kdhub.recipes.run import Run
from kdhub.sampler import MixtureSampler, ShuffledSampler
from kdhub.training.engine import STATE, list_checkpoints, newest_checkpoint
from kdhub.verbs.distill import distill


@pytest.fixture
def train(toys, tmp_path):
    """`train("name", method="toy-hint", lr=0.1, ...)`: a small run in its own folder, nothing evaluated."""

    def run(name="run", *, method="toy-hint", teacher="linear:1", student="mlp:6", rows=None, **options):
        recipe = {
            "task": "toy-vectors",
            "method": method,
            "student": student,
            "data": {"train": {"source": "toy-points", "limit": rows}},
            "evaluation": {"cost": False, "data": []},
            "options": {"batch_size": 8, "epochs": 1, "precision": "float32", "lr": 0.01},
        }
        if teacher:
            recipe["teacher"] = teacher
        if sampler := options.pop("sampler", None):
            recipe["sampler"] = sampler
        recipe["options"].update(options)
        return distill(recipe, out=tmp_path / name)

    return run


def weights(run):
    return {name: t.numpy().tobytes() for name, t in load_file(run.student_folder / "model.safetensors").items()}


@pytest.fixture
def keep_checkpoints(monkeypatch):
    """A run that ended well keeps its checkpoints, so that one can look into them."""
    import shutil

    from kdhub.training import execute

    class Keeping:
        rmtree = staticmethod(lambda path, **how: None if path.name == "checkpoints" else shutil.rmtree(path, **how))

    monkeypatch.setattr(execute, "shutil", Keeping)


# -- what is trained ------------------------------------------------------------------------------------------


def test_student_and_extras_train_and_the_teacher_does_not(train, keep_checkpoints):
    import toy

    run = train(epochs=4, checkpoint_steps=5)
    start = toy.mlp("6", type("C", (), {"seed": 0})()).module.state_dict()
    trained = load_file(run.student_folder / "model.safetensors")
    assert all(not torch.equal(trained[name], start[name]) for name in start), "every weight of the student moved"
    assert "projection" not in " ".join(trained), "extras are not published"

    last = newest_checkpoint(run.checkpoints)
    saved = load_file(last / "model.safetensors")
    torch.manual_seed(7)
    first = torch.nn.Linear(6, toy.OUTPUTS)
    assert not torch.equal(saved["extras.projection.weight"], first.weight), "extras are in the optimiser"
    assert not any("map" in name for name in saved), "the teacher is in no checkpoint"
    assert json.loads((last / STATE).read_text())["method"]["mean"] != 1.0


def test_a_live_teacher_is_left_as_it_is(train):
    import toy

    before = toy.Matrix(1).state_dict()
    run = train(method="toy-mix", epochs=2)
    module = toy.Linear.last.module
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training and all(p.grad is None for p in module.parameters())
    assert toy.Linear.asked == 0, "nothing was stored: its input is random"
    losses = [r["loss"] for r in run.metrics()]
    assert losses[-1] < losses[0]


def test_some_rows_are_from_everywhere():
    from kdhub.rows import Rows

    def some(n, most):
        return Rows(None, None, np.zeros((n, 12), np.uint8), np.ones(n, np.int32)).some(most)

    assert some(150, 256).tolist() == list(range(150)) and some(0, 256).tolist() == []
    assert len(set(some(1000, 256))) == 256 and set(np.diff(some(1000, 256))) == {3, 4} and some(1000, 256)[-1] > 990


@pytest.mark.parametrize("method", ["toy-hint", "toy-mix"])
def test_student_and_live_teacher_are_where_the_rank_computes(train, monkeypatch, method):
    """And what a method is initialised with. A device without memory stands for a GPU: training cannot go on there."""
    import toy

    from kdhub.training import engine as training
    from kdhub.training import session

    class Stop(Exception):
        pass

    seen = {}

    def initialise(self, student, inputs, teacher):
        seen["inputs"] = {x.device.type for x in (*inputs.values(), *teacher.values())}

    def engine(run, method, task, student, *, live, **given):
        models = (student, *live.values())
        seen["models"] = [{p.device.type for p in model.module.parameters()} for model in models]
        raise Stop

    monkeypatch.setattr(session, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(training, "Engine", engine)
    monkeypatch.setattr({"toy-hint": toy.Hint, "toy-mix": toy.Mix}[method], "initialise", initialise, raising=False)
    with pytest.raises(Stop):
        train(method=method)
    assert seen == {"inputs": {"meta"}, "models": [{"meta"}] * (2 if method == "toy-mix" else 1)}


@pytest.mark.parametrize(
    ("gpus", "ranks", "rank", "found"),
    [(0, 1, 0, "cpu"), (1, 1, 0, "cuda:0"), (2, 2, 1, "cuda:1"), (1, 2, 0, "cpu"), (1, 2, 1, "cpu")],
)
def test_each_rank_has_a_gpu_of_its_own_or_all_are_on_the_cpu(monkeypatch, gpus, ranks, rank, found):
    from kdhub.ranks import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    assert str(device()) == found


def test_teacher_signals_reach_their_own_rows(train):
    """In shuffled batches each row meets its own teacher vector, from the store: a matrix can be learned exactly."""
    run = train(method="toy-hint", student="mlp:64", lr=0.02, epochs=60, hint_weight=0, weight_decay=0, rows=16)
    assert list(run.metrics())[-1]["terms"]["match"] < 1e-2


def test_a_second_run_asks_the_teacher_nothing(train):
    import toy

    train("one")
    asked = toy.Linear.asked
    assert asked == 40
    train("two", method="toy-hint", epochs=2)
    assert toy.Linear.asked == asked


def test_a_method_without_teacher(train):
    run = train(method="toy-plain", teacher=None, epochs=3)
    assert "teacher" not in run.provenance
    losses = [r["loss"] for r in run.metrics()]
    assert losses[-1] < losses[0]


def test_dropout_is_off_in_training_unless_asked_for_and_the_student_keeps_its_own(train):
    off, own = train("off", dropout=0.0), train("own", dropout=None)
    assert weights(off) != weights(own)
    import kdhub

    assert kdhub.load(off.folder).module.drop.p == 0.5


def test_rows_that_the_task_cannot_train_on(toys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"z": [1.0]}\n')
    recipe = {
        "task": "toy-vectors",
        "method": "toy-plain",
        "student": "mlp:3",
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "evaluation": {"cost": False},
    }
    with pytest.raises(DataError, match="has no column 'x'"):
        distill(recipe, out=tmp_path / "run")


def test_a_method_with_its_own_distill_resumes_at_its_stage(toys, tmp_path, monkeypatch):
    import toy

    monkeypatch.setattr(toy.Label, "fail", True)
    with pytest.raises(KeyboardInterrupt):
        distill("toy-labelled", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["stages"] == {"choose": 40}
    monkeypatch.setattr(toy.Label, "fail", False)
    run = distill(resume=tmp_path / "run")
    rows = toy.splits_in(run.student_folder)["train"].to_list()
    matrix = toy.Matrix(1)
    expected = matrix(torch.tensor([r["x"] for r in rows]))["vector"].detach().numpy()
    np.testing.assert_allclose([r["y"] for r in rows], expected, rtol=2e-3, atol=1e-3)
    assert [m["metric"] for m in run.report["measures"] if m["subject"] == "student"] == ["toy-spread"]
    assert "# toy-labelled" in (run.folder / "README.md").read_text(), "a student that is no model has a card too"


# -- checkpoints and resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [None, "toy-curious"])
@pytest.mark.parametrize("step", [3, 8])
def test_resume_is_exact(train, tmp_path, monkeypatch, step, sampler):
    """With dropout, accumulation, extras, method state, and a sampler that learns from the losses; bit for bit."""
    import toy

    settings = {"epochs": 3, "checkpoint_steps": 2, "dropout": None, "accumulate": 2, "sampler": sampler}
    whole = train("whole", **settings)

    monkeypatch.setattr(toy.Hint, "fail_at", step)
    with pytest.raises(KeyboardInterrupt):
        train("cut", **settings)
    kept = [p.name for p in list_checkpoints(tmp_path / "cut" / "checkpoints")]
    assert kept[-1] == f"checkpoint-{step // 2 * 2}" and len(kept) <= 2
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    resumed = distill(resume=tmp_path / "cut")

    assert weights(resumed) == weights(whole)

    def log(run):
        return [{k: v for k, v in record.items() if k != "rows_per_second"} for record in run.metrics()]

    assert log(resumed) == log(whole), "no step stands twice and none is missing"
    assert resumed.provenance["resumed"] and not resumed.checkpoints.exists()


@pytest.fixture
def broken(toys, tmp_path, monkeypatch):
    """A run of a file's rows that was killed at step 5: its folder, the file, its recipe."""
    import toy

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"x": [i % 3, i % 5, 1.0, -1.0]}) + "\n" for i in range(24)))
    options = {"batch_size": 8, "max_steps": 9, "precision": "float32", "lr": 0.01, "checkpoint_steps": 2}
    recipe = {"task": "toy-vectors", "method": "toy-hint", "teacher": "linear:1", "student": "mlp:6"}
    recipe |= {"data": {"train": f"jsonl:{file}"}, "evaluation": {"cost": False, "data": []}, "options": options}
    monkeypatch.setattr(toy.Hint, "fail_at", 5)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, out=tmp_path / "run")
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    return tmp_path / "run", file, tmp_path / "run" / "recipe.yaml"


@pytest.mark.parametrize(
    ("of", "old", "new", "said"),
    [
        ("recipe", "batch_size: 8", "batch_size: 4", "another recipe: options.batch_size was 8, now 4"),
        ("recipe", "linear:1", "linear:2", "another recipe: teacher was linear:1, now linear:2"),
        ("rows", '"x": [1', '"x": [7', r"another train data jsonl:\S+ train: fingerprint was \w+, now \w+"),
        ("rows", '{"x": [0, 0, 1.0, -1.0]}\n', "", "another train data .* rows was 24, now 22"),
    ],
)
def test_a_run_goes_on_with_what_it_began_with(broken, of, old, new, said):
    folder, *files = broken
    path = files[of == "recipe"]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    before = {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=said) as error:
        distill(resume=folder)
    assert "another --out" in error.value.hint
    assert before and before == {p: p.read_bytes() for p in before}
    path.write_text(text)
    assert list(distill(resume=folder).metrics())[-1]["step"] == 9, "put back, it goes on"


@pytest.mark.parametrize("what", ["teacher", "start", "method"])
def test_a_run_goes_on_with_the_teacher_and_the_start_it_began_with(broken, monkeypatch, what):
    import toy

    if what == "method":  # of a plugin that was upgraded since
        known = read_sealed(state := broken[0] / "state.json")
        known["inputs"]["method"]["version"] = "0.0.1"
        write_sealed(state, known)
    elif what == "teacher":
        other = {"kind": "linear", "files": {"model.safetensors": "other"}}
        monkeypatch.setattr(toy.Linear, "identity", property(lambda self: other))
    else:
        own = toy.mlp
        monkeypatch.setattr(toy, "mlp", lambda argument, context: own("7", context))
    with pytest.raises(RunError, match=f"began with another {what}: "):
        distill(resume=broken[0])


def test_a_run_that_goes_on_with_another_library_says_so(broken, caplog):
    known = read_sealed(before := broken[0] / "provenance.json")
    here = known["environment"]["versions"]["torch"]
    known["environment"]["versions"]["torch"] = "0.4"
    write_sealed(before, known)
    with caplog.at_level("WARNING", "kdhub"):
        run = distill(resume=broken[0])
    assert f"other versions than it began with: torch 0.4, now {here}" in caplog.text
    assert run.provenance["resumed_with"] == {"torch": here}
    assert f"Resumed with `torch` {here}." in (run.folder / "README.md").read_text()


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.pt", STATE])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_damaged_checkpoint_is_passed_over(train, tmp_path, monkeypatch, caplog, damaged, all_of_them):
    import toy

    whole = train("whole", epochs=2, checkpoint_steps=2)
    monkeypatch.setattr(toy.Hint, "fail_at", 7)
    with pytest.raises(KeyboardInterrupt):
        train("cut", epochs=2, checkpoint_steps=2)
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    made = list_checkpoints(tmp_path / "cut" / "checkpoints")
    for checkpoint in made if all_of_them else made[-1:]:
        content = bytearray((checkpoint / damaged).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / damaged).write_bytes(content)
    with caplog.at_level("INFO", logger="kdhub"):
        resumed = distill(resume=tmp_path / "cut")
    assert weights(resumed) == weights(whole) and f"{made[-1]} was changed since it was written" in caplog.text
    assert (f"resuming from {made[0].name}" in caplog.text) == (not all_of_them)


@pytest.mark.parametrize("in_a_stage", [False, True])
def test_each_training_of_a_run_has_checkpoints_of_its_own(train, tmp_path, monkeypatch, in_a_stage):
    """A run that trains twice, perhaps first in a stage: broken off in the second, it ends as an undisturbed one."""
    import toy

    class Twice(toy.Hint):
        fail = (0, 0)  # training, step

        def distill(self, run):
            self.now, student = 1, run.student

            def first():
                return [v.tolist() for v in run.fit(self, student).module.state_dict().values()]

            weights = run.stage("first", first) if in_a_stage else first()
            student.module.load_state_dict(dict(zip(student.module.state_dict(), map(torch.tensor, weights))))
            self.mean, self.now = 1.0, 2
            return run.fit(self, student)

        def objective(self, student, teacher, batch, progress):
            if (self.now, progress.step) == Twice.fail:
                raise KeyboardInterrupt
            return super().objective(student, teacher, batch, progress)

    def steps(run):
        return [(line.get("fit", 1), line["step"]) for line in run.metrics()]

    monkeypatch.setattr(toy, "Hint", Twice)
    whole = train("whole", checkpoint_steps=2)
    assert steps(whole) == [(fit, step) for fit in (1, 2) for step in range(1, 6)], "the second trains all its steps"
    assert whole.provenance["training"]["steps"] == 10
    Twice.fail = (2, 3)
    with pytest.raises(KeyboardInterrupt):
        train("cut", checkpoint_steps=2)
    Twice.fail = (0, 0)
    resumed = distill(resume=tmp_path / "cut")
    assert weights(resumed) == weights(whole) and steps(resumed) == steps(whole)


def test_two_trainings_of_one_name_are_refused(train, tmp_path, monkeypatch):
    """Also where the first stands in a stage that a resumed run does not come through again."""
    import toy

    class Twice(toy.Hint):
        killed = True

        def distill(self, run):
            run.stage("first", lambda: run.fit(self, run.student, "narrow") and None)
            if Twice.killed:
                raise KeyboardInterrupt
            return run.fit(self, run.student, "narrow")

    monkeypatch.setattr(toy, "Hint", Twice)
    with pytest.raises(KeyboardInterrupt):
        train("named")
    Twice.killed = False
    for again in (lambda: train("whole"), lambda: distill(resume=tmp_path / "named")):
        with pytest.raises(RunError, match="two trainings of .* have the name 'narrow'"):
            again()
    lines = list(Run.open(tmp_path / "named").metrics())
    assert {line["training"] for line in lines} == {"narrow"} and not any("fit" in line for line in lines)


def test_resume_is_exact_with_batches_mixed_at_random(train, tmp_path, monkeypatch):
    import toy

    def at(step):
        def objective(self, student, teacher, batch, progress):
            if progress.step == step:
                raise KeyboardInterrupt
            return real(self, student, teacher, batch, progress)

        return objective

    real = toy.Mix.objective
    whole = train("whole", method="toy-mix", epochs=2, checkpoint_steps=3)
    monkeypatch.setattr(toy.Mix, "objective", at(7))
    with pytest.raises(KeyboardInterrupt):
        train("cut", method="toy-mix", epochs=2, checkpoint_steps=3)
    monkeypatch.setattr(toy.Mix, "objective", real)
    assert weights(distill(resume=tmp_path / "cut")) == weights(whole)


def test_an_interrupted_resume_resumes(train, tmp_path, monkeypatch):
    import toy

    whole = train("whole", epochs=3, checkpoint_steps=2, sampler="toy-curious")
    for step, start in ((5, train), (9, None), (None, None)):
        monkeypatch.setattr(toy.Hint, "fail_at", step)
        try:
            run = (
                start("cut", epochs=3, checkpoint_steps=2, sampler="toy-curious")
                if start
                else distill(resume=tmp_path / "cut")
            )
        except KeyboardInterrupt:
            continue
    assert weights(run) == weights(whole)


def test_a_checkpoint_that_is_not_whole_is_not_used(train, tmp_path, monkeypatch):
    import toy

    whole = train("whole", epochs=3, checkpoint_steps=2)
    monkeypatch.setattr(toy.Hint, "fail_at", 9)
    with pytest.raises(KeyboardInterrupt):
        train("cut", epochs=3, checkpoint_steps=2)
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    checkpoints = tmp_path / "cut" / "checkpoints"
    (checkpoints / "checkpoint-12").mkdir()  # as if a rename had been no rename
    (checkpoints / "checkpoint-12" / "model.safetensors").write_bytes(b"half")
    (checkpoints / ".staging" / "checkpoint-10").mkdir(parents=True)
    assert newest_checkpoint(checkpoints).name == "checkpoint-8"
    assert weights(distill(resume=tmp_path / "cut")) == weights(whole)


def test_a_checkpoint_between_two_lines_of_the_log(train, tmp_path, monkeypatch):
    """Every second step is logged and told to a sampler that learns from it, and every third has a checkpoint."""
    import toy

    settings = {"epochs": 20, "checkpoint_steps": 3, "sampler": "toy-curious"}
    whole = train("whole", **settings)
    assert [record["step"] for record in whole.metrics()][:3] == [2, 4, 6]
    monkeypatch.setattr(toy.Hint, "fail_at", 53)
    with pytest.raises(KeyboardInterrupt):
        train("cut", **settings)
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    resumed = distill(resume=tmp_path / "cut")
    assert [r["terms"] for r in resumed.metrics()] == [r["terms"] for r in whole.metrics()]
    assert weights(resumed) == weights(whole)


def test_a_finished_run_is_not_done_again(train):
    run = train()
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    distill(resume=run.folder)
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"ranks": 2}, "written by 2 ranks, this job has 1"),
        ({"precision": "bfloat16"}, "trained in bfloat16, and this"),
    ],
)
def test_the_number_of_ranks_and_the_precision_may_not_change(train, tmp_path, monkeypatch, other, says):
    import toy

    monkeypatch.setattr(toy.Hint, "fail_at", 4)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint_steps=2)
    monkeypatch.setattr(toy.Hint, "fail_at", None)
    state = tmp_path / "run" / "checkpoints" / "checkpoint-4" / STATE
    write_sealed(state, {**read_sealed(state), **other})
    with pytest.raises(UsageError, match=f"was {says}"):
        distill(resume=tmp_path / "run")


@pytest.mark.parametrize("failing", ["model", "commit"])
def test_a_full_disk_keeps_the_last_good_checkpoint(train, tmp_path, monkeypatch, failing):
    import safetensors.torch

    from kdhub.training import engine as training

    whole = train("whole", epochs=2, checkpoint_steps=2)
    real = {"model": safetensors.torch.save_model, "commit": training.write_sealed}[failing]
    calls = []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    if failing == "model":
        monkeypatch.setattr(safetensors.torch, "save_model", full)
    else:
        monkeypatch.setattr(training, "write_sealed", full)
    with pytest.raises(TrainingError, match="cannot write a checkpoint at step 6: No space left on device") as error:
        train("cut", epochs=2, checkpoint_steps=2)
    assert "--resume" in error.value.hint
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert [p.name for p in list_checkpoints(checkpoints)] == ["checkpoint-2", "checkpoint-4"]
    assert not list((checkpoints / ".staging").glob("*")), "what was half written is gone: it would fill the disk"
    monkeypatch.undo()
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "elsewhere"))
    assert weights(distill(resume=tmp_path / "cut")) == weights(whole)


@pytest.mark.parametrize("limit, writer", [(200, "SafetensorError"), (3000, "RuntimeError")])
def test_a_writer_of_another_library_that_fails(train, tmp_path, monkeypatch, limit, writer):
    """A real limit on the size of files: the weights' writer and the optimiser's each raise what is no OSError."""
    import resource
    import signal

    from kdhub.training import engine as training

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:

        def limited(self, *arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            try:
                return real(self, *arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)

        real = training._Trainer._save_checkpoint
        monkeypatch.setattr(training._Trainer, "_save_checkpoint", limited)
        with pytest.raises(TrainingError, match="cannot write a checkpoint at step 2: ") as error:
            train(checkpoint_steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert type(error.value.__cause__).__name__ == writer
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


# -- losses ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_at_its_step(train, tmp_path):
    with pytest.raises(TrainingError) as error:
        train(method="toy-plain", teacher=None, epochs=2, poison=6, second=0.1, checkpoint_steps=2)
    assert "the loss is nan at step 7 of 10: term 'labels'" in str(error.value)
    assert "'second'" not in str(error.value), "the other term was fine"
    assert error.value.exit_code == ExitCode.FAILED
    assert "the last good checkpoint is checkpoint-6" in error.value.hint
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-6"
    for tensor in load_file(tmp_path / "run/checkpoints/checkpoint-6/model.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_one_term_that_dwarfs_another_is_reported(train, caplog):
    def warned(second):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "kdhub"):
            train(f"run-{second}", method="toy-plain", teacher=None, epochs=2, second=second)
        return [r.getMessage() for r in caplog.records if "dwarfs" in r.getMessage()]

    (message,) = warned(1e7)
    assert "'second'" in message and "'labels'" in message
    assert warned(1.0) == []


# -- settings -------------------------------------------------------------------------------------------------


def test_a_batch_must_divide(train):
    with pytest.raises(UsageError, match=r"batch_size 9 does not divide into 1 ranks x 2 accumulated") as error:
        train(batch_size=9, accumulate=2)
    assert "multiple of 2" in error.value.hint


def test_accumulated_batches_have_the_gradient_of_one_batch(train, monkeypatch):
    """The optimiser would not tell: AdamW does much the same with twice the gradient."""
    seen = []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            seen.append([p.grad.norm().item() for group in self.param_groups for p in group["params"]])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    for parts in (1, 2, 4):
        train(f"in-{parts}", method="toy-plain", teacher=None, accumulate=parts, grad_clip=0)
    one, two, four = seen[:5], seen[5:10], seen[10:]
    assert two == [pytest.approx(norms, rel=1e-3) for norms in one]
    assert four == [pytest.approx(norms, rel=1e-3) for norms in one]


def test_a_loss_that_is_of_a_batch_says_so_where_batches_are_cut(train, monkeypatch, caplog):
    import toy

    monkeypatch.setattr(toy.Mix, "batchwise", "rows are mixed with others", raising=False)
    with caplog.at_level(logging.WARNING, "kdhub"):
        train("whole", method="toy-mix", max_steps=1)
        assert "mixed with others" not in caplog.text
        train("parts", method="toy-mix", max_steps=1, accumulate=4)
    assert "batch_size 8 is computed as 4 batches of 2 rows, and the loss is of each: rows are mixed" in caplog.text


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda values, batch: values, r"loss term 'match' of toy-mix must be one number \(shape=\(8,\)\)"),
        (lambda values, batch: values.sum() / step_count(batch, "pairs"), "a mean over 'pairs', which are not counted"),
    ],
)
def test_terms_that_no_step_has_a_mean_of_are_refused(train, monkeypatch, term, said):
    import toy

    def objective(self, student, teacher, batch, progress):
        return {"match": term((student.vector - teacher.vector).square().mean(-1), batch)}

    monkeypatch.setattr(toy.Mix, "objective", objective)
    with pytest.raises(UsageError, match=said):
        train(method="toy-mix", max_steps=1)


def test_max_steps_and_fractions_of_an_epoch(train):
    assert list(train("a", max_steps=3).metrics())[-1]["step"] == 3
    assert list(train("b", epochs=0.4).metrics())[-1]["step"] == 2
    last = list(train("c", rows=3, epochs=2).metrics())[-1]
    assert (last["step"], last["epoch"]) == (2, 2.0), "fewer rows than one batch are one full batch"


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "warmup": 0.4}, [0.5, 1, 1, 2 / 3, 1 / 3]),
        ({"schedule": "cosine", "warmup": 0.2}, [1, 1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "linear", "warmup": 1.0}, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_learning_rates_by_hand(train, options, expected):
    """Logged is the rate that the step was taken with."""
    run = train(**options)
    assert [r["lr"] for r in run.metrics()] == pytest.approx([0.01 * e for e in expected], rel=1e-5)


def test_the_optimiser_takes_the_rates_that_are_logged(train, monkeypatch):
    taken = []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            taken.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    run = train(warmup=0.4)
    assert taken == pytest.approx([r["lr"] for r in run.metrics()])


def test_bfloat16_is_autocast_and_weights_stay_float32(train):
    run = train(precision="bfloat16")
    assert {t.dtype for t in load_file(run.student_folder / "model.safetensors").values()} == {torch.float32}
    assert run.provenance["training"]["precision"] == "bfloat16"
    assert weights(run) != weights(train("plain"))


def test_auto_precision_follows_the_hardware(monkeypatch):
    from kdhub import ranks

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(ranks, "_cpu_has_bfloat16", lambda has=has: has)
        assert resolve_precision("auto") == expected
        assert resolve_precision("float16") == "float16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto") == "bfloat16"
    assert resolve_precision("auto", "cpu") == "float32"


# -- order of the rows ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 700),
    batch=st.integers(1, 12),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    group=st.booleans(),
)
def test_every_row_once_an_epoch_in_whole_batches(rows, batch, seed, epoch, group):
    lengths = np.random.default_rng(seed).integers(1, 99, rows).astype(np.int32)
    order = ShuffledSampler(lengths, batch, seed, group_by_length=group).epoch(epoch)
    again = ShuffledSampler(lengths, batch, seed, group_by_length=group).epoch(epoch)
    assert np.array_equal(order, again), "nothing but rows, batch, seed and epoch decides: any rank knows the order"
    assert len(order) == -(-rows // batch) * batch
    seen = np.bincount(order, minlength=rows)
    assert seen.min() >= 1 and seen.sum() - rows < batch
    assert rows < batch or seen.max() <= 2


def test_epochs_and_seeds_differ():
    lengths = np.ones(64, np.int32)
    orders = [tuple(ShuffledSampler(lengths, 8, seed).epoch(n)) for seed in (0, 1) for n in (0, 1)]
    assert len(set(orders)) == 4


def test_batches_hold_rows_of_like_length_and_their_order_does_not_tell():
    lengths = np.random.default_rng(0).integers(1, 512, 3200).astype(np.int32)

    def spread(group):
        batches = lengths[ShuffledSampler(lengths, 16, 0, group_by_length=group).epoch(0)].reshape(-1, 16)
        return np.mean(batches.max(1) - batches.min(1)), batches.mean(1)

    grouped, means = spread(True)
    assert grouped < 0.05 * spread(False)[0]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2, "long and short batches alternate at random"


def test_a_batch_has_neighbours_by_length_and_equal_rows_as_they_were_shuffled():
    lengths = np.random.default_rng(1).permutation(64).astype(np.int32)
    batches = lengths[ShuffledSampler(lengths, 4, 3).epoch(2)].reshape(-1, 4)
    assert sorted(map(sorted, batches.tolist())) == np.arange(64).reshape(-1, 4).tolist()
    lengths = np.resize([3, 1, 2], 640).astype(np.int32)
    plain, grouped = (ShuffledSampler(lengths, 4, 3, group_by_length=g).epoch(0) for g in (False, True))
    for part in (slice(0, 200), slice(200, 400)):  # blocks of 50 batches
        longest_first = np.array(sorted(plain[part].tolist(), key=lambda row: -lengths[row])).reshape(-1, 4)
        assert set(map(tuple, longest_first)) <= set(map(tuple, grouped.reshape(-1, 4)))


def test_a_mixture_of_few_rows_has_its_shares_exactly():
    sampler = MixtureSampler(
        np.ones(4, np.int32), 1, 0, parts=[("a", 1), ("b", 2), ("c", 1)], weights={"a": 2, "b": 2, "c": 0}
    )
    counts = np.bincount(np.concatenate([sampler.epoch(n) for n in range(1000)]), minlength=4)
    assert counts == pytest.approx(np.array([2000, 1000, 1000, 0]), rel=0.08)
    even = MixtureSampler(np.ones(4, np.int32), 1, 0, parts=[("a", 1), ("b", 2), ("a", 1)])
    assert even.shares.tolist() == [0.25, 0.5, 0.25], "one weight a name, and equal without weights"


def test_a_mixture_draws_data_sets_by_their_weights_and_rows_evenly():
    lengths = np.ones(4000, np.int32)
    parts = [("big", 3000), ("small", 600), ("big", 400)]
    sampler = MixtureSampler(lengths, 8, 0, parts=parts, weights={"big": 1, "small": 3})
    order = np.concatenate([sampler.epoch(n) for n in range(10)])
    assert len(order) == 40_000
    counts = np.bincount(order, minlength=4000)
    # 1/4 of the draws over 3,400 rows of `big`, wherever they stand, and 3/4 over 600 of `small`: 2.94 and 50 a row
    assert counts[:3000].mean() == pytest.approx(2.94, rel=0.05)
    assert counts[3600:].mean() == pytest.approx(2.94, rel=0.1)
    assert counts[3000:3600].mean() == pytest.approx(50, rel=0.02)
    assert counts[3000:3600].min() > 15
    assert counts[3000:3600].std() == pytest.approx(50**0.5, rel=0.15), "each row as likely as another"
    assert np.array_equal(sampler.epoch(3), sampler.epoch(3))


@pytest.mark.parametrize(
    "weights",
    [
        {"big": 1},
        {"big": 1, "small": 1, "other": 1},
        {"big": 1, "small": -1},
        {"big": 1, "small": np.inf},
        {"big": 0, "small": 0},
    ],
)
def test_a_mixture_with_wrong_weights_names_the_data_sets(weights):
    with pytest.raises(UsageError, match="sampler.weights must give each data set"):
        MixtureSampler(np.ones(4, np.int32), 2, 0, parts=[("big", 3), ("small", 1)], weights=weights)


def test_a_recipe_with_a_mixture_and_one_with_an_option_it_does_not_have(train, toys):
    from kdhub.errors import RecipeError

    run = train(sampler={"source": "mixture", "weights": {"toy-points": 1}})
    assert len(list(run.metrics())) == 5
    with pytest.raises(RecipeError, match="sampler.wieghts"):
        train("wrong", sampler={"source": "mixture", "wieghts": {}})


@pytest.mark.parametrize("dropped", [False, True])
def test_a_sampler_sees_the_column_that_it_asks_for(toys, tmp_path, monkeypatch, dropped):
    """Of several data sets, after rows were left out, and where the task has no use for it."""
    import toy

    place = [[5, 3, 9, 1], [4, 8, 2]]
    for n, values in enumerate(place):
        rows = [{"x": [n, i, 0.0, 1.0], "y": [0.0] * 3, "place": v} for i, v in enumerate(values)]
        (tmp_path / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, prepare, seen = toy.Vectors.training_table, toy.Vectors.preparer, []

    def gone(self, *given, **how):  # nothing is to be learnt of the row in the first place
        read = prepare(self, *given, **how)
        return lambda rows: [e | {"length": 0 if e["x"][:2] == [0, 3] else 2} for e in read(rows)]

    monkeypatch.setattr(toy.Vectors, "preparer", gone)
    if dropped:
        monkeypatch.setattr(toy.Vectors, "training_table", lambda self, p: own(self, p).select_columns(["x", "y"]))
    collate = toy.Vectors.collate
    monkeypatch.setattr(
        toy.Vectors, "collate", lambda self, e, s: seen.append([x["x"][:2] for x in e]) or collate(self, e, s)
    )
    recipe = {
        "task": "toy-vectors", "method": "toy-plain", "student": "mlp:6", "evaluation": {"cost": False},
        "data": {"train": [f"path:{tmp_path}/{n}.jsonl" for n in range(2)]}, "sampler": "toy-sorted",
        "options": {"batch_size": 3, "epochs": 1, "precision": "float32"},
    }  # fmt: skip
    distill(recipe, out=tmp_path / "run")
    assert [place[int(n)][int(i)] for n, i in sum(seen[-2:], [])] == [2, 3, 4, 5, 8, 9]
    (tmp_path / "1.jsonl").write_text(json.dumps({"x": [0.0] * 4, "y": [0.0] * 3}))
    if dropped:
        with pytest.raises(CompatibilityError, match="column 'place', which the rows of 1.jsonl do not have; .* x, y"):
            distill(recipe, out=tmp_path / "other")


def test_every_training_option_has_a_description():
    for name, field in TrainingOptions.model_fields.items():
        assert field.description, name
    with pytest.raises(TypeError):
        ObjectiveMethod(TrainingOptions())


def test_attention_of_a_cpu_is_in_float32_where_the_rest_is_in_bfloat16():
    """Its backward pass is several times slower in bfloat16; what comes out is what the rest expects."""
    from torch.nn.functional import scaled_dot_product_attention

    from kdhub.training.engine import _Float32Attention

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16), _Float32Attention():
        given = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert (q @ k.transpose(2, 3)).dtype == torch.bfloat16, "nothing else changes"
    assert given.dtype == torch.bfloat16 and torch.equal(given, expected.bfloat16())
    given.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.bfloat16
    with _Float32Attention():  # in float32 all of it is as it was
        assert scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
