"""The engine of `ObjectiveMethod`: `transformers.Trainer`, plus what distillation adds.

Mixed precision, accumulation, checkpoints, DDP, FSDP and DeepSpeed are the Trainer's and Accelerate's. Added here:
stored teacher signals or a live frozen teacher in each batch, extra modules in optimiser and checkpoint, state of
schedules and samplers, length-grouped order that does not depend on the number of ranks, checkpoints that are whole or
not there, and a stop at the first loss that is not a number.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from kdhub.errors import HubError, KdhubError, TeacherError, TrainingError, UnknownNameError, UsageError
from kdhub.files import changed, read_sealed, sealed, write_sealed
from kdhub.findings import Finding
from kdhub.method import ObjectiveMethod, Progress, StoredSignals, TrainingOptions
from kdhub.named_layers import Taps
from kdhub.progress import Bar
from kdhub.ranks import barrier, of_first, on_gpu, rank, resolve_precision, world_size
from kdhub.recipes.run import Run
from kdhub.rows import Rows, Signals, as_tensor
from kdhub.sampler import Probe, Sampler, ShuffledSampler
from kdhub.specs import MAIN
from kdhub.student import Student
from kdhub.task import Task
from kdhub.teacher import Teacher
from kdhub.training.feed import Order, TrainingRows
from kdhub.training.rates import Rates

logger = logging.getLogger("kdhub")

STATE = "kdhub_state.json"
"""State of method and sampler inside a checkpoint."""

SAY_EVERY = 2.0
"""Seconds between progress lines; every logged step is in `metrics.jsonl`."""

UNWRITTEN = ("inline_container", "iostream", "PytorchStreamWriter")
"""What a RuntimeError of `torch.save` says when the file could not be written."""

SCALE_WARNING = 1e3
"""Warn when, over the first steps, one loss term is this many times another."""


class _Float32Attention(TorchFunctionMode):
    """Attention in float32 where the rest is in bfloat16, on a CPU.

    The backward pass of the fused kernel takes 1.3 times (256 tokens) to 7 times (16) as long there in bfloat16 (torch
    2.13, AMX), and that was a third of a training step of a small encoder; float32 is as well the more exact.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention or not torch.is_autocast_enabled("cpu"):
            return func(*args, **(kwargs or {}))
        exact = lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
        with torch.autocast("cpu", enabled=False):
            given = func(*map(exact, args), **{name: exact(value) for name, value in (kwargs or {}).items()})
        return given.bfloat16()


