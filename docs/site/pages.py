"""The pages of the documentation site: `make docs-site` calls this, then mkdocs.

Written by hand are the pages beside this file. The rest is what the repository has already: docs/, the READMEs of the
families, and a page for each method, made of its `MethodSpec`, the docstring of its module, its options, the recipes
that use it and what the ledger says of it. Links between files of the repository become links between pages.

    python docs/site/pages.py build/site
"""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import make_tables as tables  # noqa: E402

API = {
    "Run": "distill evaluate compare label load export render publish pull search verify count_costs "
    "Recipe Run KdhubError",
    "Open": "open_data open_network open_student open_task open_teacher Data Task NetworkTask Teacher SavedTeacher "
    "Student DatasetStudent Signals",
    "Write a plugin": "Method MethodOptions ObjectiveMethod RunContext Progress Sampler hookimpl API_VERSION",
    "Declare a plugin": "DatasetSpec ExporterSpec FolderFormat MethodSpec MetricSpec NetworkSpec Role RowForm "
    "SamplerSpec StudentSpec TaskSpec TeacherSpec",
}
"""Page of the reference -> public names of kdhub. A test sees to it that none is missing."""

MEMBERS = {"Run": "open student_folder recipe report provenance metrics", "KdhubError": "to_dict"}
"""Name -> its members for users, where the others are for kdhub itself."""

WRITTEN = {
    "index.md": "kdhub",
    "engineer.md": "A smaller model this week",
    "researcher.md": "My method against the others",
    "team.md": "Publish, pull, verify, sign",
    "offline.md": "Without a network",
}
GUIDES = "usage recipes compare search hub".split()
INSIDE = "architecture extending writing-a-plugin plugins".split()

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"<!-- /?table[^>]*-->\n?|<!-- /?results[^>]*-->\n?")
GREEK = dict(
    zip(
        "alpha beta gamma delta epsilon eps zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
        "Gamma Delta Theta Lambda Sigma Phi Psi Omega".split(),
        "αβγδεεζηθκλμνξπρστφχψωΓΔΘΛΣΦΨΩ",
    )
)
SIGNS = {"&lt;-": "←", "-&gt;": "→", "&gt;=": "≥", "&lt;=": "≤", "!=": "≠", "~=": "≈", "+-": "±"}
WORDS = {"sum": "∑", "prod": "∏", "sqrt": "√", "inf": "∞", "grad": "∇"}


@dataclass
class Site:
    """Pages to be.

    Attributes:
        pages: path on the site -> (its text, the file of the repository that its links are relative to).
        places: file of the repository -> path on the site.
    """

    pages: dict[str, tuple[str, Path]] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)

    def add(self, path: str, text: str, source: Path, *, stands_for: bool = True) -> None:
        self.pages[path] = (text, source)
        if stands_for:
            self.places[source.resolve()] = path

    def write(self, folder: Path) -> None:
        for path, (text, source) in self.pages.items():
            (file := folder / path).parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.linked(text, path, source), encoding="utf-8")

    def linked(self, text: str, path: str, source: Path) -> str:
        """The text with links to files of the repository as links to pages; those to files that are no pages go, and
        their words stay.

        Raises:
            FileNotFoundError: a link leads nowhere.
        """

        def link(found: re.Match[str]) -> str:
            bang, words, target = found.groups()
            if re.match(r"[a-z]+:", target) or target.startswith("#"):
                return found[0]
            name, hash_, anchor = target.partition("#")
            file = (source.parent / name).resolve()
            if not file.exists():
                if name in self.pages or (Path(path).parent / name).as_posix() in self.pages or bang:
                    return found[0]  # it is one of the site's own already
                raise FileNotFoundError(f"{source.relative_to(ROOT)} has a link to {target}, which is not there")
            if file not in self.places:
                return found[0] if bang else words
            there = os.path.relpath(self.places[file], Path(path).parent)
            return f"{bang}[{words}]({there}{hash_}{anchor})"

        pieces = FENCED.split(TABLE.sub("", text))
        return "".join(piece if n % 2 else LINK.sub(link, piece) for n, piece in enumerate(pieces))


