"""The pages of the documentation site, without building it: `make docs-site` does, strictly."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import kdhub

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory):
    made, nav = pages.site()
    made.write(folder := tmp_path_factory.mktemp("pages"))
    return made, nav, folder


def test_every_public_name_is_in_the_reference(pages):
    told = [name for names in pages.API.values() for name in names.split()]
    assert sorted(told) == sorted(kdhub.__all__)


def test_every_method_has_a_page_with_its_options_and_its_formulas(pages, site):
    made, _, folder = site
    for entry in pages.tables.entries("method"):
        text = (folder / "methods" / f"{entry.name}.md").read_text()
        assert f"kdhub distill --method {entry.name}" in text and "## Options" in text
        assert pages.when().get(entry.name, "").split("](")[0] in text
    assert "p<sub>t</sub> = softmax((1 - t) sg(s) + t z)" in (folder / "methods" / "taid.md").read_text()


def test_every_link_leads_to_a_page_or_a_picture(site):
    _, _, folder = site
    for page in folder.rglob("*.md"):
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if not re.match(r"[a-z]+:", target) and not target.startswith("gallery/"):
                assert (page.parent / target).exists(), f"{page.relative_to(folder)}: {target}"
            if target.startswith("gallery/"):
                assert (ROOT / "docs" / "site" / target).exists(), target


def test_every_page_stands_in_the_navigation_once(site):
    made, nav, _ = site

    def leaves(value):
        if isinstance(value, str):
            return [value]
        values = value.values() if isinstance(value, dict) else value
        return [leaf for one in values for leaf in leaves(one)]

    assert sorted(leaves(nav)) == sorted(made.pages)


def test_a_link_that_leads_nowhere_is_named(pages, tmp_path):
    made = pages.Site()
    made.add("a.md", "see [this](nowhere.md)", ROOT / "docs" / "usage.md")
    with pytest.raises(FileNotFoundError, match=r"docs/usage.md has a link to nowhere.md"):
        made.write(tmp_path)


@pytest.mark.parametrize(
    "plain, typeset",
    [
        ("p_t^2", "p<sub>t</sub><sup>2</sup>"),
        ("alpha <- T^(n + 1)", "α ← T<sup>n + 1</sup>"),
        ("L = sum_i w_0 x", "L = ∑<sub>i</sub> w<sub>0</sub> x"),
        ("t_end < lr_decay", "t<sub>end</sub> &lt; lr_decay"),
    ],
)
def test_formulas(pages, plain, typeset):
    assert pages.formula(plain) == typeset
