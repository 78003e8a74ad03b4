"""`python -m benchmarks [NAME...]`: each script prints a table and appends rows to `results.jsonl`."""

import subprocess
import sys
from pathlib import Path

SHORT = ("startup", "catalogue", "store", "overhead", "leaf_flops")

if __name__ == "__main__":
    here = Path(__file__).parent
    known = sorted(p.stem.removeprefix("bench_") for p in here.glob("bench_*.py"))
    for name in sys.argv[1:] or SHORT:
        if name not in known:
            sys.exit(f"no benchmark named {name!r}: {', '.join(known)}")
        print(f"\n== {name}")
        subprocess.run([sys.executable, here / f"bench_{name}.py"], check=True)
