"""`movielens:FOLDER`: the files of MovieLens as GroupLens has them, in a folder that the user names.

| folder | ratings | films |
| --- | --- | --- |
| 100k | `u.data`, between tabs | `u.item`, between `|`, a flag for each of 19 genres |
| 1m | `ratings.dat`, between `::` | `movies.dat` |
| latest-small and others | `ratings.csv` | `movies.csv` |

A first line with the names of columns is passed over, and copies of `u.data` between other marks are read. The data
may be used for research and not passed on: nothing of it is here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdhub.data.dataset import Data
from kdhub.errors import DataError
from kdhub.files import given_or_shared, sha256_file
from kdhub_knowledge.items.catalogue import plain_title
from kdhub_knowledge.items.log import Taken, leave_last, number_in

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""Of 100k, in the order of its flags."""
FILES = (("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))


def movielens(argument: str, *, least_rating: float = 4.0, least: int = 5, rows_per_user: int = 1) -> Data:
    """Films that users rated well, the last ones held out. Films of one title are one, the first.

    Args:
        argument: the folder; one that is not there is looked for below KDHUB_DATA.
        least_rating: films of this rating or a better one are those that a user took.
        least: films of a user, who is left out with fewer; rows_per_user: training rows of a user at most.

    Raises:
        DataError: the folder has no such files, or a line that cannot be read, by file and line.
    """
    folder = given_or_shared(argument, Path.is_dir)
    there = {path.name for path in folder.iterdir()} if folder else set()
    files = next((pair for pair in FILES if there.issuperset(pair)), None)
    if files is None:
        wanted = "; ".join(" and ".join(pair) for pair in FILES)
        raise DataError(
            f"movielens:{argument}: {f'{folder} has none of the pairs {wanted}' if folder else 'no such folder'}",
            hint="unpack ml-100k.zip, ml-1m.zip or ml-latest-small.zip of grouplens.org/datasets and name the folder",
        )
    ratings, films = (folder / name for name in files)
    name, first = f"movielens:{argument}", {}

    def items() -> Iterator[dict[str, Any]]:
        titles: dict[str, str] = {}
        for film, title, tags, _ in read(films, film_of):
            same = titles.setdefault(plain_title(title) + "".join(re.findall(r"\(\d{4}\)\s*$", title)), film)
            first[film] = same
            if same == film:
                about = f"{title}. {', '.join(tags)}" if tags else title
                yield {"item": film, "title": title, "description": about, "tags": tags}

    def log() -> Iterator[Taken]:
        if not first:
            list(items())
        for user, film, rating, time, where in read(ratings, rating_of):
            if rating >= least_rating:
                yield Taken(user, first.get(film, film), time, where)

    key = {"files": [sha256_file(ratings), sha256_file(films)], "least_rating": least_rating}
    licence = "MovieLens: research use, not to be passed on"
    return leave_last(name, log, items, least=least, rows_per_user=rows_per_user, key=key, licence=licence)


def read(path: Path, line_of: Callable[[list[str], str], tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The lines of a file, between the marks that it has; one with names in the place of a first number is passed over.

    Raises:
        DataError: a line that cannot be read.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.splitlines()
    marks = (",",) if path.suffix == ".csv" else ("::", "|", "\t", ",")
    mark = next((mark for mark in marks if lines and mark in lines[0]), ",")
    parts = csv.reader(lines) if mark == "," else (line.split(mark) for line in lines)
    for number, given in enumerate(parts, 1):
        if not given or not "".join(given).strip() or (number == 1 and not given[0].strip().isdigit()):
            continue
        where = f"{path}, line {number}"
        try:
            yield (*line_of(given, where), where)
        except IndexError:
            raise DataError(f"{where}: {len(given)} fields between {mark!r}, and more are needed") from None


def rating_of(given: list[str], where: str) -> tuple[str, str, float, float]:
    return given[0], given[1], number_in(given[2], "rating", where), number_in(given[3], "time", where)


def film_of(given: list[str], where: str) -> tuple[str, str, list[str]]:
    film, title = given[0], given[1].strip()
    if not title:
        raise DataError(f"{where}: film {film} has no title", hint="correct the line, or take it and its ratings out")
    if len(given) >= 5 + len(GENRES):
        return film, title, [genre for genre, flag in zip(GENRES, given[-len(GENRES) :]) if flag.strip() == "1"]
    tags = given[2] if len(given) > 2 else ""
    return film, title, [tag for tag in tags.split("|") if tag and not tag.startswith("(")]
