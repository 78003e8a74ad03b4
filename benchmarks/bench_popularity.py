"""Popularity on one log, one split and one protocol: kdhub's ranks and metrics beside RecTools' (`make bench-peers`).

Both are given the same training rows (all but each user's last two items), the same seen items to leave out, and the
last item of each user. Counts are often equal, so RecTools' list is scored twice: as it comes, and with items of equal
counts in the order of the catalogue, which is kdhub's rule. The second must agree to 1e-6.

    python benchmarks/bench_popularity.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import PEERS, child, record

RECTOOLS = PEERS.parents[2] / "recommender-peers" / "bin" / "python"
METRICS = ("hr@10", "hr@5", "hr@1", "ndcg@10", "mrr")


def ours(folder: Path, seed: int) -> dict[str, float]:
    """kdhub's numbers; what RecTools is given is written into a folder."""
    from kdhub_knowledge.items import metrics

    import kdhub
    from kdhub.evaluation.evaluator import student_encoder

    task = kdhub.open_task("sequential-recommendation")
    data = kdhub.open_data({"source": "tastes", "options": {"seed": seed}})
    student = kdhub.open_student("popularity", task=task.name, facts=task.survey([(data, "train")]))
    found = task.outputs(student_encoder(task, student), data, "test")
    train, test = list(data.split("train")), list(data.split("test"))
    given = {
        "items": [row["item"] for row in data.split("items")],
        "train": [[row["user"], item] for row in train for item in [*row["history"], row["item"]]],
        "seen": [[row["user"], item] for row in test for item in row["history"]],
        "test": [[row["user"], row["item"]] for row in test],
    }
    (folder / "log.json").write_text(json.dumps(given))
    return {name: getattr(metrics, name.replace("@", "_"))(found) for name in METRICS}


def theirs(folder: Path) -> dict[str, Any]:
    import pandas as pd
    from rectools import __version__
    from rectools.dataset import Dataset
    from rectools.metrics import MRR, NDCG, HitRate, calc_metrics
    from rectools.models import PopularModel

    given = json.loads((folder / "log.json").read_text())
    at = {item: n for n, item in enumerate(given["items"])}

    def frame(name: str) -> Any:
        made = pd.DataFrame(given[name], columns=["user_id", "item_id"])
        return made.assign(item_id=made.item_id.map(at), weight=1.0, datetime=pd.Timestamp("2020-01-01"))

    train, seen, test = map(frame, ("train", "seen", "test"))
    data, keys = Dataset.construct(train), ["user_id", "item_id"]
    model = PopularModel().fit(data)
    listed = model.recommend(users=train.user_id.unique(), dataset=data, k=len(at), filter_viewed=True)
    marked = listed.merge(seen[keys], how="left", indicator=True, on=keys)
    listed = marked[marked._merge == "left_only"].drop(columns="_merge")  # the validation item was seen as well
    wanted = {f"hr@{k}": HitRate(k) for k in (10, 5, 1)} | {"ndcg@10": NDCG(10, divide_by_achievable=True)}
    found: dict[str, Any] = {"version": __version__}
    for rule in ("as it comes", "in the order of the catalogue"):
        if rule != "as it comes":
            listed = listed.sort_values(["user_id", "score", "item_id"], ascending=[True, False, True])
        listed["rank"] = listed.groupby("user_id").cumcount() + 1
        given = calc_metrics({**wanted, "mrr": MRR(len(at))}, listed, test)
        found[rule] = {name: float(value) for name, value in given.items()}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--theirs", type=Path)
    arguments = parser.parse_args()
    if arguments.theirs:
        print(json.dumps(theirs(arguments.theirs)))
        sys.exit()
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            mine = ours(Path(folder), seed)
            other = child(__file__, "--theirs", folder, python=str(RECTOOLS))
        ruled = other["in the order of the catalogue"]
        worst = max(abs(mine[name] - ruled[name]) for name in METRICS)
        print(f"seed {seed}: kdhub {mine}\n  RecTools {other['version']} as it comes {other['as it comes']}")
        print(f"  with kdhub's order of equal counts at most {worst:.1e} away")
        assert worst < 1e-6, ruled
        record("popularity", seed=seed, kdhub=mine, rectools=other, worst=worst)
