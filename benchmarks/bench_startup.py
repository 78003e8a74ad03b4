"""Start-up time of the light commands, with 0, 1, 10, 50 and 100 more plugin distributions installed.

python benchmarks/bench_startup.py [--rounds 11]
python benchmarks/bench_startup.py --beside OLD/.venv/bin/kdhub   (another version of kdhub, in turns; ratios alone)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import record, spread

PLUGIN = """from kdhub import MethodSpec, hookimpl
@hookimpl
def kdhub_methods():
    yield MethodSpec(name="extra-{i}", target="extra_{i}.method:Extra", tasks=("text-embedding",), summary="number {i}")
"""


def install(site: Path, count: int) -> None:
    """Distributions as an installer would leave them: a package and a dist-info with an entry point."""
    for i in range(count):
        package, info = site / f"extra_{i}", site / f"kdhub_extra_{i}-1.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").touch()
        (package / "plugin.py").write_text(PLUGIN.format(i=i))
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: kdhub-extra-{i}\nVersion: 1.0\nRequires-Dist: kdhub>=0.1\n"
        )
        (info / "entry_points.txt").write_text(f"[kdhub]\nextra-{i} = extra_{i}.plugin\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--beside", metavar="KDHUB", help="the kdhub command of another version")
    options = parser.parse_args()
    commands = {"--help": ["--help"], "list methods": ["list", "methods"]}
    executable = str(Path(sys.executable).parent / "kdhub")
    if options.beside:
        beside(executable, options.beside, {**commands, "plugins list": ["plugins", "list"]}, options.rounds)
        return
    results = {}
    for count in (0, 1, 10, 50, 100):
        with tempfile.TemporaryDirectory() as site:
            install(Path(site), count)
            environment = {**os.environ, "PYTHONPATH": site}
            for name, arguments in commands.items():
                times = []
                for turn in range(options.rounds + 1):
                    began = time.perf_counter()
                    subprocess.run([executable, *arguments], env=environment, check=True, capture_output=True)
                    if turn:  # the first one compiles
                        times.append(time.perf_counter() - began)
                results[f"{name}, {count} plugins"] = times
                print(f"kdhub {name:14} {count:4} more plugins   {spread(times)} s")
    bare = [_timed([sys.executable, "-c", "pass"]) for _ in range(options.rounds)]
    print(f"python -c pass                          {spread(bare)} s")
    record("startup", seconds={k: statistics.median(v) for k, v in results.items()}, python=statistics.median(bare))


def beside(mine: str, other: str, commands: dict[str, list[str]], rounds: int) -> None:
    """Each command of two versions in turns; the ratio of each pair of turns."""
    for name, arguments in commands.items():
        pairs = [(_timed([mine, *arguments]), _timed([other, *arguments])) for _ in range(rounds + 1)][1:]
        now, before = zip(*pairs)
        ratios = [a / b for a, b in pairs]
        print(f"kdhub {name:14} now {spread(now)} s   other {spread(before)} s   ratio {spread(ratios)}")
        record("startup-beside", command=name, ratio=statistics.median(ratios), range=[min(ratios), max(ratios)])


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
