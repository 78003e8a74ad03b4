"""What kdhub-lm provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

TASKS = ("causal-lm",)
CLASSIFIERS = ("image-classification", "tabular-classification", "text-classification", "token-classification")
SIGNALS = ("logits", "features")
GIVES = (*SIGNALS, "text")


@hookimpl
def kdhub_tasks():
    yield TaskSpec(
        name="causal-lm",
        target="kdhub_lm.task:CausalLanguage",
        signals=GIVES,
        summary="texts, each token from those before it",
    )


@hookimpl
def kdhub_methods():
    yield MethodSpec(
        name="taid",
        target="kdhub_lm.taid:Taid",
        summary="a target that moves from the student to the teacher",
        paper="arXiv:2501.16937",
        tasks=(*TASKS, *CLASSIFIERS),
        needs=("logits",),
        recipe="taid",
    )
    yield MethodSpec(
        name="ddk",
        target="kdhub_lm.ddk:Ddk",
        summary="labels and a little of the teacher, on domains drawn by how far the student lags",
        paper="arXiv:2407.16154",
        tasks=(*TASKS, *CLASSIFIERS),
        needs=("logits",),
        labels=True,
        recipe="ddk",
    )
    yield MethodSpec(
        name="seqkd",
        target="kdhub_lm.seqkd:SeqKd",
        summary="what the teacher writes, as labels",
        paper="arXiv:1606.07947",
        tasks=TASKS,
        needs=("text",),
        uses=("logits",),
        recipe="seqkd",
    )
    yield MethodSpec(
        name="grpo",
        target="kdhub_lm.grpo:Grpo",
        summary="the student's own answers, those that a verifier finds right more probable",
        paper="arXiv:2402.03300",
        tasks=TASKS,
        uses=("logits",),
        labels=True,
        recipe="grpo",
    )
    # The last of three stages. What is new is in the rows (`triage:`) and in the start (`grpo`): training is by labels.
    yield MethodSpec(
        name="metis-rise",
        target="kdhub_logits.supervised:Supervised",
        summary="after reinforcement: its own right answers where it is not sure, an expert's where it fails",
        paper="arXiv:2506.13056",
        tasks=TASKS,
        uses=("logits",),
        labels=True,
        recipe="metis-rise",
    )
    yield MethodSpec(
        name="dpo",
        target="kdhub_lm.dpo:Dpo",
        summary="the better of two responses more probable, the worse one less, as against the start",
        paper="arXiv:2305.18290",
        tasks=TASKS,
        uses=("logits",),
        labels=True,
        recipe="dpo",
    )
    yield MethodSpec(
        name="rrhf",
        target="kdhub_lm.rrhf:Rrhf",
        summary="responses ranked by their probability as a teacher ranks them",
        paper="arXiv:2304.05302",
        tasks=TASKS,
        uses=("logits",),
        labels=True,
        recipe="rrhf",
    )


@hookimpl
def kdhub_samplers():
    yield SamplerSpec(
        name="ddk",
        target="kdhub_lm.ddk:DomainSampler",
        summary="data sets in shares that follow the perplexity ratio of student and teacher",
    )


@hookimpl
def kdhub_teachers():
    def teacher(name, function, argument, summary):
        return TeacherSpec(
            name=name,
            target=f"kdhub_lm.models:{function}",
            tasks=TASKS,
            gives=GIVES,
            argument=argument,
            live=True,
            summary=summary,
        )

    yield teacher("path", "path_teacher", "FOLDER", "a folder of a transformers language model")
    yield teacher("hf", "hub_teacher", "org/name[@revision]", "a transformers language model on the Hugging Face Hub")
    yield TeacherSpec(
        name="openai",
        target="kdhub_lm.openai:OpenAI",
        tasks=TASKS,
        gives=("text", "logits"),
        argument="MODEL",
        summary="a language model behind any OpenAI-compatible API",
    )


@hookimpl
def kdhub_students():
    def builder(name, function, argument, summary, **spec):
        return StudentSpec(
            name=name,
            target=f"kdhub_lm.models:{function}",
            tasks=TASKS,
            exposes=SIGNALS,
            argument=argument,
            summary=summary,
            **spec,
        )

    yield builder(
        "llama", "llama", "width=N,layers=N,heads=N", "a fresh Llama, with the teacher's tokens or with bytes",
        example="width=16,layers=1,heads=2",
    )  # fmt: skip
    yield builder("path", "path_student", "FOLDER", "a folder of a transformers language model")
    yield builder("hf", "hub_student", "org/name[@revision]", "a transformers language model on the Hugging Face Hub")
    yield builder("layers", "layers", "N", "N evenly spaced layers of the teacher", example="1", from_teacher=True)


@hookimpl
def kdhub_datasets():
    yield DatasetSpec(
        name="canaries",
        target="kdhub_lm.canaries:canaries",
        argument="DATA",
        example="pydoc",
        summary="texts of another data set in blocks, with secrets put in, whose exposure can be measured",
    )
    yield DatasetSpec(
        name="continuations",
        target="kdhub_lm.continuations:continuations",
        argument="DATA",
        example="pydoc",
        summary="texts of another data set, cut into prompt and response",
    )
    yield DatasetSpec(
        name="python-source",
        target="kdhub_lm.python_source:python_source",
        splits=("train", "validation", "test"),
        summary="source code of the running Python's standard library",
    )
    yield DatasetSpec(
        name="arithmetic",
        target="kdhub_lm.arithmetic:arithmetic",
        argument="add,larger,twice",
        example="add",
        summary="small problems with one right answer each",
    )
    yield DatasetSpec(
        name="preferences",
        target="kdhub_lm.judged:preferences",
        argument="DATA",
        example="arithmetic:add",
        summary="responses to the prompts of another data set, and a score for each",
    )
    yield DatasetSpec(
        name="chat",
        target="kdhub_lm.conversations:conversations",
        argument="DATA",
        example="synthetic:sums",
        summary="prompts and responses of another data set as conversations; long conversations in pieces",
    )
    yield DatasetSpec(
        name="mixture",
        target="kdhub_lm.mixture:mixture",
        splits=("train",),
        summary="instruction sets of several sources in stated shares, each row with its source and who wrote it",
    )
    yield DatasetSpec(
        name="triage",
        target="kdhub_lm.triage:triage",
        argument="DATA",
        splits=("train", "prompts"),
        summary="a model's own right answers where it is not sure, an expert's where it fails",
    )
    yield DatasetSpec(
        name="synthetic",
        target="kdhub_lm.synthetic:synthetic",
        argument="additions|integers|sums|reversals",
        example="additions",
        summary="texts that are made: additions, rows of integers, sums worked out, words turned round",
    )


@hookimpl
def kdhub_metrics():
    def metric(name, target, summary, better=True, form=("texts", "responses", "conversations"), **spec):
        return MetricSpec(
            name=name, target=target, tasks=TASKS, summary=summary, higher_is_better=better, form=form, **spec
        )

    logits = "kdhub_logits.metrics"
    yield metric("perplexity", "kdhub_lm.task:perplexity", "exp of the mean -log probability of a token", False)
    yield metric(
        "perplexity-ratio", "kdhub_lm.task:perplexity_ratio", "perplexity over the teacher's", False, fidelity=True
    )
    yield metric("bits-per-byte", "kdhub_lm.task:bits_per_byte", "-log2 probability of the text for each byte", False)
    yield metric("nll", f"{logits}:nll", "mean -log probability of a token, nats", False)
    yield metric("accuracy", f"{logits}:accuracy", "share of tokens that are the most probable one")
    yield metric("agreement", f"{logits}:agreement", "share of tokens where both choose one", fidelity=True)
    yield metric("kl", f"{logits}:divergence", "mean KL(teacher || student) of a token, nats", False, fidelity=True)
    yield metric(
        "exposure", "kdhub_lm.canaries:exposure", "log2 of candidates over the secret's rank, mean of canaries", False,
        form="rows",
    )  # fmt: skip
    yield metric(
        "extraction", "kdhub_lm.canaries:extraction", "share of canaries whose secret is the most probable", False,
        form="rows",
    )  # fmt: skip


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
