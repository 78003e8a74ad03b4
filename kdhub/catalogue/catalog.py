"""The catalogue: YAML files of known teachers, students, data sets and recipes, in folders that are stacked.

    <folder>/teachers/some-model.yaml       one file an entry; its name is the file's
    <folder>/recipes/mine/some-run.yaml     a section may have folders inside

The first folder that has a name wins: one given, those of `$KDHUB_CATALOG`, the user's own
(`<config>/kdhub/registry`), those of plugins, the built-in one. What was covered up is in `Catalog.shadowed`.

Names and plain values need nothing but YAML, because `kdhub list` reads them; `check` and `dataset` validate, with
the models of `kdhub.catalogue.models`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import RecipeError, UnknownNameError, UsageError
from kdhub.files import config_home, home
from kdhub.plain_yaml import NotPlain, kind_of, plain_yaml

if TYPE_CHECKING:
    from kdhub.catalogue.index import Index
    from kdhub.catalogue.models import CatalogEntry
    from kdhub.data.dataset import Data, DataOptions

INDEXED = ("published",)
"""Sections that programs write: there may be so many entries that an index of one file answers for them."""

SECTIONS = ("teachers", "students", "datasets", "recipes", "comparisons", "published")
_KIND = {"datasets": "data set", "published": "published student"}


@dataclass(frozen=True)
class Shadow:
    """An entry that another of the same name covers up."""

    section: str
    name: str
    file: Path
    by: Path


def builtin_folder() -> Path:
    """The catalogue that comes with kdhub: package data of a wheel, or `registry/` beside the code of a checkout."""
    core = Path(__file__).parents[1]
    packaged = core / "registry_data"
    return packaged if packaged.is_dir() else core.parent / "registry"


class Catalog:
    """Stacked catalogue folders.

    Args:
        folders: in order of precedence. Folders that are not there count as empty.
    """

    def __init__(self, folders: Iterable[Path]):
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._files: dict[str, dict[str, Path]] = {}
        self._values: dict[Path, dict[str, Any]] = {}
        self.shadowed: list[Shadow] = []

    @classmethod
    def default(cls, given: Path | str | None = None, plugins: Sequence[Path] = ()) -> Catalog:
        """The catalogue of this installation.

        Args:
            given: a folder the user named; it comes first.
            plugins: folders of plugins (`kdhub_catalogs`).

        Raises:
            UsageError: a folder that was named, here or in `$KDHUB_CATALOG`, is not there.
        """
        named = [(str(given), "--catalog")] if given else []
        named += [(part, "KDHUB_CATALOG") for part in os.environ.get("KDHUB_CATALOG", "").split(os.pathsep) if part]
        for folder, who in named:
            if not Path(folder).expanduser().is_dir():
                raise UsageError(f"no catalogue folder {folder} ({who})")
        stack = [Path(folder).expanduser() for folder, _ in named]
        return cls([*stack, config_home() / "registry", *plugins, builtin_folder()])

    def index(self, section: str) -> Index:
        """What may be asked of one of `INDEXED`, however many entries it has."""
        return self._indices[section]

    @cached_property
    def _indices(self) -> dict[str, Index]:
        from kdhub.catalogue.index import Index

        at = home() / "catalogue.sqlite"
        return {section: Index(at, [folder / section for folder in self.folders], read) for section in INDEXED}

    def files(self, section: str) -> dict[str, Path]:
        """Name -> file, in alphabetical order; nothing is opened."""
        if section not in self._files:
            found: dict[str, Path] = {}
            for folder in self.folders:
                own: dict[str, Path] = {}
                for file in sorted((folder / section).rglob("*.yaml")):
                    name = file.stem
                    if name in own:
                        raise RecipeError([f"{file}: {own[name]} has the same name"])
                    own[name] = file
                    if name in found:
                        self.shadowed.append(Shadow(section, name, file, found[name]))
                found = {**own, **found}
            self._files[section] = dict(sorted(found.items()))
        return self._files[section]

    def names(self, section: str) -> list[str]:
        return self.index(section).names() if section in INDEXED else list(self.files(section))

    def __contains__(self, key: tuple[str, str]) -> bool:
        section, name = key
        return self._file(section, name) is not None

    def _file(self, section: str, name: str) -> Path | None:
        return self.index(section).file(name) if section in INDEXED else self.files(section).get(name)

    def near(self, section: str, name: str) -> list[str]:
        """Names that `name` may have been meant to be: all, but of very many only those that begin alike."""
        return self.index(section).near(name) if section in INDEXED else self.names(section)

    def path(self, section: str, name: str) -> Path:
        """The file of an entry.

        Raises:
            UnknownNameError: no such name; with close matches.
        """
        file = self._file(section, name)
        if file is None:
            kind = _KIND.get(section, section[:-1])
            raise UnknownNameError(kind, name, self.near(section, name), how_to_list=f"kdhub list {section}")
        return file

    def get(self, section: str, name: str) -> dict[str, Any]:
        """The keys of an entry as they stand in its file, not validated.

        Raises:
            UnknownNameError: no such name; with close matches.
            RecipeError: the file is not YAML, or no mapping.
        """
        file = self.path(section, name)
        if file not in self._values:
            self._values[file] = read(file)
        return self._values[file]

    def entries(self, section: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """All entries that can be read, and one sentence for each that cannot: one broken file spoils no list."""
        if section in INDEXED:
            return self.index(section).entries()
        entries, problems = {}, []
        for name in self.names(section):
            try:
                entries[name] = self.get(section, name)
            except RecipeError as error:
                problems += error.problems
        return entries, problems

    def check(self, section: str, name: str) -> CatalogEntry:
        """One entry, validated (recipes are checked by `kdhub.recipes.recipe`).

        Raises:
            RecipeError: every wrong key, type and range of the file at once.
        """
        from kdhub.catalogue.models import validate

        return validate(section, name, self.get(section, name), str(self.path(section, name)))

    def dataset(
        self,
        name: str,
        options: DataOptions | None = None,
        *,
        build: Callable[[str, str, Mapping[str, Any]], Data] | None = None,
        data_dir: Path | str | None = None,
        fetch: bool = True,
    ) -> Data:
        """A data set of the catalogue; nothing is read yet.

        Args:
            options: as its use asks for them.
            build: (kind, argument, options) -> data, for entries whose rows a generator makes.
            data_dir: folder of the entries' files; `$KDHUB_DATA` by default.
            fetch: whether the Hub may be asked.

        Raises:
            UnknownNameError, RecipeError: no such entry, or a wrong one.
        """
        from kdhub.catalogue.rows import catalog_data

        entry = self.check("datasets", name).model_dump(exclude_none=True)
        data = catalog_data(name, entry, build=build, data_dir=data_dir, fetch=fetch)
        return data.with_options(options) if options else data

    def check_all(self, sections: Sequence[str] = ("teachers", "students", "datasets")) -> None:
        """Validate every entry of these sections.

        Raises:
            RecipeError: all problems of all files.
        """
        problems: list[str] = []
        for section in sections:
            for name in self.names(section):
                try:
                    self.check(section, name)
                except RecipeError as error:
                    problems += error.problems
        if problems:
            raise RecipeError(problems)


def default_catalog(given: Path | str | None = None) -> Catalog:
    """`Catalog.default` with the folders of the installed plugins."""
    from kdhub.plugins.discovery import get_plugins

    return Catalog.default(given, get_plugins().catalogs())


def read(file: Path, what: str = "an entry") -> dict[str, Any]:
    """A YAML file that is a mapping.

    Raises:
        RecipeError: it cannot be read, is not YAML, or is no mapping; names file and line.
    """
    try:
        values = plain_yaml(file.read_bytes())
    except OSError as error:
        raise RecipeError([f"{file}: {error.strerror or error}"]) from error
    except NotPlain as error:
        place = f", line {error.line}, column {error.column}" if error.line else ""
        raise RecipeError([f"{file}{place}: not valid YAML ({error})"]) from error
    if not isinstance(values, dict):
        raise RecipeError([f"{file}: {what} is a mapping of keys, this is {kind_of(values)}"])
    return values