class _Objective(nn.Module):
    """Student and extras as one network whose forward gives the loss, so that DDP and FSDP see the whole of it."""

    def __init__(self, method: ObjectiveMethod, task: Task, student: Student, extras: Mapping[str, nn.Module]):
        super().__init__()
        self.student = student.module
        self.extras = nn.ModuleDict(dict(extras))
        self._method, self._task, self._student = method, task, student
        self.members: Sequence[str | None] = (None,)  # that learn in this step
        self._live: dict[str, Teacher] = {}  # by role; no submodules: they are neither trained nor saved
        self._taps = Taps(student.module, method.uses(student))
        self._live_taps: dict[str, Taps] = {}
        self._kinds: dict[str, list[str]] = {}  # that those are asked for which are elsewhere
        self.asked = {"calls": 0, "rows": 0}  # of live teachers, by this rank
        self._rates: Rates | None = None
        self.progress = Progress(0, 1, 0.0)
        on_cpu = not on_gpu() and resolve_precision(method.options.precision) == "bfloat16"
        self._attention = _Float32Attention if on_cpu else nullcontext

    def train(self, mode: bool = True) -> _Objective:
        super().train(mode)
        for module in self._rates.resting if self._rates else ():
            module.eval()
        return self

    def forward(self, inputs: Mapping[str, Any], teacher: Mapping[str, Any] | None = None) -> dict[str, Any]:
        given, each = None, []
        own = type(self._method).ask is not ObjectiveMethod.ask  # else live teachers are asked of the batch, once
        for member in self.members:
            if member is not None:
                self._student.choose(member)
            with self._attention(), self._taps.reading():
                student = self._task.forward(self.student, inputs)
            student.update(self._taps.signals(inputs))
            if given is None or (self._live and own):
                given = self._method.ask(student, inputs, self._ask) if self._live else Signals()
                given.update(teacher or {})
            each.append(self._method.objective(student, given, inputs, self.progress))
        if self.members != (None,):
            self._student.choose(None)
        terms = {name: sum(one[name] for one in each) / len(each) for name in each[0]} if len(each) > 1 else each[0]
        for name, term in terms.items():
            if term.numel() != 1:
                raise UsageError(
                    f"loss term {name!r} of {self._method.spec.name} must be one number (shape={tuple(term.shape)})",
                    hint="a mean over rows is values.mean(), any other values.sum() / step_count(batch, unit)",
                )
        loss = torch.stack([t.float().reshape(()) for t in terms.values()]).sum()
        return {"loss": loss, "terms": {name: term.detach() for name, term in terms.items()}}

    def _ask(self, inputs: Mapping[str, Any], role: str | None = None, *, gradient: bool = False) -> Signals:
        """Signals of a batch: those of one live teacher, or of all with the role in front where there is one."""
        if role is None:
            each = {role: self._ask(inputs, role, gradient=gradient) for role in self._live}
            given = each.pop(MAIN, Signals())
            for role, own in each.items():
                given.add(role, own)
            return given
        if role not in self._live:
            raise UnknownNameError("live teacher", role, self._live, where=self._method.spec.name)
        teacher, taps = self._live[role], self._live_taps[role]
        if teacher.module is None:
            given = Signals()
            for kind in self._kinds[role]:
                given.update(teacher.batch_signals(inputs, kind))
        else:
            with torch.set_grad_enabled(gradient and torch.is_grad_enabled()), taps.reading():
                given = (teacher.task or self._task).forward(teacher.module, inputs)
            given.update(taps.signals(inputs))
        rows = next((len(x) for x in inputs.values() if isinstance(x, torch.Tensor) and x.dim()), 0)
        self.asked = {"calls": self.asked["calls"] + 1, "rows": self.asked["rows"] + rows}
        return given


