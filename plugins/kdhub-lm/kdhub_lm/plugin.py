"""What kdhub-lm provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TeacherSpec, hookimpl

TASKS = ("causal-lm",)


@hookimpl
def kdhub_methods():
    yield MethodSpec(
        name="taid",
        target="kdhub_lm.methods.taid:Taid",
        summary="distillation to a target that moves from student to teacher",
        paper="arXiv:2501.16937",
        traits=("classes",),
        needs=("logits",),
        recipe="taid",
        tags=("elicitation:feature", "algorithm:divergence"),
    )
    yield MethodSpec(
        name="ddk",
        target="kdhub_lm.methods.ddk:Ddk",
        summary="labels and soft targets, with more data from domains where the student lags",
        paper="arXiv:2407.16154",
        traits=("classes",),
        needs=("logits",),
        labels=True,
        recipe="ddk",
        tags=("elicitation:feature", "algorithm:divergence"),
    )

    def method(name, target, summary, paper, *tags, **spec):
        return MethodSpec(
            name=name, target=target, summary=summary, paper=paper, tasks=TASKS, recipe=name, tags=tags, **spec
        )

    def labelled(name, target, summary, paper, *tags, uses=("logits",), **spec):
        return method(name, target, summary, paper, *tags, labels=True, uses=uses, **spec)

    labelling, supervised = "elicitation:labelling", "algorithm:supervised"
    reinforcement, ranking = "algorithm:reinforcement-learning", "algorithm:rank-optimisation"
    yield method(
        "seqkd", "kdhub_lm.methods.seqkd:SeqKd", "sequence-level distillation: the teacher's answers as labels",
        "arXiv:1606.07947", labelling, supervised, needs=("text",), uses=("logits",),
    )  # fmt: skip
    yield labelled(
        "grpo", "kdhub_lm.methods.grpo:Grpo", "reinforcement learning on the student's own answers, with a verifier",
        "arXiv:2402.03300", reinforcement,
    )  # fmt: skip
    yield labelled(
        "reward-distill", "kdhub_lm.methods.reward_distill:RewardDistill",
        "reinforcement learning with a reward model of the teacher's preferences", "arXiv:2402.13116",
        "elicitation:feedback", reinforcement, uses=("logits", "features"),
    )  # fmt: skip
    # New is what is in the rows (`mixture:`, `chat:`), of which the assistant's words alone are labels.
    yield labelled(
        "tulu", "kdhub_tasks.methods.supervised:Supervised",
        "instruction tuning on a mixture of human and teacher data", "arXiv:2306.04751", labelling, supervised,
    )  # fmt: skip
    # The last of three stages. New are the rows (`triage:`) and the start (`grpo`): training is by labels.
    yield labelled(
        "metis-rise", "kdhub_tasks.methods.supervised:Supervised",
        "training after reinforcement learning on own right answers and an expert's", "arXiv:2506.13056",
        "elicitation:self-knowledge", supervised,
    )  # fmt: skip
    yield labelled(
        "dpo", "kdhub_lm.methods.dpo:Dpo", "preference pairs, relative to the starting model", "arXiv:2305.18290",
        ranking,
    )  # fmt: skip
    yield labelled(
        "rrhf", "kdhub_lm.methods.rrhf:Rrhf", "probabilities of responses in the order of the teacher's scores",
        "arXiv:2304.05302", ranking,
    )  # fmt: skip
    yield labelled(
        "self-data", "kdhub_lm.methods.self_data:SelfData", "a pruned model trained on answers its original rewrote",
        "arXiv:2410.09982", "elicitation:self-knowledge", supervised, needs=("text",),
    )  # fmt: skip
    yield method(
        "gkd", "kdhub_lm.methods.gkd:Gkd", "soft targets on the student's own samples", "arXiv:2306.13649",
        "algorithm:divergence", needs=("logits",), live=True,
    )  # fmt: skip
    yield method(
        "minillm", "kdhub_lm.methods.minillm:MiniLlm", "reverse KL of whole responses, by policy gradient",
        "arXiv:2306.08543", reinforcement, needs=("logits",), live=True,
    )  # fmt: skip


@hookimpl
def kdhub_samplers():
    yield SamplerSpec(
        name="ddk",
        target="kdhub_lm.methods.ddk:DomainSampler",
        summary="data sets in shares that follow the perplexity ratio of student and teacher",
    )


@hookimpl
def kdhub_teachers():
    yield TeacherSpec(
        name="llama2c",
        target="kdhub_lm.students.llama2c:teacher",
        tasks=TASKS,
        gives=None,
        argument="FOLDER",
        live=True,
        summary="llama2.c weights with their SentencePiece tokenizer; also searched below KDHUB_DATA",
    )


@hookimpl
def kdhub_students():
    def builder(name, target, argument, summary, **spec):
        return StudentSpec(name=name, target=target, tasks=TASKS, argument=argument, summary=summary, **spec)

    yield builder(
        "depth-prune", "kdhub_lm.students.pruning:depth_prune", "N",
        "the teacher without the N blocks that change their input least", example="0", from_teacher=True,
    )  # fmt: skip
    yield builder(
        "merge", "kdhub_lm.students.merge:merge", "", "two students merged by slerp", example="layers:1+layers:1"
    )
    yield builder("llama2c", "kdhub_lm.students.llama2c:student", "FOLDER", "llama2.c weights with their tokenizer")


@hookimpl
def kdhub_datasets():
    def data(name, target, argument, summary, **spec):
        return DatasetSpec(name=name, target=f"kdhub_lm.{target}", argument=argument, summary=summary, **spec)

    def elicited(name, target, argument, summary):
        return data(name, f"data.{target}", argument, summary, tags=(f"elicitation:{name}",))

    yield data(
        "continuations", "data.continuations:continuations", "DATA", "texts cut into prompt and response",
        example="pydoc",
    )  # fmt: skip
    yield data(
        "blocks", "data.blocks:blocks", "DATA", "running text in pieces of a few hundred characters", example="pydoc"
    )
    yield data(
        "lm-eval", "data.harness:tasks", "TASK", "a task of lm-evaluation-harness, to evaluate on", splits=("test",)
    )
    yield elicited("labelling", "elicitation:labelling", "DATA", "a teacher's answers to another data set's prompts")
    yield elicited("expansion", "expansion:expansion", "DATA", "new tasks in the style of given ones, by a teacher")
    yield elicited("curation", "expansion:curation", "TOPIC,...", "new tasks on given topics, by a teacher")
    yield elicited("feedback", "feedback:feedback", "DATA", "preferences from a teacher's feedback on a student")
    yield elicited("self-knowledge", "elicitation:self_knowledge", "DATA", "the student's own answers, filtered")
    yield data(
        "python-source", "data.python_source:python_source", "", "source code of Python's standard library",
        splits=("train", "validation", "test"),
    )  # fmt: skip
    yield data(
        "arithmetic", "data.arithmetic:arithmetic", "add,larger,twice", "small problems with one right answer each",
        example="add",
    )  # fmt: skip
    yield data(
        "preferences", "data.preferences:preferences", "DATA", "scored responses to another data set's prompts",
        example="arithmetic:add",
    )  # fmt: skip
    yield data(
        "chat", "data.chat:chat", "DATA", "prompts and responses as conversations; long conversations in pieces",
        example="synthetic:sums",
    )  # fmt: skip
    yield data(
        "mixture", "data.mixture:mixture", "NAME", "instruction sets of several sources in stated shares",
        splits=("train",),
    )  # fmt: skip
    yield data(
        "triage", "data.triage:triage", "DATA", "own right answers where a model is unsure, an expert's where it fails",
        splits=("train", "prompts"),
    )  # fmt: skip
    yield data(
        "self-data", "methods.self_data:self_data", "DATA", "another data set's responses, rewritten by a teacher"
    )
    yield data(
        "synthetic", "data.synthetic:synthetic",
        "additions|integers|notes|sums|reversals|lookups|numerals|chatter|stories",
        "generated texts, and small skills with checkable answers", example="additions",
    )  # fmt: skip


@hookimpl
def kdhub_metrics():
    yield MetricSpec(
        name="lm-eval",
        target="kdhub_lm.data.harness:value",
        tasks=TASKS,
        rows=("harness", "shots"),
        outputs="kdhub_lm.data.harness:measure",
        summary="score of lm-evaluation-harness on its task",
    )


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
