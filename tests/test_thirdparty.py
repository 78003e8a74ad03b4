"""Somebody else's plugins in an environment of their own: written, built, installed, checked, used and removed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import serve
from warm import Warm

SOURCES = Path(__file__).parent / "thirdparty"
ROOT = Path(__file__).parents[1]
KINDS = ("method", "teacher", "student", "dataset", "task", "sampler", "metric")

CHECK = """
import json, sys
from kdhub.testing import checks_of, run_checks
if __name__ == "__main__":
    print(json.dumps([r.to_dict() for name in sys.argv[1:] for r in run_checks(checks_of(name))]))
"""


class Site:
    """An environment with pip, in which torch and kdhub come from the one that runs the tests."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        self.python = folder / "env" / "bin" / "python"
        lib = next((folder / "env" / "lib").iterdir()) / "site-packages"
        ours = sysconfig.get_path("purelib")
        (lib / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        for old in lib.glob("setuptools*"):  # an old one would hide ours, which builds the packages
            old.rename(folder / old.name)
        # Nothing is downloaded: pip builds with the setuptools that is there, and looks nowhere.
        self.environment = {name: v for name, v in os.environ.items() if not name.startswith(("KDHUB_", "PIP_"))} | {
            "PIP_NO_BUILD_ISOLATION": "0",  # as strange as it looks, this turns it off
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "KDHUB_HOME": str(folder / "home"),
            "TQDM_DISABLE": "1",
        }
        self.warm = Warm(self.python, self.environment, folder)

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess:
        """Python code and kdhub's commands in forks of a warm process, but those that talk to a hub; others afresh."""
        given, environment = [str(a) for a in arguments], self.environment | variables
        if (given[0] == "-c" or given[:2] == ["-m", "kdhub"]) and not any(name.startswith("HF_") for name in variables):
            return self.warm.run(given, environment, self.folder)
        return subprocess.run(
            [self.python, *given], capture_output=True, text=True, env=environment, cwd=self.folder, timeout=400
        )

    def kdhub(self, *arguments: str | Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        done = self.run("-m", "kdhub", *arguments, **variables)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    def wheel(self, name: str) -> Path:
        out = self.folder / "wheels"
        done = self.run("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, SOURCES / name)
        assert done.returncode == 0, done.stderr
        return next(out.glob(f"{name.replace('-', '_')}-*.whl"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.warm.close()


@pytest.mark.slow
def test_a_wheel_is_installed_checked_used_and_removed(site):
    done = site.kdhub("plugins", "install", site.wheel("kdhub-orbit"), "--json")
    (record,) = json.loads(done.stdout)["installed"]
    assert (record["distribution"], record["version"], record["status"]) == ("kdhub-orbit", "2.3.1", "ok")
    assert record["provides"] == {"method": ["orbit"], "teacher": ["letters"], "metric": ["cosine-gap"]}
    assert done.stderr.count("a plugin is code") == 1

    assert "orbit" in site.kdhub("list", "methods").stdout
    said = site.run("-c", CHECK, "kdhub-orbit")
    results = json.loads(said.stdout.splitlines()[-1])
    assert [r for r in results if r["outcome"] not in ("passed", "skipped")] == []
    assert sum(r["outcome"] == "passed" for r in results) >= 25

    (site.folder / "texts.txt").write_text("\n".join(f"the square of {i} is {i * i}" for i in range(40)))
    site.run("-c", "from kdhub_tasks.tiny import tiny_encoder; tiny_encoder(__import__('pathlib').Path('tiny'))")
    (site.folder / "orbit.yaml").write_text(
        "task: text-embedding\nmethod: orbit\nteacher: letters:26\nstudent: path:./tiny\n"
        "data: {train: [path:./texts.txt]}\noptions: {max_steps: 3, batch_size: 8, precision: float32}\n"
        "evaluation: {cost: false}\n"
    )
    site.kdhub("distill", "--recipe", "orbit.yaml", "--out", "run")
    provenance = json.loads((site.folder / "run" / "provenance.json").read_text())
    assert provenance["method"]["distribution"] == "kdhub-orbit" and provenance["method"]["version"] == "2.3.1"

    done = site.kdhub("plugins", "uninstall", "kdhub-orbit")
    assert done.stdout == "removed kdhub-orbit 2.3.1\n"
    again = site.kdhub("distill", "--resume", "run", code=2)
    assert "no method named 'orbit'" in again.stderr


def test_a_broken_one_is_named_and_stops_nothing_else(site):
    wheel = site.wheel("kdhub-cracked")
    done = site.kdhub("plugins", "install", wheel, "--json", code=3)
    said = json.loads(done.stdout)
    assert "kdhub-cracked 0.4 is installed and failed" in said["message"] and "second half" in said["message"]
    assert "kdhub plugins uninstall kdhub-cracked" in said["hint"]

    listed = site.kdhub("list", "methods")
    assert "leaf" in listed.stdout and "cracked" not in listed.stdout
    assert listed.stderr.count("\n") == 1 and "the second half is missing" in listed.stderr
    asked = site.kdhub("distill", "--method", "cracked", "--dry-run", code=3)
    assert "RuntimeError: the second half is missing" in asked.stderr
    assert "the second half is missing" in site.kdhub("list", "methods", code=3, KDHUB_STRICT="1").stderr

    site.kdhub("plugins", "uninstall", "kdhub-cracked")
    assert site.kdhub("list", "methods").stderr == ""


def test_what_is_refused_before_pip_is_called(site):
    assert "does not remove itself" in site.kdhub("plugins", "uninstall", "KDHub", code=2).stderr
    unknown = site.kdhub("plugins", "uninstall", "kdhub-txt", code=2)
    assert "no plugin named 'kdhub-txt'" in unknown.stderr and "kdhub-text" in unknown.stderr
    failed = site.kdhub("plugins", "install", "kdhub-that-nobody-has", code=1)
    assert "installing kdhub-that-nobody-has failed: ERROR" in failed.stderr


def test_a_plugin_for_another_kdhub_is_refused_and_kdhub_stays(site, tmp_path):
    source = tmp_path / "later"
    source.mkdir()
    text = (SOURCES / "kdhub-orbit" / "pyproject.toml").read_text().replace("kdhub>=0.1,<0.2", "kdhub>=7")
    (source / "pyproject.toml").write_text(text)
    (source / "kdhub_orbit").mkdir()
    (source / "kdhub_orbit" / "__init__.py").touch()
    done = site.kdhub("plugins", "install", source, code=1)
    assert "depends on kdhub>=7" in done.stderr and "it requires another version of kdhub" in done.stderr
    assert site.kdhub("--version").stdout.startswith("kdhub 0.1")


@pytest.mark.slow
def test_what_the_template_makes_works_for_every_kind(site):
    """Made, installed in place, checked, and the method distils. (The method is checked by the guide's test.)"""
    for kind in KINDS:
        made = site.kdhub("new", "plugin", f"my-{kind}", "--kind", kind, "--json")
        assert json.loads(made.stdout)["folder"] == f"kdhub-my-{kind}"
    for kind in KINDS:
        (code,) = (site.folder / f"kdhub-my-{kind}").glob(f"*/{kind}.py")
        lines = [line for line in code.read_text().splitlines() if line.strip()]
        assert len(lines) <= 60 or kind == "task", f"{code.name} has {len(lines)} lines"
    linted = site.run("-m", "ruff", "check", "--isolated", *(f"kdhub-my-{kind}" for kind in KINDS))
    assert linted.returncode == 0, linted.stdout

    done = site.kdhub("plugins", "install", "-e", *(f"kdhub-my-{kind}" for kind in KINDS), "--json")
    assert {r["distribution"] for r in json.loads(done.stdout)["installed"]} == {f"kdhub-my-{kind}" for kind in KINDS}

    others = [f"kdhub-my-{kind}" for kind in KINDS[1:]]
    results = json.loads(site.run("-c", CHECK, *others).stdout.splitlines()[-1])
    assert [r for r in results if r["outcome"] not in ("passed", "skipped")] == []
    assert {r["subject"].split()[0] for r in results if r["outcome"] == "passed"} == {"plugin", *KINDS[1:]}

    site.run("-c", "from kdhub_tasks.tiny import tiny_encoder; tiny_encoder(__import__('pathlib').Path('small'))")
    sets = [part for setting in TINY for part in ("--set", setting)]
    places = ["--teacher", "path:./small", "--student", "layers:1", "--data", "my-dataset:40", "--out", "made"]
    site.kdhub("distill", "--method", "my-method", *places, *sets)
    assert (site.folder / "made" / "student" / "modules.json").is_file()


GUIDE = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
TINY = ["max_steps=2", "batch_size=8", "evaluation.cost=false", "evaluation.data=[]", "precision=float32"]


def test_the_guide_can_be_followed_from_top_to_bottom(site):
    """Every command of docs/writing-a-plugin.md, in order; but the distillation is short, on other rows, and the checks
    that the command before has made are not all made again."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 8
    (site.folder / "lines.txt").write_text("\n".join(f"line {i} of forty" for i in range(40)))
    site.run("-c", "from kdhub_tasks.tiny import tiny_encoder; tiny_encoder(__import__('pathlib').Path('guide'))")
    for command in commands:
        program, *arguments = shlex.split(command)
        if arguments == ["distill", "--method", "similarity"]:
            arguments += ["--teacher", "path:./guide", "--student", "layers:1", "--data", "./lines.txt"]
            arguments += [part for setting in TINY for part in ("--set", setting)]
        elif arguments[:2] == ["-m", "pytest"]:
            arguments += ["-k", "distils or count"]
        done = site.run(*(["-m", "kdhub"] if program == "kdhub" else []), *arguments)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert list((site.folder / "dist").glob("kdhub_similarity-0.1.0-*.whl"))
    site.kdhub("plugins", "uninstall", "kdhub-similarity")


# -- kdhub new ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("Similarity", "method", "is not a valid plugin name"),
        ("a--b", "method", "is not a valid plugin name"),
        ("../x", "method", "is not a valid plugin name"),
        ("class", "method", "is not a valid plugin name"),
        ("text", "method", "kdhub-text is installed already"),
        ("mine", "methd", "method"),
    ],
)
def test_names_and_kinds_that_cannot_be(tmp_path, name, kind, says):
    from kdhub.errors import UsageError
    from kdhub.verbs.new import new_plugin

    with pytest.raises(UsageError) as caught:
        new_plugin(name, kind=kind, parent=tmp_path)
    assert says in f"{caught.value.message} {caught.value.hint}" and not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    from kdhub.errors import UsageError
    from kdhub.verbs.new import new_plugin

    made = new_plugin("kdhub-mine", parent=tmp_path)
    assert made.name == "kdhub-mine" and (made / "kdhub_mine" / "method.py").is_file()
    before = sorted(made.rglob("*"))
    with pytest.raises(UsageError, match="exists already"):
        new_plugin("mine", kind="teacher", parent=tmp_path)
    assert sorted(made.rglob("*")) == before


# -- environments that are not pip's --------------------------------------------------------------------------


@pytest.mark.parametrize("manager", ["pipx", "uv", "none", "system"])
def test_where_pip_is_not_the_way_the_command_that_is_is_named(monkeypatch, tmp_path, manager):
    from kdhub.errors import UsageError
    from kdhub.verbs import plugins

    monkeypatch.setattr(plugins, "_pip", lambda *_: pytest.fail("pip was called"))
    monkeypatch.setattr(plugins.sys, "prefix", str(tmp_path))
    if manager == "pipx":
        (tmp_path / "pipx_metadata.json").write_text("{}")
    elif manager == "system":
        monkeypatch.setattr(plugins.sys, "base_prefix", str(tmp_path))
        monkeypatch.setattr(plugins.sysconfig, "get_path", lambda _: str(tmp_path))
        (tmp_path / "EXTERNALLY-MANAGED").write_text("[externally-managed]")
    else:
        monkeypatch.setattr(plugins, "find_spec", lambda _: None)
        (tmp_path / "pyvenv.cfg").write_text("home = x\n" + ("uv = 0.9.1\n" if manager == "uv" else ""))
    with pytest.raises(UsageError) as caught:
        plugins.install(["kdhub-orbit"])
    wanted = {
        "pipx": f"pipx inject {tmp_path.name} kdhub-orbit",
        "uv": f"uv pip install --python {sys.executable} kdhub-orbit",
        "none": "-m ensurepip",
        "system": "python -m venv .venv",
    }
    assert wanted[manager] in caught.value.hint


def test_a_plugin_that_is_slow_to_load_is_named(run_python, make_distribution, tmp_path):
    slow = "import time\ntime.sleep(0.7)\n"
    make_distribution(tmp_path / "site", "kdhub-slow", plugins={"slow": "slow_plugin"}, files={"slow_plugin.py": slow})
    done = run_python("from kdhub.cli.app import run; run()", tmp_path / "site", args=("plugins", "--json"))
    assert "plugin slow (kdhub-slow 1.0): takes 0." in done.stderr and "every command waits" in done.stderr
    (record,) = [r for r in json.loads(done.stdout) if r["distribution"] == "kdhub-slow"]
    assert record["seconds"] >= 0.7


TASK = "series-classification"


def test_a_new_task_is_one_folder_and_one_line_for_all_methods_and_verbs(site, tmp_path):
    """`kdhub-series` has a task, a network, a kind of student and data; methods of others find it by traits."""
    site.kdhub("plugins", "install", site.wheel("kdhub-series"))
    said = site.run("-c", CHECK, "kdhub-series")
    results = json.loads(said.stdout.splitlines()[-1])
    assert [r for r in results if r["outcome"] not in ("passed", "skipped")] == []
    fitting = {row["name"] for row in json.loads(site.kdhub("list", "methods", "--task", TASK, "--json").stdout)}
    assert {"kd", "rank", "dkd", "lelp", "mixkd", "multi-teacher", "supervised"} <= fitting and "swing" not in fitting

    shared = {
        "task": TASK,
        "student": "gru:6",
        "data": {"train": ["waves"]},
        "options": {"max_steps": 150, "batch_size": 32, "lr": 0.02, "precision": "float32"},
        "evaluation": {"data": [{"source": "waves", "split": "test"}], "cost": False},
    }
    for name, own in {
        "teacher": {"method": "supervised", "student": "gru:12"},
        "kd": {"method": "kd", "teacher": "path:./teacher/student"},
        "rank": {"method": "rank", "teacher": "path:./teacher/student"},
    }.items():
        (site.folder / f"{name}.yaml").write_text(json.dumps({"name": name, **shared, **own}))
        site.kdhub("distill", "--recipe", f"{name}.yaml", "--out", name)
        report = json.loads((site.folder / name / "report.json").read_text())
        (accuracy,) = (m["value"] for m in report["measures"] if (m["metric"], m["subject"]) == ("accuracy", "student"))
        assert accuracy > 0.5  # of three classes, as many rows of each

    done = site.kdhub("compare", "--methods", "kd,rank", "--recipe", "kd.yaml", "--seeds", "1", "--out", "compared")
    assert "supervised" in done.stdout  # the baseline was added
    assert "accuracy" in site.kdhub("evaluate", "kd", "--data", "waves:test").stdout

    with serve(tmp_path / "hub") as hub:
        there = {k: v for k, v in hub.environment(HF_HUB_OFFLINE="0").items() if k.startswith("HF_")}
        site.kdhub("publish", "kd", "owner/waves", "--licence", "mit", **there)
        site.kdhub("pull", "owner/waves", "--to", "pulled", **there)
        assert "verified" in site.kdhub("verify", "owner/waves", **there).stdout
        site.kdhub("plugins", "uninstall", "kdhub-series")
        lost = site.kdhub("evaluate", "pulled", "--data", "digits", code=2).stderr
        assert f"a student for '{TASK}', and no plugin here knows that task" in lost and "kdhub-series" in lost
