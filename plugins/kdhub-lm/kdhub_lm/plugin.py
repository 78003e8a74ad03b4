"""What kdhub-lm provides. No torch, no transformers here."""

from pathlib import Path

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl

TASKS = ("causal-lm",)
CLASSIFIERS = ("image-classification", "tabular-classification", "text-classification", "token-classification")
SIGNALS = ("logits", "features")
GIVES = (*SIGNALS, "text")
ANSWERED = ("responses", "conversations", "preferences", "rankings")
"""Forms of rows that have an answer."""


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
        tags=("elicitation:feature", "algorithm:divergence"),
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
        tags=("elicitation:feature", "algorithm:divergence"),
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
        tags=("elicitation:labelling", "algorithm:supervised"),
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
        tags=("algorithm:reinforcement-learning",),
    )
    yield MethodSpec(
        name="reward-distill",
        target="kdhub_lm.reward_distill:RewardDistill",
        summary="a teacher's preferences as a reward, and the student's own answers that earn it more probable",
        paper="arXiv:2402.13116",
        tasks=TASKS,
        uses=("logits", "features"),
        labels=True,
        recipe="reward-distill",
        tags=("elicitation:feedback", "algorithm:reinforcement-learning"),
    )
    # What is new is in the rows (`mixture`, `chat:`), of which the assistant's words alone are labels.
    yield MethodSpec(
        name="tulu",
        target="kdhub_logits.supervised:Supervised",
        summary="instruction sets of people and of teachers, mixed, and each skill measured",
        paper="arXiv:2306.04751",
        tasks=TASKS,
        uses=("logits",),
        labels=True,
        recipe="tulu",
        tags=("elicitation:labelling", "algorithm:supervised"),
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
        tags=("elicitation:self-knowledge", "algorithm:supervised"),
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
        tags=("algorithm:rank-optimisation",),
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
        tags=("algorithm:rank-optimisation",),
    )
    yield MethodSpec(
        name="self-data",
        target="kdhub_lm.self_data:SelfData",
        summary="labels that the model wrote anew before it was pruned",
        paper="arXiv:2410.09982",
        tasks=TASKS,
        needs=("text",),
        uses=("logits",),
        labels=True,
        recipe="self-data",
        tags=("elicitation:self-knowledge", "algorithm:supervised"),
    )
    yield MethodSpec(
        name="as-is",
        target="kdhub_lm.as_is:AsIs",
        summary="nothing is trained: the start as a run of its own, measured and with a card",
        paper="arXiv:2402.13116",
        tasks=(*TASKS, *CLASSIFIERS),
    )
    yield MethodSpec(
        name="gkd",
        target="kdhub_lm.gkd:Gkd",
        summary="soft targets on what the student writes itself",
        paper="arXiv:2306.13649",
        tasks=TASKS,
        needs=("logits",),
        live=True,
        recipe="gkd",
        tags=("algorithm:divergence",),
    )
    yield MethodSpec(
        name="minillm",
        target="kdhub_lm.minillm:MiniLlm",
        summary="the reverse KL of whole responses, by policy gradient",
        paper="arXiv:2306.08543",
        tasks=TASKS,
        needs=("logits",),
        live=True,
        recipe="minillm",
        tags=("algorithm:reinforcement-learning",),
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
        name="llama2c",
        target="kdhub_lm.llama2c:teacher",
        tasks=TASKS,
        gives=GIVES,
        argument="FOLDER",
        live=True,
        summary="weights of llama2.c with their SentencePiece tokenizer; also searched below KDHUB_DATA",
    )
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
    def builder(name, function, argument, summary, module="models", **spec):
        return StudentSpec(
            name=name,
            target=f"kdhub_lm.{module}:{function}",
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
    yield builder(
        "depth-prune", "depth_prune", "N", "the teacher without the N blocks that change least", "pruning",
        example="0", from_teacher=True,
    )  # fmt: skip
    yield builder(
        "config", "config", "FILE or {...}", "fresh from a transformers configuration, with the teacher's tokens",
        "configured", example='{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "intermediate_size": 16}',
    )  # fmt: skip
    yield builder("merge", "merge", "", "two students as one, by slerp", "merge", example="layers:1+layers:1")
    yield builder("llama2c", "student", "FOLDER", "weights of llama2.c with their tokenizer", "llama2c")


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
        name="blocks",
        target="kdhub_lm.blocks:blocks",
        argument="DATA",
        example="pydoc",
        summary="lines of running text as texts of a few hundred characters",
    )
    yield DatasetSpec(
        name="lm-eval",
        target="kdhub_lm.harness:tasks",
        argument="TASK",
        splits=("test",),
        summary="a task of lm-evaluation-harness, to evaluate on",
    )

    def elicited(name, summary, argument="DATA"):
        target = f"kdhub_lm.elicitation:{name.replace('-', '_')}"
        return DatasetSpec(name=name, target=target, argument=argument, summary=summary, tags=(f"elicitation:{name}",))

    yield elicited("labelling", "a teacher's answers to the prompts of another data set")
    yield elicited("expansion", "new tasks that a teacher makes up after those of another data set, and its answers")
    yield elicited("curation", "tasks that a teacher makes up for topics and difficulties, and answers", "TOPIC,...")
    yield elicited("feedback", "what a teacher thinks of the student's answers, as preferences")
    yield elicited("self-knowledge", "the student's own answers, as far as they pass a filter")
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
        argument="NAME",
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
        name="self-data",
        target="kdhub_lm.self_data:self_data",
        argument="DATA",
        summary="prompts and responses of another data set, the responses rewritten by a teacher",
    )
    yield DatasetSpec(
        name="synthetic",
        target="kdhub_lm.synthetic:synthetic",
        argument="additions|integers|notes|sums|reversals|lookups|numerals|chatter|stories",
        example="additions",
        summary="texts that are made, and small skills whose answers can be checked",
    )