def site() -> tuple[Site, list[Any]]:
    """All pages, and how they stand in the navigation."""
    made = Site()
    for name in WRITTEN:
        made.add(name, (HERE / name).read_text(encoding="utf-8"), HERE / name)
    for name in ("gallery.md", "peers.md"):
        made.add(name, (HERE / name).read_text(encoding="utf-8"), HERE / name)
    made.places[ROOT / "README.md"] = "index.md"
    for name in (*GUIDES, *INSIDE):
        made.add(f"guide/{name}.md", _of_repository(ROOT / "docs" / f"{name}.md"), ROOT / "docs" / f"{name}.md")
    made.add("methods/index.md", choose(), ROOT / "docs" / "methods.md")
    made.add("evidence.md", (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), ROOT / "docs" / "evidence.md")
    made.add("benchmarks.md", _of_repository(ROOT / "benchmarks" / "README.md"), ROOT / "benchmarks" / "README.md")
    made.add("changelog.md", _of_repository(ROOT / "CHANGELOG.md"), ROOT / "CHANGELOG.md")
    families = sorted((ROOT / "plugins").glob("*/README.md"))
    for readme in families:
        made.add(f"families/{readme.parent.name}.md", _of_repository(readme), readme)
    by_family: dict[str, list[str]] = {}
    for entry in tables.entries("method"):
        made.add(f"methods/{entry.name}.md", method(entry), ROOT / "docs" / "methods.md", stands_for=False)
        by_family.setdefault(entry.distribution, []).append(f"methods/{entry.name}.md")
    for title, names in API.items():
        made.add(f"api/{slug(title)}.md", reference(title, names.split()), HERE / "pages.py", stands_for=False)
    nav = [
        {"Start": [{title: name} for name, title in WRITTEN.items()]},
        {"Guide": [f"guide/{name}.md" for name in GUIDES]},
        {
            "Methods": [
                "methods/index.md",
                *({name.removeprefix("kdhub-"): pages} for name, pages in sorted(by_family.items())),
            ]
        },
        {"Families": [{f.parent.name.removeprefix("kdhub-"): f"families/{f.parent.name}.md"} for f in families]},
        {"Measured": ["gallery.md", "evidence.md", "benchmarks.md", "peers.md"]},
        {"Extend": [f"guide/{name}.md" for name in INSIDE]},
        {"Reference": [*({title: f"api/{slug(title)}.md"} for title in API), {"Changes": "changelog.md"}]},
    ]
    return made, nav


def _of_repository(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


# -- methods ------------------------------------------------------------------------------------------------------


def choose() -> str:
    """docs/methods.md as far as it helps to choose, with a link to the page of each method; options are there."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    names = {entry.name for entry in tables.entries("method")}
    text = text.split("\n## Options")[0] if "\n## Options" in text else text.split("\n### ade\n")[0]
    return re.sub(
        r"^\| `([\w-]+)` \|",
        lambda m: f"| [`{m[1]}`]({m[1]}.md) |" if m[1] in names else m[0],
        text,
        flags=re.MULTILINE,
    )


@cache
def when() -> Mapping[str, str]:
    """Method -> "use this when", of docs/methods.md."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("## All of them")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", text, re.MULTILINE))


@cache
def recipes_by_method() -> Mapping[str, list[tuple[str, str]]]:
    """Method -> its recipes, each with what it does."""
    catalog, found = tables.own_catalog(), {}
    for name in sorted(catalog.names("recipes")):
        recipe = catalog.get("recipes", name)
        found.setdefault(recipe.get("method"), []).append((name, recipe.get("summary", "")))
    return found


def method(entry: Any) -> str:
    """One method's page."""
    from kdhub.comparison import evidence
    from kdhub.evaluation import report

    spec, target = entry.spec, tables.Registry().load(entry)
    catalog = tables.own_catalog()
    facts = [
        ("for", tables.listing.tasks_in_short(spec.tasks)),
        ("needs of the teacher", ", ".join(spec.needs) or "nothing"),
        ("paper", tables.paper(spec.paper)),
        ("comes with", f"`{entry.distribution}`"),
    ]
    parts = [f"# {entry.name}\n\n{spec.summary[:1].upper()}{spec.summary[1:]}.\n"]
    if said := when().get(entry.name):
        parts.append(f"**Use it when** {said}.\n")
    parts.append("| | |\n| --- | --- |\n" + "".join(f"| {name} | {value} |\n" for name, value in facts if value))
    recipes = recipes_by_method().get(entry.name, ())
    command = f"kdhub distill --method {entry.name}" + ("" if spec.recipe else " --recipe RECIPE")
    parts.append(f"```sh\n{command}\n```\n")
    if recipes:
        rows = [[f"`{name}`", summary] for name, summary in recipes]
        parts.append("## Recipes\n\n" + tables.markdown(["recipe", "what it does"], rows))
    parts.append("## How it works\n\n" + explained(target))
    parts.append("## Options\n\n" + tables.keys(target.Options, target.defaults_for))
    entries = list(evidence.of_method(entry.name, catalog))
    parts.append("## What was measured\n")
    for one in entries:
        table = report.markdown(evidence.table([one]), lambda cell: cell.replace("|", "\\|"))
        parts.append(
            f"{one['summary'][:1].upper()}{one['summary'][1:]}. `{one['command']}`, {one['metric']} on {one['data']}, "
            f"{one['date']}, {one['machine']}.\n\n{table}\n"
        )
    if not entries:
        parts.append("No comparison has been measured yet.\n")
    return "\n".join(parts)


def explained(target: type) -> str:
    """The docstrings of a method's module and class, formulas set."""
    module = inspect.getdoc(sys.modules[target.__module__]) or ""
    own = inspect.cleandoc(target.__dict__.get("__doc__") or "")
    own = own.split("\nAttributes:")[0].strip()
    return "\n\n".join(filter(None, (readable(module), readable(own)))) + "\n"


def readable(text: str) -> str:
    """A docstring as Markdown: indented blocks are formulas."""
    out: list[str] = []
    for block in re.split(r"\n{2,}", text):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines):
            if out and out[-1].startswith('<pre class="formula" tabindex="0">'):
                out[-1] = out[-1].removesuffix("</pre>") + "\n\n" + formula(block) + "</pre>"
            else:
                out.append(f'<pre class="formula" tabindex="0">{formula(block)}</pre>')
        elif len(lines) > 1 and any(re.match(r"\S+ {2,}\S", line) for line in lines[1:]):
            out.append(f'<pre class="formula" tabindex="0">{formula(block)}</pre>')  # a table of words
        else:
            out.append("\n".join(line.replace("<", "&lt;") if "`" not in line else line for line in lines))
    return "\n\n".join(out)


