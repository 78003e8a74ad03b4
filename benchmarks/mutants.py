"""Do a part's own tests see a changed line? `make mutants PART=divergences`; all parts without it.

mutmut changes one thing at a time in the modules of a part (`PARTS`) and runs the part's own fast tests. What survives
is printed as lines to paste into `tests/mutants.yaml`, where those stand that change no result, each with the reason;
they are not counted. `--again` runs only what was not caught the last time, with the tests as they are now, and
`--sample 100` so many of a part, drawn at random, where all would take hours; `--only WORD` those of some functions.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "tests" / "mutants.yaml"
PACKAGES = {p.name: p for p in (ROOT / "kdhub", *ROOT.glob("plugins/*/kdhub_*"))}
AIM = 0.95
SURVIVED, NOT_RUN = ("survived", "no tests"), ("not checked", "check was interrupted by user")
AGAIN = (*SURVIVED, "timeout")  # on a busy machine time is up without an endless loop
NO_RESULT = (r"\braise \w+\(", r"\bhint=", r"\b(logger|log|warnings)\.\w+\(", r"\breturn f?\"[^\"]* [^\"]* [^\"]*\"$")
"""Lines whose mutants change words only: errors, hints, log lines, sentences."""

TASKS, LOGITS, LM, TEXT = (f"plugins/kdhub-{name}/tests" for name in ("tasks", "logits", "lm", "text"))
METRICS = tuple(
    f"kdhub_tasks/{t}/metrics.py" for t in "classification embedding language masked pairs questions".split()
)
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "divergences": (("kdhub_tasks/divergences.py",), (f"{TASKS}/test_divergences.py",)),
    "sparse": (("kdhub_tasks/sparse.py",), (f"{TASKS}/test_sparse.py", "-k not student_learns")),
    "losses": (("kdhub_tasks/distances.py", "kdhub_tasks/losses.py"), (f"{TASKS}/test_losses.py",)),
    "metrics": (
        METRICS,
        (
            f"{TASKS}/test_metrics.py",
            f"{TASKS}/classification/test_classification.py",
            f"{TASKS}/embedding/test_metrics.py",
            f"{TASKS}/language/test_outputs.py",
            f"{TASKS}/pairs/test_pairs.py",
            f"{TASKS}/questions/test_question_answering.py",
            f"{TASKS}/test_tokens.py",
            "-k test_metrics or metrics_ or by_hand or loyalties or entities or squad or overlap or head_and",
        ),
    ),
    "sampler": (
        ("kdhub/sampler.py",),
        ("tests/test_training.py", "-k mixture and not recipe or batches_hold or batch_has or every_row or epochs_and"),
    ),
    "chunks": (("kdhub/signals/chunks.py",), ("tests/test_chunks.py",)),
    "store": (
        ("kdhub/signals/store.py",),
        (
            "tests/test_store.py",
            "tests/test_signals.py",
            "-k test_store or not (kill or rank or moments or permission or disk)",
        ),
    ),
    "settings": (("kdhub/signals/settings.py",), ("tests/test_picture_signals.py", "-k settings_are or noise_is")),
    "stored": (("kdhub/signals/stored.py",), ("tests/test_stored.py",)),
    "differences": (("kdhub/comparison/differences.py",), ("tests/test_differences.py", "-k not ties")),
    "soft-targets": (
        ("kdhub_logits/methods/soft_targets.py",),
        (f"{LOGITS}/test_methods.py", f"{LOGITS}/test_objectives.py", "-k not one_function and not pld"),
    ),
    "similarity": (
        ("kdhub_logits/methods/similarity.py",),
        (
            f"{LOGITS}/test_relations.py",
            f"{LOGITS}/test_objectives.py",
            "-k feature or attention or layers_that or which_layers or mmd or rank or likeness",
        ),
    ),
    "pld": (("kdhub_logits/methods/pld.py",), (f"{LOGITS}/test_methods.py", "-k pld")),
    "mixkd": (
        ("kdhub_logits/methods/mixkd.py", "kdhub_logits/wrappers.py"),
        (f"{LOGITS}/test_relations.py", f"{LOGITS}/test_objectives.py", "-k mix or batch or clean or rescaled"),
    ),
    "evaluator": (("kdhub/evaluation/evaluator.py",), ("tests/test_evaluator.py",)),
    "families": (
        ("kdhub/families.py", "kdhub/evaluation/counting.py"),
        ("tests/test_families.py", "-k not three and not killed"),
    ),
    "report": (("kdhub/evaluation/report.py",), ("tests/test_report.py", "-k not picture and not decades")),
    "resolve": (("kdhub/recipes/resolve.py",), ("tests/test_resolve.py",)),
    "engine": (
        ("kdhub/training/engine.py", "kdhub/training/feed.py"),
        (
            "tests/test_engine.py",
            "tests/test_training.py",
            "-k test_engine or extras_train or left_as_it_is or their_own_rows or is_exact or accumulated or"
            " good_checkpoint or rates or not_whole or of_ranks or stops_at_its_step",
        ),
    ),
    "lm-losses": (
        (
            "kdhub_lm/log_probs.py",
            "kdhub_lm/on_policy.py",
            *(f"kdhub_lm/methods/{m}.py" for m in "dpo gkd minillm reward_distill rrhf".split()),
        ),
        (
            f"{LM}/test_log_probs.py",
            f"{LM}/test_on_policy.py",
            f"{LM}/test_preferences.py",
            f"{LM}/test_reward_distill.py",
            "-k not (comes_nearer or reward_rises or model_writes or packed_ones)",
        ),
    ),
    "lm-curricula": (
        tuple(f"kdhub_lm/methods/{m}.py" for m in ("ddk", "taid", "self_data", "grpo")),
        (
            f"{LM}/test_ddk.py",
            f"{LM}/test_taid.py",
            f"{LM}/test_grpo.py",
            f"{LM}/test_self_data.py",
            "-k not (interrupted or a_run_m or a_run_k or a_run_and or rises or resumed or lags_any_more or refused)",
        ),
    ),
    "text-losses": (
        (
            "kdhub_text/token_losses.py",
            "kdhub_text/subspaces.py",
            "kdhub_text/messages.py",
            "kdhub_text/methods/dse.py",
            "kdhub_text/methods/leaf.py",
        ),
        (
            f"{TEXT}/test_vidlankd.py",
            f"{TEXT}/test_lelp.py",
            f"{TEXT}/test_dse.py",
            f"{TEXT}/test_leaf.py",
            f"{TEXT}/test_talking_models.py",
            "-k not (cannot_be_is or find_their_rows or random_split or clamped or what_is_said or the_bit or"
            " learns_along or one_tokenizer or no_use_for or brings_the_scores or from_rows_to or tell_no_digit or"
            " trains_with or second_stage or clips_show or three_epochs or below_a_random)",
        ),
    ),
    "multi-teacher": (
        ("kdhub_text/bridge.py", "kdhub_text/methods/multi_teacher.py"),
        (
            f"{TEXT}/test_multi_teacher.py",
            "-k not (teachers_with_other_tokens or teaches_the_same or another_key or shipped_recipe)",
        ),
    ),
    "vidlankd": (
        tuple(f"kdhub_text/methods/{m}.py" for m in ("vidlankd", "vidlankd_teacher")),
        (f"{TEXT}/test_vidlankd.py", "-k not (tell_no_digit or trains_with or second_stage)"),
    ),
    "lelp": (
        ("kdhub_text/methods/lelp.py", "kdhub_text/subclasses.py"),
        (f"{TEXT}/test_lelp.py", "-k not (cannot_be_is or find_their_rows or random_split or clamped)"),
    ),
    "talking-models": (
        ("kdhub_text/methods/talking_models.py",),
        (
            f"{TEXT}/test_talking_models.py",
            "-k not (what_is_said or the_bit or learns_along or one_tokenizer or no_use_for)",
        ),
    ),
    "saved": (
        ("kdhub/training/saved.py", "kdhub/training/rates.py"),
        (
            "tests/test_saved.py",
            "tests/test_rates.py",
            "-k far_apart or their_bits or differs or as_one_array or permanent or middle or in_mind or rounded or"
            " without_a_network or undone or by_factor or anyway or not_there_or or rests or shared",
        ),
    ),
    "swing": (
        ("kdhub_logits/methods/swing.py", "kdhub_logits/privacy.py"),
        (f"{LOGITS}/test_swing.py", "-k not a_tagger_is"),
    ),
    "trg": (
        ("kdhub_logits/methods/trg.py",),
        (f"{LOGITS}/test_relations.py", "-k graph or contrast or context or tokens or grids"),
    ),
    "pcoreset": (
        ("kdhub_logits/queries.py", "kdhub_logits/adapter.py", "kdhub_logits/methods/pcoreset.py"),
        (
            f"{LOGITS}/test_pcoreset.py",
            "-k not (labels_from_a_file or fitted_between or same_seed or goes_on_from_round)",
        ),
    ),
    "self-distillation": (
        ("kdhub_logits/methods/self_distillation.py", "kdhub_logits/kernel.py"),
        (f"{LOGITS}/test_self_distillation.py", "-k not (five_seeds or clean_labels or first_fit)"),
    ),
    "session": (("kdhub/training/session.py",), ("tests/test_session.py",)),
}
"""Modules, as they are imported, and the tests that must see what changes in them; without those that take seconds, as
each mutant that survives runs them all."""


@dataclass(frozen=True)
class Mutant:
    """A line of a function before and after, and whether the tests noticed."""

    module: str
    function: str
    was: str
    now: str
    status: str

    def explained(self, ledger: dict[str, list[dict[str, Any]]]) -> bool:
        """An entry of the ledger is about a function or all of a module; there about a line, or some mutants of it, or
        one text for another anywhere."""
        return any(
            entry.get("in", self.function) == self.function
            and entry.get("was", self.was) == self.was
            and self.now in ([now] if isinstance(now := entry.get("now", self.now), str) else now)
            and ("change" not in entry or self.changes(*entry["change"]))
            for entry in ledger.get(self.module, ())
        )

    def changes(self, old: str, new: str) -> bool:
        """Whether one `old` became `new` and nothing else."""
        parts = self.was.split(old)
        return any(old.join(parts[:i]) + new + old.join(parts[i:]) == self.now for i in range(1, len(parts)))


def lay_out(folder: Path, part: str) -> None:
    """A copy of the tree in which a module's path is its name, as mutmut needs it, and its settings."""
    modules, tests = PARTS[part]
    for name, package in PACKAGES.items():
        shutil.copytree(package, folder / name, dirs_exist_ok=True)
    for tree in ("tests", "registry", *(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/tests"))):
        shutil.copytree(ROOT / tree, folder / tree, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    settings = {
        "source_paths": modules,
        "also_copy": (*PACKAGES, "plugins", "registry"),
        "do_not_mutate_patterns": NO_RESULT,
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ("-q", "-m", "not slow", "-p", "no:cacheprovider"),
        "use_git_change_detection": ("false",),
        "timeout_multiplier": ("25",),  # of what the tests take: a busy machine is slower than when that was measured
    }
    lines = (f"{key}=" + "".join(f"\n    {value}" for value in values) for key, values in settings.items())
    (folder / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]))


def run(folder: Path, names: list[str]) -> None:
    """mutmut's own progress goes to a file: it is megabytes."""
    with open(folder / "log.txt", "w") as log:
        subprocess.run(
            [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", *names],
            cwd=folder, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def mutants(folder: Path, part: str) -> Iterator[tuple[str, Mutant]]:
    """What mutmut found, by its own names."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    os.chdir(folder)
    for path in map(Path, PARTS[part][0]):
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            function, owner = orig_function_and_class_names_from_key(name)
            status, sides = status_by_exit_code[code], {"-": [], "+": []}
            if status in SURVIVED:
                for line in get_diff_for_mutant(name, path=path).splitlines():
                    if line[:1] in sides and line[:3] not in ("---", "+++"):
                        sides[line[0]].append(line[1:].strip())
            module = ".".join(path.with_suffix("").parts)
            place = f"{owner}.{function}" if owner else function
            yield name, Mutant(module, place, *("\n".join(lines) for lines in sides.values()), status)


def drawn(folder: Path, part: str, n: int | None, words: list[str]) -> list[str]:
    """`n` of a part's mutants, always the same, or all; of functions whose names have one of the words, if any."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    os.chdir(folder)
    paths = map(Path, PARTS[part][0])
    names = [get_mutant_name(p, n) for p in paths for n in mutate_file_contents(str(p), p.read_text()).mutant_names]
    names = [name for name in names if not words or any(word in name for word in words)]
    return names if n is None else random.Random(0).sample(names, min(n, len(names)))


def report(found: list[Mutant], sampled: bool) -> bool:
    """Print survivors that the ledger does not explain, and how many of the others were caught."""
    ledger = yaml.safe_load(LEDGER.read_text()) or {}
    good = True
    for module in dict.fromkeys(m.module for m in found):
        of_module = [m for m in found if m.module == module and not (sampled and m.status in NOT_RUN)]
        survivors = [m for m in of_module if m.status in SURVIVED]
        new = [m for m in survivors if not m.explained(ledger)]
        for place in dict.fromkeys((m.function, m.was) for m in new):
            now = [m.now for m in new if (m.function, m.was) == place]
            entry = [{"in": place[0], "was": place[1], "now": now if len(now) > 1 else now[0], "why": None}]
            print(yaml.safe_dump(entry, sort_keys=False, width=500, allow_unicode=True), end="")
        unfinished = sum(m.status in NOT_RUN for m in of_module)
        counted = len(of_module) - len(survivors) + len(new) - unfinished
        share = 1 - len(new) / counted if counted else 1.0
        good &= share >= AIM and not unfinished
        print(
            f"# {module}: {len(of_module)} mutants, {len(of_module) - len(survivors) - unfinished} caught, "
            f"{len(survivors) - len(new)} change no result, {len(new)} survive: {share:.1%}"
            + (f"; {unfinished} NOT RUN, see log.txt" if unfinished else "")
        )
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", default=[])
    parser.add_argument("--again", action="store_true", help="only what survived the last time")
    parser.add_argument("--sample", type=int, metavar="N", help="of each part, drawn at random")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="functions whose names have one of these")
    given, good = parser.parse_args(), True
    for part in given.parts or PARTS:
        folder = ROOT / "build" / "mutants" / part
        names = []
        if given.again:
            names = [
                n
                for n, m in mutants(folder, part)
                if m.status in AGAIN or m.status in NOT_RUN and not (given.sample or given.only)
            ]
            (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test runs which function
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        lay_out(folder, part)
        if not names and (given.sample or given.only):
            names = drawn(folder, part, given.sample, given.only)
        run(folder, names)
        print(f"# -- {part}")
        found = [mutant for _, mutant in mutants(folder, part)]
        if not found:
            print(f"# nothing ran, see {folder / 'log.txt'}")
        good &= bool(found) and report(found, sampled=bool(given.sample or given.only))
    sys.exit(not good)