@hookimpl
def kdhub_metrics():
    def metric(name, function, summary, better=True, form=(*ANSWERED, "texts"), **spec):
        return MetricSpec(
            name=name,
            target=f"kdhub_lm.{function}",
            tasks=TASKS,
            summary=summary,
            higher_is_better=better,
            form=form,
            **spec,
        )

    def beside(name, function, summary, better=True):
        return metric(name, f"metrics:{function}", summary, better, fidelity=True)

    def written(name, function, summary, **spec):
        return metric(name, function, summary, form=ANSWERED, **spec)

    yield metric("perplexity", "metrics:perplexity", "exp of the mean -log probability of a token", False)
    yield metric("bits-per-byte", "metrics:bits_per_byte", "-log2 probability for each byte of text", False)
    yield metric("nll", "metrics:nll", "mean -log probability of a token, nats", False)
    yield metric("accuracy", "metrics:accuracy", "share of tokens that are the most probable one")
    yield beside("perplexity-ratio", "perplexity_ratio", "perplexity over the teacher's", False)
    yield beside("agreement", "agreement", "share of tokens where both choose one")
    yield beside("kl", "kl", "mean KL(teacher || student) of a token, nats", False)
    yield beside("head-mass", "head_mass", "probability of the ten tokens that the teacher finds most probable")
    yield beside("tail-mass", "tail_mass", "probability of the fifth of all tokens that the teacher puts last", False)
    yield beside("draft-acceptance", "draft_acceptance", "share of drafted tokens that the teacher takes")
    yield beside("draft-tokens", "draft_tokens", "of four drafted tokens, how many the teacher takes")
    yield written("rouge-l", "metrics:rouge_l", "common subsequence of words of answer and reference, F")
    yield written("exact-match", "metrics:exact_match", "share of answers that come to the reference's final answer")
    yield written("distinct-1", "metrics:distinct_1", "different words over all words of the answers")
    yield written("distinct-2", "metrics:distinct_2", "different pairs of words over all pairs of the answers")
    yield written("f1", "skills:f1", "words that answer and reference share, F")
    yield written("pass@1", "skills:pass_at_1", "chance that an answer is right, by several (`samples`)")
    yield written("pass@10", "skills:pass_at_10", "chance that one of ten answers is right, by ten or more")
    yield written("unique-words", "skills:unique_words", "different words of an answer", unit="words")
    yield written("mean-length", "metrics:mean_length", "words of an answer", unit="words")
    yield metric(
        "preference-accuracy", "preferences:accuracy", "share of pairs whose better response is the more probable",
        form=("preferences", "rankings"),
    )  # fmt: skip
    yield written("judge", "judge:rating", "mean rating by a model, from 1 to 10")
    yield metric("lm-eval", "harness:value", "what lm-evaluation-harness says on its task", form="rows")
    yield metric(
        "exposure", "canaries:exposure", "log2 of candidates over the secret's rank, mean of canaries", False,
        form="rows",
    )  # fmt: skip
    yield metric(
        "extraction", "canaries:extraction", "share of canaries whose secret is the most probable", False, form="rows"
    )


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent / "registry"
