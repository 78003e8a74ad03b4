"""Items that people take one after another: the task, and what is provided for it."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec, StudentSpec, TaskSpec

NAME = "sequential-recommendation"
HERE = "kdhub_knowledge.items"
LOWER = {"higher_is_better": False}

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:NextItem", traits=("labels",), reads=(("history",),),
        signals=("logits", "user", "rationale", "item"),
        summary="the next item of a user's history, ranked among all items",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="pulse", target="kdhub_knowledge.methods.pulse:Pulse", tasks=(NAME,), labels=True, recipe="pulse",
        uses=("logits", "user", "rationale", "item"), paper="arXiv:2510.08626",
        summary="why users chose what they chose: rationales, histories and items in one space",
    ),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}.students:", tasks=(NAME,))
STUDENTS = (
    _student(
        "thought-space", "Builder", "fresh encoders of histories, items and rationales; of ids alone, or texts alone",
    ),
    _student(
        "popularity", "PopularityBuilder", "every user gets what most users took in the training rows",
        exposes=("logits",),
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.", tasks=(NAME,), splits=("items", "train", "validation", "test"))
DATASETS = (
    _data("tastes", "tastes:tastes", "a generated log: each user likes two of twelve genres"),
    _data(
        "interactions", "log:interactions", "a log of user, item and time, the last items of each user held out",
        argument="DATA",
    ),
    _data("movielens", "movielens:movielens", "a folder of MovieLens: 100k, 1m or latest-small", argument="FOLDER"),
    _data(
        "rationales", "rationales:rationales", "why the users of another data set chose what they chose, in words",
        argument="DATA", example="tastes", splits=("items",),
    ),
    _data(
        "refined", "rationales:refined", "the rationales of another data set, refined by a student's scores",
        argument="DATA", splits=("items",),
    ),
    _data(
        "recommendations", "spoken:recommendations", "histories as prompts, rationales and next titles as responses",
        argument="DATA", example="rationales:tastes", splits=("train",), tasks=("causal-lm",),
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,))
METRICS = (
    _metric("ndcg@10", "ndcg_10", "1 / log2(rank + 1) of the next item where it is among the first 10, mean"),
    _metric("ndcg@5", "ndcg_5", "the same among the first 5"),
    _metric("hr@10", "hr_10", "share of rows whose next item is among the first 10"),
    _metric("hr@5", "hr_5", "share of rows whose next item is among the first 5"),
    _metric("hr@1", "hr_1", "share of rows whose next item is the first"),
    _metric("mrr", "mrr", "1 / rank of the next item, mean"),
    _metric("candidates", "candidates", "items that the next one is ranked among, itself included, mean"),
    _metric("tied-rows", "tied", "share of rows with another item of the same score; their order decides", **LOWER),
    _metric("noise-chosen", "noise_chosen", "share of rows where the rationale that is wrong is chosen", **LOWER),
)  # fmt: skip
