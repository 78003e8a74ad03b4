"""The documentation says what the code does: tables, hooks, links, and the plugins that readers are told to copy."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import make_tables  # noqa: E402

from kdhub import hookspecs  # noqa: E402
from kdhub.verbs.new import new_plugin  # noqa: E402

PAGES = [*make_tables.documents(), *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
FILE = re.compile(r"```\w+\n# ((?:kdhub_|pyproject)\S+)\n(.*?)```", re.DOTALL)

USE = """
import torch
from kdhub import Signals
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.chain import resolve_recipe
from kdhub.verbs.listing import show

def terms(recipe, student, teacher):
    student, teacher = Signals(embedding=torch.tensor(student)), Signals(embedding=torch.tensor(teacher))
    return {k: v.item() for k, v in Resolver().method(recipe).objective(student, teacher, {}, None).items()}

student, teacher = [[1.0, 0, 0], [0, 1.0, 0]], [[2.0, 0], [1.0, 0]]
recipe = resolve_recipe(method="similarity", set={"power": 2})
assert (recipe.name, recipe.student.source) == ("similarity", "layers:2"), recipe
assert "exponent" in str(show("similarity"))
assert terms(recipe, student, teacher) == {"similarity": 0.5}  # cosines 0 against 1, in two of four pairs

recipe = resolve_recipe(method="mine", data="./texts.txt")
assert recipe.teacher.source == "minilm-l6" and not recipe.options, recipe
assert terms(recipe, [[1.0, 0], [0, 1.0]], teacher) == {"cosine": 0.5}
"""


@pytest.mark.parametrize("page", make_tables.documents(), ids=lambda p: p.name)
def test_tables_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert make_tables.filled(text) == text, "run `make docs`"


def test_every_table_is_used():
    used = {name for page in make_tables.documents() for _, name, _ in make_tables.PLACE.findall(page.read_text())}
    assert used == set(make_tables.TABLES)


def test_every_hook_has_a_heading():
    hooks = {name for name in vars(hookspecs) if name.startswith("kdhub_")}
    headings = re.findall(r"^### (kdhub_\w+)$", (ROOT / "docs" / "plugins.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(hooks)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_plugins_to_copy_work(tmp_path, make_distribution, run_python):
    site = tmp_path / "site"
    made = new_plugin("similarity", parent=tmp_path)
    recipe = "kdhub_similarity/registry/recipes/similarity.yaml"
    for page, name, most in (("docs/writing-a-plugin.md", "similarity", 60), ("docs/extending.md", "mine", 20)):
        files = dict(FILE.findall((ROOT / page).read_text(encoding="utf-8")))
        assert sum(bool(line.strip()) for text in files.values() for line in text.splitlines()) <= most
        if name == "similarity":  # the page shows what `kdhub new plugin` writes
            assert files == {path: (made / path).read_text() for path in files}
            files |= {recipe: (made / recipe).read_text()}
            declared = (made / "pyproject.toml").read_text()
        else:
            declared = files.pop("pyproject.toml")
        (target,) = re.findall(rf'^{name} = "(\w+\.plugin)"$', declared, re.MULTILINE)
        make_distribution(site, f"kdhub-{name}", plugins={name: target}, files=files)
    result = run_python(USE, site, KDHUB_STRICT="1")
    assert result.returncode == 0, result.stderr
