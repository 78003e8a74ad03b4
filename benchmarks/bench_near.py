"""Near duplicates among short texts: `python benchmarks/bench_near.py [--rows N]`.

Heads are pieces of 5 to 16 characters of Chinese reviews (`zh_reviews` below KDHUB_DATA; without it random ones of
3,000 characters), a third of them earlier ones with one character exchanged. Prints the time of the exact rule with
candidates from an index; of the first 5,000 it must keep those that comparing all pairs keeps.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import time
from pathlib import Path

from _common import record
from kdhub_knowledge.commonsense.near import Novel

FILE = "zh_reviews/waimai_10k.tsv.gz"
LIMIT = 0.7


def heads(rows: int) -> list[str]:
    draw = random.Random(0)
    path = Path(os.environ.get("KDHUB_DATA", "")) / FILE
    if path.is_file():
        text = "".join(c for c in gzip.open(path, "rt", encoding="utf-8").read() if "\u4e00" <= c <= "\u9fff")
    else:
        text = "".join(chr(0x4E00 + min(draw.randrange(3000), draw.randrange(3000))) for _ in range(200_000))
    found: list[str] = []
    while len(found) < rows:
        at = draw.randrange(len(text) - 16)
        found.append(draw.choice(["某人", "某人不", "某人没", ""]) + text[at : at + draw.randint(5, 16)])
        if draw.random() < 1 / 3:
            one = list(draw.choice(found))
            one[draw.randrange(len(one))] = draw.choice(text)
            found.append("".join(one))
    return found[:rows]


def by_pairs(texts: list[str]) -> list[str]:
    """The rule as it is defined: each text against all kept ones."""
    from rapidfuzz.distance import Indel

    kept: list[str] = []
    for text in texts:
        if all(Indel.normalized_similarity(text, other) < LIMIT - 1e-9 for other in kept):
            kept.append(text)
    return kept


def measure(rows: int) -> dict[str, float]:
    texts = heads(rows)
    began, worked, novel = time.perf_counter(), time.process_time(), Novel(LIMIT)
    kept = [text for text in texts if novel.add(text)]
    took = {"seconds": time.perf_counter() - began, "processor_s": time.process_time() - worked}
    few, again = texts[: min(rows, 5000)], Novel(LIMIT)
    assert by_pairs(few) == [text for text in few if again.add(text)], "another choice than that of all pairs"
    return {"rows": rows, "kept": len(kept), **took, "compared": len(few)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    found = measure(parser.parse_args().rows)
    print(f"{found['rows']:,} heads, {found['kept']:,} kept, in {found['seconds']:.1f} s (processor "
          f"{found['processor_s']:.1f} s); equal to all pairs of {found['compared']:,}")  # fmt: skip
    record("near", **found)
