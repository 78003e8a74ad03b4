"""Two processes as under `torchrun` that distil what they are given, one recipe after the other.

To start them takes longer than many runs of a few steps, so they stay, and watch a folder for jobs. Where a process can
be forked, both are forks of one that has imported torch, with the variables that `torchrun` sets.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdhub.files import write_json
from kdhub.ranks import barrier, leave, rank

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PAUSE = 0.02
"""Seconds between two looks at the folder."""


class Pair:
    """The two processes, as their parent sees them.

    Attributes:
        path: where they import from; they serve as long as it is the parent's own.
    """

    def __init__(self) -> None:
        self.path, self._jobs = _import_path(), 0
        self._folder = Path(tempfile.mkdtemp(prefix="kdhub-ranks-"))
        launcher = [*([] if sys.platform == "linux" else TORCHRUN), "-m", __name__]
        with open(self._folder / "stderr", "w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *launcher, str(self._folder), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": self.path, "OMP_NUM_THREADS": "1"},
                cwd=self._folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        atexit.register(self.end)

    @property
    def serves(self) -> bool:
        return self._process.poll() is None and self.path == _import_path()

    def distil(self, recipe: Mapping[str, Any], out: Path, *, timeout: float = 180) -> None:
        """Distil a recipe in both, into one run folder and with the parent's kdhub home.

        Raises:
            AssertionError: it failed there, with the end of what they printed, or took more than `timeout` seconds.
        """
        self._jobs += 1
        done, patience = self._folder / f"{self._jobs}.done", time.monotonic() + timeout
        job = {"recipe": dict(recipe), "out": str(out), "home": os.environ["KDHUB_HOME"]}
        write_json(self._folder / f"{self._jobs}.json", job)
        while not done.exists():
            if self._process.poll() is not None:
                raise AssertionError(f"under two processes: {_tail((self._folder / 'stderr').read_text())}")
            if time.monotonic() > patience:
                self.end()
                raise AssertionError("under two processes: it hangs: they wait for each other")
            time.sleep(PAUSE)

    def end(self) -> None:
        atexit.unregister(self.end)
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


_pair: Pair | None = None


def pair() -> Pair:
    """The two processes of this one, started when there are none that import what it imports."""
    global _pair
    if _pair is not None and not _pair.serves:
        _pair.end()
        _pair = None
    _pair = _pair or Pair()
    return _pair


def _import_path() -> str:
    return os.pathsep.join(p for p in sys.path if p)


def _tail(text: str, lines: int = 4) -> str:
    said = [line.strip() for line in text.splitlines() if "Error" in line and "ChildFailed" not in line]
    return " | ".join(said[-lines:]) or " | ".join(text.strip().splitlines()[-lines:]) or "it ended without a report"


# -- their processes ------------------------------------------------------------------------------------------


def fork(folder: Path, parent: int) -> int:
    """Start both and wait for them; where one fails, or this is terminated, both end. Returns the exit code."""
    import kdhub.training.engine
    import kdhub.training.execute  # noqa: F401 - once for both

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks: list[int] = []

    def end(*_: object) -> None:
        for process in ranks:
            os.kill(process, signal.SIGKILL)
        os._exit(1)

    for number in range(2):
        if (process := os.fork()) == 0:
            variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in variables.items()})
            os._exit(_served(folder, parent))
        ranks.append(process)
    signal.signal(signal.SIGTERM, end)
    while ranks:
        process, status = os.wait()
        ranks.remove(process)
        if status:
            end()
    return 0


def _served(folder: Path, parent: int) -> int:
    try:
        serve(folder, parent)
        leave()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def serve(folder: Path, parent: int) -> None:
    """Distil one job after the other until the parent is gone."""
    from kdhub.verbs.distill import distill

    for number in itertools.count(1):
        job = folder / f"{number}.json"
        while not job.exists():
            if not _alive(parent):
                return
            time.sleep(PAUSE)
        given = json.loads(job.read_text())
        os.environ["KDHUB_HOME"] = given["home"]
        distill(given["recipe"], out=given["out"])
        barrier()
        if rank() == 0:
            (folder / f"{number}.done").touch()
        if number == 1:  # all that is heavy is imported: the collector need not look at it in each run
            gc.collect()
            gc.freeze()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _folder, _parent = Path(sys.argv[1]), int(sys.argv[2])
    if "RANK" not in os.environ:
        sys.exit(fork(_folder, _parent))
    serve(_folder, _parent)
    leave()
