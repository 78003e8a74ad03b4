"""Node classification, declared: the task, its students, teachers and data. No torch, no transformers here."""

from kdhub import DatasetSpec, MethodSpec, StudentSpec, TaskSpec, TeacherSpec

TASK = "node-classification"
HERE = "kdhub_graph.nodes."
SIGNALS = ("logits", "features", "hop_states")

TASKS = (
    TaskSpec(
        name=TASK, target=f"{HERE}task:NodeClassification", summary="nodes of a graph to one class of a list",
        traits=("classes", "labels", "named-classes", "single-label"), signals=SIGNALS, reads=(("graph", "node"),),
    ),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}students:", tasks=(TASK,), argument="width=N,layers=N", example="width=8")
STUDENTS = (
    _student("gcn", "gcn", "a fresh graph convolutional network"),
    _student("sage", "sage", "a fresh GraphSAGE, mean of neighbours"),
    _student("gat", "gat", "a fresh graph attention network", argument="width=N,layers=N,heads=N"),
    _student("gin", "gin", "a fresh graph isomorphism network, sum of neighbours"),
    _student("node-mlp", "node_mlp", "a fresh perceptron on a node's own features: the control without edges"),
)

TEACHERS = (
    TeacherSpec(
        name="hops", target=f"{HERE}teachers:Hops", tasks=(TASK,), gives=(*SIGNALS, "hop_logits"),
        summary="a model of texts behind prompts of neighbourhoods: its `reader`",
    ),
)  # fmt: skip

METHODS = (
    MethodSpec(
        name="lingugkd", target="kdhub_graph.methods.lingugkd:LinguGkd", tasks=(TASK,), needs=("hop_states",),
        uses=("logits", "hop_states"), labels=True, paper="arXiv:2402.05894", recipe="lingugkd",
        summary="states of each layer led to the teacher's states of as many hops, by contrast",
        tags=("elicitation:feature", "algorithm:similarity"),
    ),
)  # fmt: skip

_PARTS = ("nodes", "edges", "train", "validation", "test")
_data = DatasetSpec.shorthand(f"{HERE}data:", splits=_PARTS)
DATASETS = (
    _data("graph", "graph", "a graph: a folder of nodes and edges, npz or graphml", argument="FOLDER or FILE"),
    DatasetSpec(
        name="hop-prompts",
        target=f"{HERE}data:hop_prompts",
        splits=_PARTS[2:],
        argument="GRAPH",
        example="papers",
        summary="what a reader of a graph is shown of its nodes, as texts with their classes",
    ),
    _data("papers", "papers", "a generated graph of papers with texts that cite each other"),
)
