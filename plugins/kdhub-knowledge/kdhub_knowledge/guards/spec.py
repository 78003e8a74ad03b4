"""Guards: pairs of a prompt and a response that may do harm."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec, NetworkSpec, StudentSpec, TeacherSpec

HERE = "kdhub_knowledge.guards"
READ = ("text-classification", "text-pairs")

METHODS = (
    MethodSpec(
        name="harmaug", target="kdhub_knowledge.methods.harmaug:HarmAug", tasks=READ, needs=("logits",),
        recipe="harmaug", paper="arXiv:2410.01524", tags=("elicitation:expansion", "algorithm:divergence"),
        summary="a small guard from labels and a large guard, on real rows and on rows that language models wrote",
    ),
)  # fmt: skip

TEACHERS = (
    TeacherSpec(
        name="terms", target=f"{HERE}.terms:Terms", tasks=READ, gives=("logits",),
        summary="a guard that knows a list of words",
    ),
    TeacherSpec(
        name="word-ngrams", target=f"{HERE}.word_lm:WordNgrams", argument="DATA",
        tasks=("causal-lm",), gives=("text",),
        summary="a counted language model of words that was taught to refuse, for tests and without a large model",
    ),
)  # fmt: skip

STUDENTS = (
    StudentSpec(
        name="ngrams", target=f"{HERE}.ngrams:ngrams", argument="N", example="1", tasks=READ, exposes=("logits",),
        summary="a fresh linear classifier of hashed runs of up to N words",
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(
        name="hashed-ngrams", target=f"{HERE}.ngrams:HashedNgrams", summary="a linear map of hashed n-grams of words"
    ),
)  # fmt: skip

_of_data = DatasetSpec.shorthand(f"{HERE}.", argument="DATA")
DATASETS = (
    _of_data(
        "harmaug", "harmaug:harmaug", "rows of a rare class that language models wrote, begun so as not to refuse",
        splits=("train", "requests"), tags=("elicitation:expansion",),
    ),
    _of_data("judged", "data:judged", "another data set's texts or pairs, labelled by a guard", splits=("train",)),
    _of_data(
        "scarce", "data:scarce", "another data set of two classes, few rows of the second with labels",
        splits=("train", "teacher", "others", "unlabelled", "edited", "validation", "test"),
    ),
    DatasetSpec(
        name="reports", target=f"{HERE}.reports:reports", splits=("train",),
        summary="short generated reports, some of which are about a harmless mishap",
    ),
)  # fmt: skip

METRICS = (
    MetricSpec(
        name="refusal-rate", target=f"{HERE}.metrics:refusal_rate", traits=("rows",), files=True,
        higher_is_better=False, summary="share of the requests of harmaug: that were refused",
    ),
    MetricSpec(
        name="kept-rate", target=f"{HERE}.metrics:kept_rate", traits=("rows",), files=True,
        summary="share of the requests of harmaug: that became an instruction",
    ),
)  # fmt: skip
