"""Checks of plugins as a whole, and of data sets, samplers and metrics."""

from __future__ import annotations

import json
import math
import re
from unittest import SkipTest

import numpy as np

from kdhub.data.shared import shared
from kdhub.errors import KdhubError
from kdhub.plugins.discovery import CORE
from kdhub.sampler import Seen
from kdhub.specs import SPECS
from kdhub.testing._bench import Bench
from kdhub.testing._register import check
from kdhub.testing._tried import LENGTHS, VALUES, costed_of, data_of, outputs_of, sampler_of

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


# -- data sets ------------------------------------------------------------------------------------------------


@check("dataset")
def rows_are_there_and_stay_the_same(bench: Bench) -> None:
    """Each split has rows, opened twice they are equal, and the splits that the spec names are there."""
    one, two = data_of(bench), data_of(bench)
    splits = one.splits if not callable(getattr(one, "splits", None)) else one.splits()
    missing = set(bench.spec.splits) - set(splits)
    assert not missing, f"the spec names the splits {', '.join(sorted(missing))}, which are not there"
    for split in splits:
        assert len(one.split(split)), f"split {split!r} is empty"
        assert one.fingerprint(split) == two.fingerprint(split), f"split {split!r} has other rows each time"


@check("dataset")
def what_rows_share_is_named_and_opened_once(bench: Bench) -> None:
    """Each thing that rows have in common is named by some of them, and its arrays are opened once, memory-mapped."""
    data = data_of(bench)
    if not data.shared:
        raise SkipTest("its rows share nothing")
    texts = {
        value for split in data.splits for row in data.split(split) for value in row.values() if type(value) is str
    }
    for one in data.shared:
        assert one.name in texts, f"no row of it names {one.name}"
        arrays = shared(one.name)
        assert arrays is shared(one.name), "it is opened twice"
        assert not any(array.flags.writeable for array in arrays.values()), "its arrays can be written to"


@check("dataset")
def unknown_data_options_are_refused(bench: Bench) -> None:
    try:
        data_of(bench, no_such_option=1)
    except KdhubError:
        return
    raise AssertionError("an unknown option is accepted")


# -- samplers -------------------------------------------------------------------------------------------------


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
        rows = [int(i) for i in sampler_of(bench, batch).epoch(0)]
        assert rows and len(rows) % batch == 0, f"{len(rows)} rows are not whole batches of {batch}"
        assert min(rows) >= 0 and max(rows) < len(LENGTHS), f"row {max(rows)} of {len(LENGTHS)}"


@check("sampler")
def order_follows_the_seed(bench: Bench) -> None:
    def order(seed: int) -> list[int]:
        return [int(i) for number in range(3) for i in sampler_of(bench, 8, seed).epoch(number)]

    assert order(1) == order(1), "one seed gives two orders"


@check("sampler")
def order_follows_the_columns_it_asks_for(bench: Bench) -> None:
    """Other values in the columns of its spec give another order."""
    if bench.spec.selects or not bench.spec.columns:
        raise SkipTest("it asks for no columns")
    orders = [[int(i) for i in sampler_of(bench, 8, values=v).epoch(0)] for v in (VALUES, VALUES[3:] + VALUES[:3])]
    assert orders[0] != orders[1], f"it asks for {', '.join(bench.spec.columns)} and does not use them"


@check("sampler")
def sampler_state_comes_back(bench: Bench) -> None:
    """What it learned from losses is in `state`, as JSON values: another one that takes it goes on alike."""
    one = sampler_of(bench, 8)
    for step in range(3):
        list(one.epoch(step))
        one.observe(step, {"loss": 1.0 / (step + 1)})
    two = sampler_of(bench, 8)
    two.load_state(json.loads(json.dumps(one.state())))
    assert [int(i) for i in one.epoch(3)] == [int(i) for i in two.epoch(3)], "with its state back the order is another"


# -- metrics --------------------------------------------------------------------------------------------------


@check("metric")
def scores_are_numbers(bench: Bench) -> None:
    """On the outputs of its tasks' tiny recipes it gives one finite number, the same twice."""
    spec, found = bench.spec, False
    if spec.files:
        raise SkipTest("it reads a student's files; the check evaluation_is_complete_and_true of methods has them")
    if spec.cost:
        return _costs_are_numbers(bench)
    for task in bench.task_names:
        for outputs, form in outputs_of(bench, task) if bench.tiny(task) else ():
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


def _costs_are_numbers(bench: Bench) -> None:
    """Of the students of its tasks' tiny recipes; only a time may be another each time."""
    found, timed = False, bench.spec.unit in ("s", "ms")
    for task in bench.task_names:
        for costed in costed_of(bench, task) if bench.tiny(task) else ():
            values = [bench.target(costed) for _ in range(2)]
            if values[0] is not None:
                found = True
                assert math.isfinite(values[0]) and values[0] >= 0, f"it gives {values[0]}"
                assert timed or values[0] == values[1], "it gives another number each time"
    if not found:
        raise SkipTest("it means nothing for the students of its tasks' tiny recipes")