def formula(block: str) -> str:
    """Plain notation (`p_t`, `T^2`, `alpha`, `<-`) as letters with indices."""
    text = html.escape(inspect.cleandoc("\n" + block), quote=False)
    for sign, letter in SIGNS.items():
        text = text.replace(sign, letter)
    named = "|".join([*GREEK, *WORDS])
    text = re.sub(rf"(?<![\w/.-])({named}|\w(?:\[\w+\])?)_(\w+)", r"\1<sub>\2</sub>", text)
    text = re.sub(rf"\b({named})\b", lambda m: {**GREEK, **WORDS}[m[1]], text)
    text = re.sub(r"(?<=[\w)\]}>|])\^(\([^()]*\)|-?[\w'*]+)", lambda m: f"<sup>{m[1].strip('()')}</sup>", text)
    return text


# -- reference ------------------------------------------------------------------------------------------------------


def reference(title: str, names: Iterable[str]) -> str:
    """A page of the reference: mkdocstrings reads the docstrings of each name where it is defined."""
    import kdhub

    parts = [f"# {title}\n"]
    for name in names:
        where = kdhub._LAZY.get(name) or getattr(getattr(kdhub, name), "__module__", "kdhub.specs")
        where = "kdhub.specs" if name == "API_VERSION" else "kdhub.hookspecs" if name == "hookimpl" else where
        options = {"heading": name, "toc_label": name, "show_root_heading": True, "heading_level": 2}
        options |= {"members": MEMBERS[name].split()} if name in MEMBERS else {}
        parts.append(f"::: {where}.{name}\n    options: {json.dumps(options)}\n")
    return "\n".join(parts)


def main(folder: Path) -> None:
    shutil.rmtree(folder / "pages", ignore_errors=True)
    made, nav = site()
    made.write(folder / "pages")
    shutil.copytree(HERE / "gallery", folder / "pages" / "gallery")
    for name in ("style.css", "site.js"):
        shutil.copy(HERE / name, folder / "pages")
    told = (HERE / "mkdocs.yml").read_text(encoding="utf-8").replace("paths: [../..]", f"paths: [{ROOT}]")
    places = {"docs_dir": "pages", "site_dir": "html", "nav": nav}
    (folder / "mkdocs.yml").write_text(told + "\n" + yaml.safe_dump(places, sort_keys=False, allow_unicode=True))
    print(f"{len(made.pages)} pages in {folder / 'pages'}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve())