class _Trainer(Trainer):
    def __init__(self, *args: Any, engine: Engine, **kwargs: Any):
        self.engine = engine
        super().__init__(*args, **kwargs)
        # Our loss is a mean over the batch; without this the Trainer would not divide it over accumulated batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return self.engine.order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.engine.rates is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise UsageError("rates by part need whole parameters, which FSDP and DeepSpeed cut into shards")
            self.engine.rates.spread(super().create_optimizer(model))
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            method = self.engine.method
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: method.learning_rate(step, num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batch = super().get_batch_samples(*args, **kwargs)
        if self.engine.resumed_from is not None:  # making the loader's iterator has drawn from the generators
            self._load_rng_state(str(self.engine.resumed_from))
            self.engine.resumed_from = None
        batches, items = batch
        with self.compute_loss_context_manager():
            return self.engine.prepared(batches, self.state.global_step), items

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        engine, state = self.engine, self.state
        outputs = model(**inputs)
        engine.observe(state.global_step, outputs["loss"], outputs["terms"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    # -- checkpoints: made in a folder of another name, then renamed ------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.engine.staging)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        from safetensors.torch import save_model

        os.makedirs(output_dir, exist_ok=True)
        if state_dict is None:
            save_model(self.engine.module, os.path.join(output_dir, "model.safetensors"))
        else:
            from safetensors.torch import save_file

            save_file(state_dict, os.path.join(output_dir, "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        from safetensors.torch import load_model

        load_model(self.engine.module, os.path.join(resume_from_checkpoint, "model.safetensors"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        engine = self.engine
        if rank() == 0:
            shutil.rmtree(engine.staging, ignore_errors=True)
            engine.staging.mkdir(parents=True)
        barrier()
        try:
            super()._save_checkpoint(model, trial)
            unlogged = engine.unlogged()
            barrier()
            if rank() == 0:
                self._commit(engine, unlogged)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch and safetensors have errors of their own for a file that cannot be written.
            if isinstance(error, RuntimeError) and not any(m in str(error) for m in UNWRITTEN):
                raise
            shutil.rmtree(engine.staging, ignore_errors=True)
            raise TrainingError(
                f"cannot write a checkpoint at step {self.state.global_step}: "
                f"{getattr(error, 'strerror', None) or error}",
                hint="the last good checkpoint is kept; free space, then use --resume",
            ) from error

    def _commit(self, engine: Engine, unlogged: Mapping[str, Any]) -> None:
        name = f"checkpoint-{self.state.global_step}"
        made = engine.staging / name
        state = {
            "schema": 1,
            "method": engine.method.state(),
            "sampler": engine.order.state(),
            "asked": engine.module.asked,
            "unlogged": unlogged,
            "generator": engine.generator.get_state().numpy().tobytes().hex(),
            "ranks": world_size(),
            "precision": engine.precision,
        }
        write_sealed(made / STATE, {**state, "files": sealed(made)})
        target = engine.checkpoints / name
        shutil.rmtree(target, ignore_errors=True)
        for path in made.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(made, target)
        for old in list_checkpoints(engine.checkpoints)[:-2]:
            shutil.rmtree(old, ignore_errors=True)


class _Watch(TrainerCallback):
    """When to save and log, and where numbers go."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.saved = self.logged = time.monotonic()
        self.bar = Bar(SAY_EVERY)
        self.logged_step = 0  # of the last line of the log; a resumed run has it from its checkpoint
        self.timed_step = 0  # before `logged`, in this process
        self.began: tuple[float, int] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        engine, now = self.engine, time.monotonic()
        if self.began is None:
            self.began = (now, state.global_step)
            self.timed_step = state.global_step - 1
        engine.stepped(state.global_step - 1)
        enough = engine.sampler.enough
        options = engine.method.options
        if options.checkpoint_steps:
            save = state.global_step % options.checkpoint_steps == 0
        else:
            save = engine.agree(now - self.saved > options.checkpoint_minutes * 60, state.global_step)
        # Not where training ends: a run resumed from there would have to go on to the next probe.
        if save and state.global_step < engine.steps and not enough:
            control.should_save = True
            self.saved = now
        if enough:
            control.should_training_stop = True
        last = enough or state.global_step == engine.steps
        if state.global_step - self.logged_step >= engine.log_every or last:
            self.write(state, now)

    def write(self, state: Any, now: float) -> None:
        engine = self.engine
        steps = state.global_step - self.timed_step
        seconds = max(now - self.logged, 1e-9)
        terms = engine.mean_terms()
        trainer = engine.trainer
        record = {
            **engine.of_fit,
            "step": state.global_step,
            "epoch": round(state.global_step / engine.steps_per_epoch, 4),
            "loss": sum(terms.values()),
            "terms": terms,
            # the rate that the step just taken was taken with
            "lr": engine.method.options.lr * engine.method.learning_rate(state.global_step - 1, engine.steps),
            "rows_per_second": round(steps * engine.method.options.batch_size / seconds, 2),
        }
        if scalars := {k: v for k, v in engine.method.state().items() if isinstance(v, (int, float))}:
            record["state"] = scalars
        engine.run.log(**record)
        engine.order.observe(state.global_step, terms)
        engine.logged(record)
        began, first = self.began
        left = (now - began) / max(1, state.global_step - first) * (engine.steps - state.global_step)
        parts = " ".join(f"{k} {v:.4f}" for k, v in terms.items())
        if trainer.is_world_process_zero():
            of = f"{engine.name}: " if engine.name else ""
            line = f"{of}step {state.global_step}/{engine.steps}  {parts}  lr {record['lr']:.2e}  "
            line += f"{record['rows_per_second']:.0f} rows/s  {_clock(left)} left"
            self.bar(state.global_step, engine.steps, line, last=state.global_step == engine.steps)
        self.logged, self.logged_step, self.timed_step = now, state.global_step, state.global_step


class Engine:
    """One training of one student.

    Args:
        run: the run; checkpoints and metrics go there.
        method: its objective and options.
        task: batches and forward passes.
        student: adapted, ready to train.
        extras: modules trained along.
        rows: training rows.
        signals: stored teacher signals by kind; none of live teachers.
        live: teachers that run inside training, by role.
        sampler: order of the rows; shuffled when None.
        probe: what the sampler asks for -> a function that measures it now (see `kdhub.sampler.Probe`).
        fit: which training of its run this is, from 1; each has checkpoints and lines of the log of its own.
    """

    def __init__(
        self,
        run: Run,
        method: ObjectiveMethod,
        task: Task,
        student: Student,
        *,
        extras: Mapping[str, nn.Module],
        rows: Rows,
        signals: Mapping[str, StoredSignals],
        live: Mapping[str, Teacher] | None = None,
        sampler: Sampler | None = None,
        probe: Callable[[Probe], Callable[[], dict[str, float]]] | None = None,
        seed: int = 0,
        fit: int = 1,
        name: str | None = None,
    ):
        options = method.options
        self.run, self.method, self.task, self.student, self.rows = run, method, task, student, rows
        self.stored = bool(signals)
        self.module = _Objective(method, task, student, extras)
        for role, teacher in (live or {}).items():
            self.module._live[role] = teacher
            keep = "" if run.recipe.signals.keep == "all" else f":{run.recipe.signals.keep}"
            self.module._kinds[role] = [kind + keep for kind in method.needs_of(role, teacher)]
            self.module._live_taps[role] = Taps(teacher.module, method.needs_of(role, teacher))
        method.modules = self.module.extras
        self.rates = self.module._rates = Rates(self.module, options.rates) if options.rates else None
        self.sampler = sampler or ShuffledSampler(
            rows.lengths, options.batch_size, seed, group_by_length=options.group_by_length
        )
        parts = world_size() * options.accumulate
        if options.batch_size % parts:
            raise UsageError(
                f"batch_size {options.batch_size} does not divide into {world_size()} ranks x "
                f"{options.accumulate} accumulated batches",
                hint=f"use a multiple of {parts}",
            )
        apart = options.accumulate if method.across_ranks else parts
        if apart > 1 and method.batchwise and rank() == 0:
            logger.warning(
                "batch_size %d is computed as %d batches of %d rows, and the loss is of each: %s",
                options.batch_size, apart, options.batch_size // apart, method.batchwise,
            )  # fmt: skip
        self.steps_per_epoch, self.steps = steps_of(options, len(rows))
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.order = Order(self.sampler, self.steps * options.batch_size)
        wanted = self.sampler.probes(self.steps)
        self._probe, self._probe_every = (probe(wanted), wanted.every) if wanted else (None, 0)
        self.fit, self.name = fit, name
        self.checkpoints = run.checkpoints if fit == 1 else run.checkpoints / f"fit-{fit}"
        self.staging = self.checkpoints / ".staging"
        self.log_every = max(1, min(50, self.steps // 50))
        self.logged: Callable[[dict[str, Any]], None] = lambda record: None  # told of each logged record
        self.precision = resolve_precision(options.precision)
        self._sums, self._count = {}, 0  # of the terms since the last log
        self._step_sums, self._step_count = {}, 0  # and since the last step, where the method wants to know
        self._follows = type(method).stepped is not ObjectiveMethod.stepped
        self.resumed_from: Path | None = None
        self._first_terms: list[dict[str, float]] = []
        data = TrainingRows(rows, signals, again=self.steps > self.steps_per_epoch)
        cuda = on_gpu()
        if torch.cuda.is_available() and not cuda and rank() == 0:
            logger.warning("more processes than the %d GPUs here: all compute on the CPU", torch.cuda.device_count())
        arguments = TrainingArguments(
            output_dir=str(self.checkpoints),
            per_device_train_batch_size=options.batch_size // parts,
            gradient_accumulation_steps=options.accumulate,
            max_steps=self.steps,
            learning_rate=options.lr,
            weight_decay=options.weight_decay,
            adam_beta1=options.adam_betas[0],
            adam_beta2=options.adam_betas[1],
            adam_epsilon=options.adam_eps,
            max_grad_norm=options.grad_clip,
            optim="adamw_torch_fused",
            bf16=self.precision == "bfloat16",
            fp16=self.precision == "float16",
            use_cpu=not cuda,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=cuda,
            seed=seed,
            data_seed=seed,
            full_determinism=False,
            ignore_data_skip=True,  # our order begins where it has to
        )
        self.watch = _Watch(self)
        self.trainer = _Trainer(
            model=self.module,
            args=arguments,
            train_dataset=data,
            data_collator=self._collate,
            callbacks=[self.watch],
            engine=self,
        )
        from transformers.trainer_callback import PrinterCallback

        self.trainer.remove_callback(PrinterCallback)

    def _collate(self, batch: list[Any]) -> dict[str, Any]:
        examples, given = batch[0]
        teacher = {name: as_tensor(values) for name, values in given.items()}
        return {"inputs": self.task.collate(examples, self.student), "teacher": teacher}

    def prepared(self, batches: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
        """The batches of an optimiser step as the method changes them, with what means are over (`step_count`)."""
        self.module.progress = Progress(step, self.steps, step / self.steps_per_epoch)
        if self.student.members:
            rng = np.random.default_rng([self.seed, step])
            self.module.members = tuple(self.method.members(self.student, rng)) or (None,)
        made, drawn = [], self.generator.get_state()
        self._began = (drawn, torch.get_rng_state(), dict(self._sums), self._count, dict(self.module.asked))
        for b in batches:
            self.generator.set_state(drawn)
            made.append({**b, "inputs": self.method.prepare_batch(self._varied(b["inputs"]), self.generator)})
        each = [
            {**self.task.counts(b["inputs"]), **self.method.counts(b["inputs"], Signals(b["teacher"]))} for b in made
        ]
        names = list(each[0]) if each else []
        sums = torch.tensor([sum(c[name] for c in each) for name in names], device=self.trainer.args.device)
        if world_size() > 1 and names:
            torch.distributed.all_reduce(sums)
        means = {n: max(1, total) / (len(made) * world_size()) for n, total in zip(names, sums.tolist())}
        return [{**b, "inputs": {**b["inputs"], "mean_counts": means}} for b in made]

    def _varied(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the task draws again in each epoch, unless stored signals are of the first one's."""
        if self.stored:
            return inputs
        return dict(self.task.vary(inputs, self.student, int(self.module.progress.epoch)))

    @property
    def of_fit(self) -> dict[str, Any]:
        """What lines of the log have in front: the name of a training, and its number from the second on."""
        return ({"fit": self.fit} if self.fit > 1 else {}) | ({"training": self.name} if self.name else {})

    # -- watching ---------------------------------------------------------------------------------------------

    def observe(self, step: int, loss: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """Add up terms for the log; stop at a loss that is not a number."""
        if not torch.isfinite(loss):
            bad = [name for name, term in terms.items() if not torch.isfinite(term)] or list(terms)
            last = list_checkpoints(self.checkpoints)
            kept = f"the last good checkpoint is {last[-1].name}" if last else "no checkpoint was made yet"
            raise TrainingError(
                f"the loss is {loss.item()} at step {step + 1} of {self.steps}: term {', '.join(map(repr, bad))}",
                hint=f"{kept}; try a lower lr ({self.method.options.lr})"
                + (f", or precision float32 instead of {self.precision}" if self.precision != "float32" else ""),
            )
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0) + term.float()
            if self._follows:
                self._step_sums[name] = self._step_sums.get(name, 0) + term.float()
        self._count += 1
        self._step_count += 1

    def mean_terms(self) -> dict[str, float]:
        """Means of the loss terms since the last call, over all ranks."""
        terms = _means(self._sums, self._count)
        self._sums, self._count = {}, 0
        self._warn_about_scales(terms)
        return terms

    def unlogged(self) -> dict[str, Any]:
        """What a checkpoint keeps of the line of the log that is under way, the mean over all ranks."""
        sums = _means(self._sums, 1) if self._sums else {}
        return {"step": self.watch.logged_step, "sums": sums, "batches": self._count}

    def stepped(self, step: int) -> None:
        """An optimiser step is done, the one that began after `step` others."""
        if self._follows:
            progress = Progress(step, self.steps, step / self.steps_per_epoch)
            self.method.stepped(_means(self._step_sums, self._step_count), progress)
        self._step_sums, self._step_count = {}, 0
        if self._probe and (step + 1) % self._probe_every == 0 and step + 1 < self.steps:
            self._tell_sampler(step + 1)

    def _tell_sampler(self, step: int) -> None:
        found = of_first(self._probe())
        self.run.log(**self.of_fit, step=step, probe=found)
        self.order.observe(step, found)

    def _warn_about_scales(self, terms: dict[str, float]) -> None:
        if len(terms) < 2 or len(self._first_terms) >= 5:
            return
        self._first_terms.append(terms)
        if len(self._first_terms) == 5 and (found := magnitudes(self._first_terms)).status == "warn":
            logger.warning("%s over the first steps: %s", found.found, found.do)

    def agree(self, wish: bool, step: int) -> bool:
        """Rank 0's wish, known to all: clocks differ, and a checkpoint needs everybody. Asked every tenth step."""
        if world_size() == 1:
            return wish
        if step % 10:
            return False
        flag = torch.tensor([int(wish)], device=self.trainer.args.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def _kept(self, error: KdhubError) -> KdhubError:
        """The error of a live teacher that went away, with what is kept: a checkpoint of the step that was done, with
        all that the broken one had drawn put back. Of several ranks the others wait elsewhere, and the last one stays.
        """
        step, last = self.trainer.state.global_step, newest_checkpoint(self.checkpoints)
        if world_size() == 1 and step and (last is None or last.name != f"checkpoint-{step}"):
            drawn, random, self._sums, self._count, self.module.asked = self._began
            self.generator.set_state(drawn)
            torch.set_rng_state(random)
            self.trainer._save_checkpoint(self.module, None)
            last = newest_checkpoint(self.checkpoints)
        if last is not None:
            kept = f"{last.name} is kept: kdhub distill --resume {self.run.folder}"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        return error

    # -- training ---------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest whole checkpoint when there is one.

        Returns:
            `seconds`, `steps`, `rows_per_second` of this process's part, `precision`; what a live teacher was `asked`,
            calls and rows, on all ranks as on this one.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint = newest_checkpoint(self.checkpoints)
        if checkpoint is not None:
            state = read_sealed(checkpoint / STATE)
            if state["ranks"] != world_size():
                raise UsageError(
                    f"{checkpoint} was written by {state['ranks']} ranks, this job has {world_size()}",
                    hint="resume with the same number of ranks",
                )
            if (before := state.get("precision", self.precision)) != self.precision:
                raise UsageError(
                    f"{checkpoint} was trained in {before}, and this machine trains in {self.precision}",
                    hint="resume on a machine like the first one, or start a new run with another --out",
                )
            self.method.load_state(state["method"])
            self.module.asked = state.get("asked", self.module.asked)
            first = int(checkpoint.name.rpartition("-")[2])
            self.generator.set_state(torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8))
            self.resumed_from = checkpoint
            unlogged = state.get("unlogged", {"step": first, "batches": 0, "sums": {}})  # none in older checkpoints
            self.watch.logged_step, self._count = unlogged["step"], unlogged["batches"]
            device = self.trainer.args.device
            self._sums = {name: torch.tensor(value, device=device) for name, value in unlogged["sums"].items()}
            self.order.resume(first * self.method.options.batch_size, state["sampler"])
            self.run.rewind_metrics(first, self.fit)
            if rank() == 0:
                logger.info("resuming from %s", checkpoint.name)
        else:
            self.run.rewind_metrics(0, self.fit)
        set_seed(self.seed)
        began = time.monotonic()
        first = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if self._probe and not first:
            self._tell_sampler(0)
        frozen = self.rates.frozen if self.rates else []
        with _without_dropout(self.student.module, self.method.options.dropout), _without_gradient(frozen):
            try:
                self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except (HubError, TeacherError) as error:
                raise self._kept(error) from error
            finally:
                self.watch.bar.close()
        seconds = time.monotonic() - began
        self.trainer.model_wrapped = self.module  # what DDP put around it would keep the process group alive
        self.trainer.accelerator.free_memory()
        self.student.module.eval()
        done = self.trainer.state.global_step
        rows = (done - first) * self.method.options.batch_size
        return {
            "seconds": round(seconds, 2),
            "steps": done,
            "rows_per_second": round(rows / max(seconds, 1e-9), 2),
            "precision": self.precision,
            **({"asked": {k: n * world_size() for k, n in self.module.asked.items()}} if self.module._live else {}),
        }


def steps_of(options: TrainingOptions, rows: int) -> tuple[int, int]:
    """Optimiser steps of one pass over so many rows, and of the whole training."""
    each = max(1, math.ceil(rows / options.batch_size))
    return each, options.max_steps or max(1, round(each * options.epochs))


def magnitudes(terms: Sequence[Mapping[str, float]]) -> Finding:
    """How large the loss terms of the first steps are, and whether one is lost beside another."""
    mean = {name: sum(abs(t[name]) for t in terms) / len(terms) for name in terms[0]}
    big, small = max(mean, key=mean.get), min(mean, key=mean.get)
    if mean[big] > SCALE_WARNING * max(mean[small], 1e-12):
        found = f"loss term {big!r} ({mean[big]:.3g}) dwarfs {small!r} ({mean[small]:.3g})"
        return Finding("warn", "loss terms", found, "check their weights")
    return Finding("ok", "loss terms", ", ".join(f"{name} {value:.3g}" for name, value in mean.items()))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if (p / STATE).is_file() and p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest that is what was written; one that was damaged since is told, and passed over."""
    for found in reversed(list_checkpoints(folder)):
        try:
            damage = changed(found, read_sealed(found / STATE).get("files", {}))
        except (OSError, ValueError) as error:
            damage = [f"{STATE}: {error}"]
        if not damage:
            return found
        if rank() == 0:
            logger.warning("%s was changed since it was written (%s), and is not used", found, ", ".join(damage[:3]))
    return None


def _means(sums: Mapping[str, torch.Tensor], count: int) -> dict[str, float]:
    """Means over `count` batches, and over all ranks."""
    values = torch.stack([total / max(1, count) for total in sums.values()])
    if world_size() > 1:
        torch.distributed.all_reduce(values)
        values /= world_size()
    return dict(zip(sums, values.tolist()))


@contextmanager
def _without_gradient(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _without_dropout(module: nn.Module, p: float | None) -> Iterator[None]:
    """Set every dropout of the network for the time of training, and put it back: the saved student keeps its own."""
    kept: list[tuple[nn.Module, str, float]] = []
    if p is not None:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                kept.append((part, "p", part.p))
            elif isinstance(getattr(part, "attention_dropout", None), float):
                kept.append((part, "attention_dropout", part.attention_dropout))
        for part, name, _ in kept:
            setattr(part, name, p)
    try:
        yield
    finally:
        for part, name, value in kept:
            setattr(part, name, value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
