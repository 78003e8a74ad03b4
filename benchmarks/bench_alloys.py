"""The whole table of evidence fusion on real alloys, on one core: `OMP_NUM_THREADS=1 python -m benchmarks alloys`.

1,110 quaternary alloys (`hea-quaternary` below KDHUB_DATA) and the stored answers of five experts: each of 24 elements
left out in turn (of Si all alloys are Low) and five random halves, from the labelled sets, from the experts, and from
both; each fit measures the trust of its sources by five-fold cross-validation. Without run folders and reports.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
from _common import record

COLUMNS = {"a": "element_a", "b": "element_b", "answer": "q2", "knows": "q1"}
EXPERTS = {"source": "experts:hea/llm_expert_substitution.tsv.gz", "columns": COLUMNS}
SOURCES = {"data": ["data"], "experts": ["experts"], "hybrid": []}
ELEMENTS, SILICON, HALVES = 25, 19, 5


def fitted(data: Any, teacher: Any, task: Any, sources: list[str]) -> Any:
    """A student of the method, without what a run does around it."""
    from kdhub_knowledge.methods.evidence_fusion import EvidenceFusion

    import kdhub
    from kdhub.rows import Rows
    from kdhub.signals.store import row_key
    from kdhub.signals.stored import stored_signals

    student = kdhub.open_student("belief", task.name, teacher=teacher, facts=task.survey([(data, "train")]))
    run = SimpleNamespace(
        student=student, teacher=teacher, task=task, mark_start=lambda student: None, stage=lambda name, work: work(),
        rows=lambda: Rows.build(data.split("train"), task.preparer(student, None), row_key),
        signals=lambda rows, kind: stored_signals(teacher, rows, kind),
    )  # fmt: skip
    return EvidenceFusion(EvidenceFusion.Options(folds=5, sources=sources)).distill(run)


def main() -> None:
    from sklearn.metrics import f1_score, roc_auc_score

    import kdhub

    task, teacher = kdhub.open_task("item-sets"), kdhub.open_teacher(EXPERTS, "item-sets")
    splits = [("element", {"item": n}) for n in range(ELEMENTS) if n != SILICON]
    splits += [("half", {"share": 0.5, "seed": n}) for n in range(HALVES)]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    began, worked = time.perf_counter(), time.process_time()
    for kind, options in splits:
        data = kdhub.open_data({"source": "left-out:hea-quaternary", "options": options})
        for name, sources in SOURCES.items():
            student = fitted(data, teacher, task, sources)
            examples = task.preparer(student, None)(list(data.split("test")))
            logits, labels = student.signals(examples, "logits")["logits"], [e["label"] for e in examples]
            f1 = f1_score(labels, logits.argmax(1), average="macro", labels=[0, 1], zero_division=0)
            found[f"{kind} {name}"].append((f1, roc_auc_score(labels, logits[:, 1] - logits[:, 0])))
    took = {"seconds": time.perf_counter() - began, "processor_s": time.process_time() - worked}
    means = {name: tuple(map(statistics.mean, zip(*values))) for name, values in found.items()}
    for name, (f1, auc) in means.items():
        print(f"{name:16} macro-F1 {f1:.3f}  AUC {auc:.3f}")
    print(json.dumps(took))
    record("alloys", fits=len(splits) * len(SOURCES), **took, means=means)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDHUB_HOME"] = folder
        np.seterr(all="raise", under="ignore")
        main()
