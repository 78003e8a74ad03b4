"""What each of two processes runs: `torchrun ... -m kdhub.testing._ranks JOBS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kdhub.ranks import barrier, leave
from kdhub.verbs.distill import distill

if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        distill(job["recipe"], out=job["out"])
        barrier()
    leave()
