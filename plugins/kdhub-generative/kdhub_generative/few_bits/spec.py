"""Few bits, declared: the method, pictures as sentences, and what weights take. No torch here."""

from kdhub import DatasetSpec, MethodSpec, MetricSpec

METHODS = (
    MethodSpec(
        name="topkld", target="kdhub_generative.methods.topkld:TopKld", traits=("classes",), needs=("logits",),
        summary="a low-bit copy: reverse KL on what a sampler can draw, forward KL on the rest",
        paper="arXiv:2501.06218", recipe="topkld", tags=("elicitation:feature", "algorithm:divergence"),
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="token-images", target="kdhub_generative.few_bits.token_images:token_images", argument="DATA",
        example="digits", tasks=("causal-lm",), splits=("train", "validation", "test"),
        summary="images as sentences: each patch is the nearest word of a code book",
    ),
)  # fmt: skip

METRICS = (
    MetricSpec(
        name="weight-bits", target="kdhub_tasks.quantization:weight_bits", cost=True, unit="bits",
        tasks=("causal-lm", "tabular-classification", "image-classification", "text-classification",
               "token-classification"),
        higher_is_better=False, summary="bits of all weights, with the scales of quantised ones",
    ),
)  # fmt: skip
