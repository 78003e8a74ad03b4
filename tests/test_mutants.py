"""What `make mutants` reads: its parts and tests are there, and each entry of the ledger is about one of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("benchmarks.mutants", ROOT / "benchmarks" / "mutants.py")
mutants = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)

MODULES = {module for modules, _ in mutants.PARTS.values() for module in modules}
SOURCE = {".".join(Path(m).with_suffix("").parts): mutants.PACKAGES[m.split("/")[0]].parent / m for m in MODULES}


def test_parts_and_their_tests_are_there():
    assert all(file.is_file() for file in SOURCE.values())
    for _, tests in mutants.PARTS.values():
        assert all((ROOT / test).is_file() for test in tests if not test.startswith("-")), tests


def test_each_entry_of_the_ledger_has_a_reason_and_is_about_lines_that_are_there():
    for module, entries in yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text()).items():
        source = SOURCE[module].read_text()
        for entry in entries:
            assert entry["why"] and set(entry) <= {"in", "was", "now", "change", "why"} and len(entry) > 1, entry
            assert all(f"{word} {entry['in'].split('.')[-1]}(" in source for word in ["def"] if "in" in entry), entry
            lines = entry.get("was", entry.get("change", [""])[0]).splitlines()
            assert not lines or lines[0].split("  #")[0] in source, entry


@pytest.mark.parametrize(
    ("entry", "explained"),
    [
        ({"in": "f"}, True),
        ({"in": "g"}, False),
        ({"was": "a(-1, -1)"}, True),
        ({"was": "a(-1)"}, False),
        ({"was": "a(-1, -1)", "now": "a(-1, +1)"}, True),
        ({"was": "a(-1, -1)", "now": ["a(+1, -1)", "a(-1, +1)"]}, True),
        ({"was": "a(-1, -1)", "now": ["a(+1, -1)"]}, False),
        ({"change": ["-1", "+1"]}, True),
        ({"change": ["-1", "+2"]}, False),
        ({"in": "f", "change": ["a(-1", "a(+1"]}, False),
    ],
)
def test_what_an_entry_explains(entry, explained):
    mutant = mutants.Mutant("m", "f", "a(-1, -1)", "a(-1, +1)", "survived")
    assert mutant.explained({"m": [entry]}) is explained and not mutant.explained({"other": [entry]})


def test_the_share_counts_what_changes_a_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mutants, "LEDGER", tmp_path / "ledger.yaml")
    mutants.LEDGER.write_text("m: [{in: f, why: no result}]")

    def of(*statuses, function="g"):
        return [mutants.Mutant("m", function, "was", "now", status) for status in statuses]

    good = mutants.report([*of(*["killed"] * 18), *of("timeout", "survived"), *of("survived", function="f")], False)
    assert good and "21 mutants, 19 caught, 1 change no result, 1 survive: 95.0%" in capsys.readouterr().out
    assert not mutants.report(of(*["killed"] * 9, "no tests"), False) and "why: null" in capsys.readouterr().out
    assert not mutants.report(of("killed", "not checked"), False) and "1 NOT RUN" in capsys.readouterr().out
    assert mutants.report(of("killed", "not checked"), True)
