"""Some hundred hostile folders, cards, manifests, recipes and damaged files: each is refused, in a sentence, with the
promised exit code; nothing is imported, run or asked for it, and none takes long.

A part of them runs always, the whole of them with `-m slow`. `make fuzz` goes on from here at random.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import yaml
from hostile import watched
from safetensors.numpy import save_file

import kdhub
from kdhub.errors import KdhubError
from kdhub.evaluation.card_check import check_card
from kdhub.hub.files import digests, walk
from kdhub.hub.manifest import UNLISTED
from kdhub.hub.trust import check_model_folder
from kdhub.plain_yaml import plain_yaml
from kdhub.recipes.resolve import Resolver

LONGEST = 10.0
SHARE = 5
"""One of so many runs always."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("kdhub.verbs.publish._usage_problems", lambda *a: [])


@dataclass
class Case:
    """One thing that is refused.

    Attributes:
        make: changes the folder; use: what refuses it; code: with this exit code, or one of these.
        folder: of files, put back afterwards. says: what must stand in the sentence.
    """

    name: str
    make: Callable[[], Any]
    use: Callable[[], Any]
    code: int | tuple[int, ...]
    folder: Path
    says: str = ""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A package that must not be imported, though it could be."""
    (tmp_path / "site" / "evil_canary").mkdir(parents=True)
    (tmp_path / "site" / "evil_canary" / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def published(toys, toy_run, hub, tmp_path) -> Path:
    """A student as it was pulled from a hub, without the record of that."""
    kdhub.publish(toy_run, "me/toy", licence="mit")
    kdhub.pull("me/toy", to=tmp_path / "published")
    (tmp_path / "published" / ".kdhub-pull.json").unlink()
    return tmp_path / "published"


@pytest.fixture
def run(toy_run, tmp_path) -> Path:
    """A run without seals, as older versions left it."""
    shutil.copytree(toy_run, tmp_path / "run")
    (tmp_path / "run" / "seals.json").unlink()
    for name in ("provenance.json", "state.json"):
        value = json.loads((tmp_path / "run" / name).read_bytes())
        value.pop("seal", None)
        (tmp_path / "run" / name).write_text(json.dumps(value))
    return tmp_path / "run"


def agreeing(folder: Path) -> None:
    """Have the manifest name the files as they are now: a stranger who means harm does so too."""
    path = folder / "kdhub.json"
    value = json.loads(path.read_bytes())
    files = {name: digests(file) for name, file in walk(folder) if name not in UNLISTED}
    value["files"] = {name: {"size": found.size, "sha256": found.sha256} for name, found in files.items()}
    path.write_text(json.dumps(value))


def of_models(tmp_path: Path) -> Iterator[Case]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": np.zeros((4, 4), np.float32), "b": np.zeros(3, np.float32)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    files = [*hostile.models(), *((f"weights, {name}", "model.safetensors", c) for name, c in hostile.weights(whole))]
    for name, file, content in files:
        yield Case(name, lambda f=file, c=content: put(folder / f, c), lambda: check_model_folder(folder), 4, folder)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def of_published(folder: Path) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes) -> Case:
        def make():
            (folder / file).write_bytes(content)
            if file != "kdhub.json":
                agreeing(folder)

        return Case(f"{file}, {name}", make, lambda: kdhub.verify(folder), 4, folder)

    whole = {name: json.loads((folder / name).read_bytes()) for name in ("report.json", "kdhub.json", "config.json")}
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    for name, value in hostile.replaced(whole["report.json"], hostile.REPORT):
        yield case(name, "report.json", json.dumps(value).encode())
    for name, value in hostile.replaced(whole["kdhub.json"], hostile.MANIFEST):
        yield case(name, "kdhub.json", json.dumps(value).encode())
    for name, value in hostile.replaced(plain_yaml(front), hostile.FRONT):
        yield case(name, "README.md", f"---\n{yaml.safe_dump(value)}---\n{body}".encode())
    for name, value in hostile.replaced(
        recipe, {"seed": ["x"], "task": [7], "teacher": [7], "evaluation": [7, {"x": 1}]}
    ):
        yield case(name, "recipe.yaml", yaml.safe_dump(value).encode())
    for name, text in hostile.YAML.items():
        yield case(name, "recipe.yaml", text.encode())
        yield case(name, "README.md", f"---\n{text}---\n{body}".encode())
    for name, content in hostile.NO_JSON.items():
        for file in ("report.json", "kdhub.json", "config.json"):
            yield case(name, file, content)
    for value in ([], {"hidden": "6"}, {"hidden": -1}, {"hidden": 10**6}, {"hidden": None}, {}, {"sizes": 7}):
        yield case(f"{value!r}", "config.json", json.dumps(value).encode())
    for file in ("recipe.yaml", "README.md"):
        yield case("not UTF-8", file, b"\xff\xfe\xff")


def of_runs(folder: Path) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes) -> Case:
        use = lambda: kdhub.publish(folder, "me/toy", licence="mit", dry_run=True)  # noqa: E731
        return Case(f"{file}, {name}", lambda: (folder / file).write_bytes(content), use, 1, folder)

    whole = {name: json.loads((folder / name).read_bytes()) for name in ("report.json", "provenance.json")}
    for file, wrong in (("report.json", hostile.REPORT), ("provenance.json", hostile.PROVENANCE)):
        for name, value in hostile.replaced(whole[file], wrong):
            yield case(name, file, json.dumps(value).encode())
        for name, content in hostile.NO_JSON.items():
            yield case(name, file, content)
    for name, content in hostile.NO_JSON.items():
        yield case(name, "state.json", content)
        yield case(name, "seals.json", content)
    for name, text in hostile.YAML.items():
        yield case(name, "recipe.yaml", text.encode())


def of_recipes(folder: Path, recipe: dict[str, Any]) -> Iterator[Case]:
    folder.mkdir()

    def case(name: str, content: bytes) -> Case:
        use = lambda: kdhub.distill(folder / "r.yaml", out=folder / f"out-{name.encode().hex()}"[:200])  # noqa: E731
        return Case(f"recipe, {name}", lambda: (folder / "r.yaml").write_bytes(content), use, 2, folder)

    for name, value in hostile.replaced(recipe, hostile.RECIPE):
        yield case(name, yaml.safe_dump(value).encode())
    for name, text in hostile.YAML.items():
        yield case(name, text.encode())
    for key in recipe:
        yield case(f"{key} with a token", yaml.safe_dump({**recipe, key: "hf_" + "a1B2" * 8}).encode())


def of_data(tmp_path: Path) -> Iterator[Case]:
    """Files of data, each in place of a whole one."""
    from PIL import Image

    def of(source: str, file: str, contents: Iterable[tuple[str, bytes]], whole: dict[str, bytes], **options: Any):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, content in whole.items():
            put(folder / name, content)
        named = {"source": source.format(folder), "options": options}
        use = lambda: kdhub.open_data(named).split("train")  # noqa: E731
        if file in whole:
            assert len(use())  # opened before, so that what it imports is known
        for name, content in contents:
            yield Case(f"{file}, {name}", lambda c=content: put(folder / file, c), use, 1, folder, file)

    graph = {name: np.asarray(values) for name, values in hostile.GRAPH.items()}
    words = {**{name: graph[name] for name in ("edges", "y", "train", "val", "test")}, **hostile.WORDS}
    yield from of("graph:{}/g.npz", "g.npz", hostile.archives(graph), {"g.npz": hostile.npz(graph)})
    for whole, wrong in ((graph, hostile.NO_GRAPH), (words, hostile.NO_WORDS)):
        contents = ((name, hostile.npz(value)) for name, value in hostile.replaced(whole, wrong))
        yield from of("graph:{}/h.npz", "h.npz", contents, {"h.npz": hostile.npz(whole)})
    network = hostile.XML.format(
        '<key id="d" for="node" attr.name="text" attr.type="string"/>'
        '<key id="l" for="node" attr.name="label" attr.type="string"/>',
        "".join(f'<node id="{n}"><data key="d">x</data><data key="l">{n % 2}</data></node>' for n in range(40))
        + '<edge source="0" target="1"/>',
    ).encode()
    texts = [(name, text.encode("latin-1")) for name, text in hostile.NETWORKS.items()]
    yield from of("graph:{}/g.graphml", "g.graphml", texts, {"g.graphml": network})
    dots = {"image": np.zeros((4, 8, 8), np.uint8), "dots": np.array([[0, 1, 2]])}
    few = {"train": 2, "validation": 1}
    yield from of("dots:{}/d.npz", "d.npz", hostile.archives(dots), {"d.npz": hostile.npz(dots)}, **few)
    yield from of("npz:{}/t.npz", "t.npz", hostile.archives({"a": np.ones(3)}), {"t.npz": hostile.npz({"a": [1.0]})})
    made = io.BytesIO()
    Image.new("L", (8, 8)).save(made, "png")
    image = {"a.png": made.getvalue()}
    values = [(repr(value)[:40], json.dumps(value).encode()) for value in hostile.POINTS]
    values += [(name, content) for name, content in hostile.NO_JSON.items()]
    yield from of("points:{}", "a.json", values, image)
    for file in ("points.json", "counts.json"):
        inner = [(repr(value)[:40], json.dumps({"a.png": value}).encode()) for value in hostile.POINTS]
        yield from of("points:{}", file, inner + list(hostile.NO_JSON.items()), image)
    yield from of("points:{}", "a.csv", hostile.LINES.items(), image)
    for file, head in (("points.csv", b"image,x,y\n"), ("counts.csv", b"image,count\n")):
        lines = [(n, head + b"a.png," + line.rpartition(b"\n")[0] + line) for n, line in hostile.LINES.items()]
        yield from of("points:{}", file, lines, image)
    yield from of("points:{}", "a.npy", hostile.DENSITIES.items(), image)
    yield from of("points:{}", "a.mat", hostile.matlab(), {**image, "a.mat": whole_mat()})


def whole_mat() -> bytes:
    from scipy.io import savemat

    made = io.BytesIO()
    savemat(made, {"annPoints": [[1.0, 2.0]]})
    return made.getvalue()


def of_students(tmp_path: Path) -> Iterator[Case]:
    """Configurations of kdhub's own students, with weights that are none of theirs; parts of pipelines."""
    resolver, folder, pipeline = Resolver(), tmp_path / "student", tmp_path / "pipeline"
    folder.mkdir()
    save_file({"a": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    for task, configs in hostile.STUDENTS.items():
        for config in configs:  # opened before, so that what they import is known
            put(folder / "config.json", json.dumps({"kdhub": 1, "task": task, **config}).encode())
            with suppress(KdhubError):
                resolver.task(task).load(folder)
    for name, task, config in hostile.students():
        make = lambda c=config: put(folder / "config.json", json.dumps(c).encode())  # noqa: E731
        yield Case(name, make, lambda t=task: resolver.task(t).load(folder), (2, 4), folder)
    for file, value in hostile.PIPELINE.items():
        (pipeline / file).parent.mkdir(parents=True, exist_ok=True)
        (pipeline / file).write_text(json.dumps(value))
    save_file({"a": np.zeros((4, 4), np.float32)}, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    with suppress(KdhubError):
        resolver.task("image-generation").load(pipeline)
    for file, wrong in hostile.NO_PIPELINE.items():
        for name, value in hostile.replaced(hostile.PIPELINE.get(file, {}), wrong):
            make = lambda f=file, v=value: put(pipeline / f, json.dumps(v).encode())  # noqa: E731
            use = lambda: resolver.task("image-generation").load(pipeline)  # noqa: E731
            yield Case(f"{file}, {name}", make, use, (2, 4), pipeline)


def tried(cases: list[Case]) -> list[str]:
    """What was not as promised, one line each."""
    wrong = []
    for case in cases:
        kept = {path: path.read_bytes() for path in case.folder.rglob("*") if path.is_file()}
        case.make()
        with watched() as seen:
            try:
                case.use()
                wrong.append(f"{case.name}: not refused")
            except KdhubError as error:
                if error.exit_code not in (case.code if isinstance(case.code, tuple) else (case.code,)):
                    wrong.append(f"{case.name}: exit code {int(error.exit_code)}, not {case.code} ({error})")
                if case.says not in error.message:
                    wrong.append(f"{case.name}: does not name {case.says}: {error}")
                if any(word in error.message for word in ("subscriptable", "has no attribute", "is a NoneType")):
                    wrong.append(f"{case.name}: says {error.message}")
            except Exception as error:  # what would end in a traceback
                wrong.append(f"{case.name}: {type(error).__name__}: {error}")
        wrong += [f"{case.name}: {what}" for what in seen.done]
        if seen.seconds > LONGEST:
            wrong.append(f"{case.name}: took {seen.seconds:.1f} s")
        for path in [path for path in case.folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()
        for path, content in kept.items():
            put(path, content)
    return wrong


def some(cases: Iterator[Case], share: int) -> list[Case]:
    """One of each so many, other ones for other kinds."""
    cases = list(cases)
    return random.Random(len(cases)).sample(cases, -(-len(cases) // share))


@pytest.mark.parametrize("share", [SHARE * 4, pytest.param(1, marks=pytest.mark.slow)])
def test_each_is_refused(canary, published, run, toy_run, tmp_path, share):
    recipe = plain_yaml((toy_run / "recipe.yaml").read_bytes())
    kdhub.verify(published), kdhub.publish(run, "me/toy", licence="mit", dry_run=True)  # what a whole one imports
    kdhub.distill(recipe, out=tmp_path / "whole")
    kinds = [of_models(tmp_path), of_published(published), of_runs(run), of_recipes(tmp_path / "recipes", recipe)]
    cases = [case for kind in kinds for case in some(kind, share)]
    assert len(cases) >= 300 // share and "evil_canary" not in sys.modules
    wrong = tried(cases)
    assert not wrong, "\n".join(wrong)
    print(f"{len(cases)} hostile things, each refused")


@pytest.mark.parametrize("share", [SHARE * 16, pytest.param(1, marks=pytest.mark.slow)])
def test_each_file_of_a_family_is_refused(canary, isolated, tmp_path, monkeypatch, share):
    monkeypatch.setattr("kdhub_vision.counting.matlab.ROOM", 2**20)
    monkeypatch.setattr("kdhub.plain_arrays.ROOM", 2**20)
    cases = [case for kind in (of_data(tmp_path), of_students(tmp_path)) for case in some(kind, share)]
    wrong = tried(cases)
    assert not wrong, "\n".join(wrong)
    print(f"{len(cases)} hostile files of families, each refused")


def test_a_planted_fault_is_seen(canary, tmp_path):
    """What the corpus looks for is found where it is."""
    (tmp_path / "x").mkdir()
    put(tmp_path / "x" / "a", b"1")

    def use(what: str) -> None:
        if what == "import":
            with pytest.raises(SystemExit):
                __import__("evil_canary")
        elif what == "traceback":
            {}["x"]
        elif what == "code":
            raise KdhubError("no")
        elif what == "process":
            __import__("os").system("true")

    made = [
        Case(w, lambda: None, lambda w=w: use(w), 4, tmp_path / "x") for w in ("import", "traceback", "code", "process")
    ]
    told = tried(made)
    for said in (
        "imported evil_canary",
        "import: not refused",
        "traceback: KeyError",
        "code: exit code 1",
        "os.system",
    ):
        assert any(said in line for line in told)


def test_cards_are_checked_in_sentences():
    for name, text in hostile.YAML.items():
        assert check_card(f"---\n{text}---\n# x\n\ny\n"), name
