"""A process that has imported what is heavy, and forks for each command: a `kdhub` that trains starts in a second and
not in ten, in an environment of its own with whatever is installed there by then.

kdhub and its plugins are not imported before the fork, and each command has streams, variables, folder, modules and
exit code of its own. What reads its variables when it is imported (`huggingface_hub`) has those of the warm process.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class Warm:
    """Attributes:
    python: the interpreter; commands find what it finds.
    """

    def __init__(self, python: Path | str, environment: Mapping[str, str], folder: Path):
        self.python, self.folder = python, Path(tempfile.mkdtemp(dir=folder))
        self._process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run([python, *arguments])` for `-m MODULE ...` and `-c CODE ...`."""
        out, err = self.folder / "out", self.folder / "err"
        job = {"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)}
        self._process.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess([self.python, *arguments], code, out.read_text(), err.read_text())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


# -- the process --------------------------------------------------------------------------------------------------


def main() -> None:
    import sys

    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import transformers

    assert transformers.Trainer and transformers.AutoModel  # they are imported when they are asked for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_command(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _command(job: dict) -> int:
    """In the fork: one command, and its exit code."""
    import importlib
    import runpy
    import site
    import sys
    import sysconfig
    import traceback
    import types

    for stream, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    sys.path[0] = job["cwd"]
    site.addsitedir(sysconfig.get_path("purelib"))  # what was installed in place since
    importlib.invalidate_caches()
    kind, what, *arguments = job["arguments"]
    try:
        if kind == "-m":
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(main))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    import atexit

    atexit._run_exitfuncs()  # the pair of ranks that a check started
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
