"""A generated log: users who like two genres each, and take what is popular of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import UsageError
from kdhub_knowledge.items.log import Taken, leave_last

GENRES = (
    "comedy", "crime", "romance", "horror", "western", "fantasy", "war", "mystery", "history", "music", "sport",
    "travel", "science", "family", "adventure", "politics", "nature", "cooking", "art", "satire",
)  # fmt: skip
ADJECTIVES = (
    "Silent", "Golden", "Hidden", "Broken", "Distant", "Burning", "Frozen", "Crooked", "Velvet", "Hollow", "Scarlet",
    "Wandering", "Iron", "Paper", "Midnight", "Winter", "Salt", "Amber", "Restless", "Last",
)  # fmt: skip
NOUNS = {
    "films": (
        "River", "Harbour", "Window", "Garden", "Bridge", "Lantern", "Mirror", "Station", "Orchard", "Tower", "Letter",
        "Shadow",
    ),
    "books": (
        "Compass", "Ledger", "Cathedral", "Meadow", "Alphabet", "Voyage", "Portrait", "Clock", "Island", "Archive",
        "Fountain", "Sparrow",
    ),
}  # fmt: skip
FIRST, SECOND = 0.65, 0.75
"""Share of items of a user's first genre, and of the rest of the second."""


def tastes(
    users: int = 600, items: int = 240, genres: int = 12, taken: int = 14, domain: str = "films", seed: int = 0
) -> Data:
    """The generated log. Genres of items are drawn uniformly, their popularity by gamma(.7) + .05; a user takes
    different items, from the first genre with probability .65, else the second with .75, else any genre, by popularity
    inside the genre. The last one is the test, the one before for validation.

    Args:
        taken: items of each user.
        domain: films, or books, which have other titles and the same genres.

    Raises:
        UsageError: no such domain or genres, or too few items.
    """
    if domain not in NOUNS:
        raise UsageError(f"tastes: domain must be {' or '.join(NOUNS)} (domain={domain!r})")
    if not 3 <= genres <= len(GENRES) or users < 1 or taken < 4 or items < 2 * taken:
        raise UsageError(
            f"tastes needs a user, 3 to {len(GENRES)} genres, 4 taken items and twice as many items "
            f"({users=}, {genres=}, {taken=}, {items=})"
        )
    shape = {"users": users, "items": items, "genres": genres, "taken": taken, "domain": domain, "seed": seed}

    @cache
    def world() -> tuple[np.ndarray, list[list[int]]]:
        draw = np.random.default_rng([seed, list(NOUNS).index(domain)])
        genre, weight = draw.integers(genres, size=items), draw.gamma(0.7, size=items) + 0.05
        given = []
        for _ in range(users):
            liked, mine = draw.choice(genres, 2, replace=False), []
            while len(mine) < taken:
                one = liked[0] if draw.random() < FIRST else liked[1] if draw.random() < SECOND else None
                left = np.setdiff1d(np.arange(items) if one is None else np.flatnonzero(genre == one), mine)
                if one is None and len(left):
                    left = left[genre[left] == draw.choice(np.unique(genre[left]))]
                if len(left):
                    mine.append(int(draw.choice(left, p=weight[left] / weight[left].sum())))
            given.append(mine)
        return genre, given

    def catalogue() -> Iterator[dict]:
        for n, genre in enumerate(world()[0]):
            title, tag = _title(n, domain), GENRES[genre]
            yield {"item": f"{domain}-{n}", "title": title, "description": f"{title}. {tag}", "tags": [tag]}

    def log() -> Iterator[Taken]:
        for user, mine in enumerate(world()[1]):
            for time, item in enumerate(mine):
                yield Taken(str(user), f"{domain}-{item}", time, f"tastes, user {user}")

    return leave_last("tastes", log, catalogue, least=4, rows_per_user=1, key=shape, licence="cc0-1.0")


def _title(n: int, domain: str) -> str:
    noun, again = divmod(n, len(ADJECTIVES))
    more = noun // len(NOUNS[domain])
    return f"{ADJECTIVES[again]} {NOUNS[domain][noun % len(NOUNS[domain])]}" + f" {more + 1}" * bool(more)
