"""What kdhub-lm provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TeacherSpec, hookimpl

TASKS = ("causal-lm",)


@hookimpl
def kdhub_methods():
    feature, labelling, supervised = "elicitation:feature", "elicitation:labelling", "algorithm:supervised"
    divergence, ranking = "algorithm:divergence", "algorithm:rank-optimisation"
    reinforcement, own = "algorithm:reinforcement-learning", "elicitation:self-knowledge"

    def method(name, target, summary, paper, *tags, **spec):
        given = {"traits": ("next-token",), "recipe": name, "tags": tags, "paper": paper} | spec
        return MethodSpec(name=name, target=target, summary=summary, **given)

    def labelled(name, target, summary, paper, *tags, uses=("logits",), **spec):
        return method(name, target, summary, paper, *tags, labels=True, uses=uses, **spec)

    yield method(
        "taid", "kdhub_lm.methods.taid:Taid", "distillation to a target that moves from student to teacher",
        "arXiv:2501.16937", feature, divergence, traits=("classes",), needs=("logits",),
    )  # fmt: skip
    yield method(
        "ddk", "kdhub_lm.methods.ddk:Ddk",
        "labels and soft targets, with more data from domains where the student lags", "arXiv:2407.16154", feature,
        divergence, traits=("classes",), needs=("logits",), labels=True,
    )  # fmt: skip
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
        "elicitation:feedback", reinforcement, uses=("logits", "features"), traits=(), tasks=TASKS,
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
        own, supervised,
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
        "arXiv:2410.09982", own, supervised, needs=("text",), traits=(), tasks=TASKS,
    )  # fmt: skip
    yield method(
        "gkd", "kdhub_lm.methods.gkd:Gkd", "soft targets on the student's own samples", "arXiv:2306.13649",
        divergence, needs=("logits",), live=True,
    )  # fmt: skip
    yield method(
        "uld", "kdhub_lm.methods.uld:Uld", "probabilities of a teacher with other tokens, by rank", "arXiv:2402.12030",
        feature, divergence, needs=("logits",), live=True,
    )  # fmt: skip
    yield method(
        "gold", "kdhub_lm.methods.gold:Gold", "soft targets of a teacher with other tokens, where both spell the same",
        "https://huggingface.co/docs/trl/gold_trainer", feature, divergence, needs=("logits",), live=True,
    )  # fmt: skip
    yield method(
        "minillm", "kdhub_lm.methods.minillm:MiniLlm", "reverse KL of whole responses, by policy gradient",
        "arXiv:2306.08543", reinforcement, needs=("logits",), live=True,
    )  # fmt: skip


@hookimpl
def kdhub_samplers():
    sampler = SamplerSpec.shorthand("kdhub_lm.methods.")
    yield sampler(
        "ddk", "ddk:DomainSampler", "data sets in shares that follow the perplexity ratio of student and teacher"
    )


@hookimpl
def kdhub_teachers():
    teacher = TeacherSpec.shorthand("kdhub_lm.students.", tasks=TASKS, gives=None, live=True)
    yield teacher(
        "llama2c", "llama2c:teacher",
        "llama2.c weights with their SentencePiece tokenizer; also searched below KDHUB_DATA", argument="FOLDER",
    )  # fmt: skip


@hookimpl
def kdhub_students():
    student = StudentSpec.shorthand("kdhub_lm.students.", tasks=TASKS)
    yield student(
        "depth-prune", "pruning:depth_prune", "the teacher without the N blocks that change their input least",
        argument="N", example="0", from_teacher=True,
    )  # fmt: skip
    yield student("merge", "merge:merge", "two students merged by slerp", example="layers:1+layers:1")
    yield student("llama2c", "llama2c:student", "llama2.c weights with their tokenizer", argument="FOLDER")


@hookimpl
def kdhub_datasets():
    data = DatasetSpec.shorthand("kdhub_lm.data.")
    of_data = DatasetSpec.shorthand("kdhub_lm.data.", argument="DATA")

    def elicited(name, target, summary, argument="DATA"):
        return data(name, target, summary, argument=argument, tags=(f"elicitation:{name}",))

    yield of_data("continuations", "continuations:continuations", "texts cut into prompt and response", example="pydoc")
    yield of_data("blocks", "blocks:blocks", "running text in pieces of a few hundred characters", example="pydoc")
    yield data(
        "lm-eval", "harness:tasks", "a task of lm-evaluation-harness, to evaluate on", argument="TASK",
        splits=("test",),
    )  # fmt: skip
    yield elicited("labelling", "elicitation:labelling", "a teacher's answers to another data set's prompts")
    yield elicited("expansion", "expansion:expansion", "new tasks in the style of given ones, by a teacher")
    yield elicited("curation", "expansion:curation", "new tasks on given topics, by a teacher", "TOPIC,...")
    yield elicited("feedback", "feedback:feedback", "preferences from a teacher's feedback on a student")
    yield elicited("self-knowledge", "elicitation:self_knowledge", "the student's own answers, filtered")
    yield data(
        "python-source", "python_source:python_source", "source code of Python's standard library",
        splits=("train", "validation", "test"),
    )  # fmt: skip
    yield data(
        "arithmetic", "arithmetic:arithmetic", "small problems with one right answer each",
        argument="add,larger,twice", example="add",
    )  # fmt: skip
    yield of_data(
        "preferences", "preferences:preferences", "scored responses to another data set's prompts",
        example="arithmetic:add",
    )  # fmt: skip
    yield of_data(
        "chat", "chat:chat", "prompts and responses as conversations; long conversations in pieces",
        example="synthetic:sums",
    )  # fmt: skip
    yield data(
        "mixture", "mixture:mixture", "instruction sets of several sources in stated shares", argument="NAME",
        splits=("train",),
    )  # fmt: skip
    yield of_data(
        "triage", "triage:triage", "own right answers where a model is unsure, an expert's where it fails",
        splits=("train", "prompts"),
    )  # fmt: skip
    rewritten = DatasetSpec.shorthand("kdhub_lm.methods.")
    yield rewritten(
        "self-data", "self_data:self_data", "another data set's responses, rewritten by a teacher", argument="DATA"
    )
    yield data(
        "synthetic", "synthetic:synthetic", "generated texts, and small skills with checkable answers",
        argument="additions|integers|notes|sums|reversals|lookups|numerals|chatter|stories", example="additions",
    )  # fmt: skip


@hookimpl
def kdhub_metrics():
    metric = MetricSpec.shorthand("kdhub_lm.data.harness:", outputs="kdhub_lm.data.harness:measure")
    yield metric(
        "lm-eval", "value", "score of lm-evaluation-harness on its task", tasks=TASKS, rows=("harness", "shots")
    )


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
