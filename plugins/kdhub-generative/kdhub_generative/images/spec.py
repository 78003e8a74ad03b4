"""Drawing pictures: the task, and what is provided for it."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, NetworkSpec, StudentSpec, TaskSpec

NAME = "image-generation"
HERE = "kdhub_generative.images"
LOWER = {"higher_is_better": False}
TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}.task:ImageGeneration", signals=("image", "x0"), reads=(("seed",),),
        formats=(FolderFormat(file="model_index.json", keys=("unet", "scheduler")),),
        summary="seeds, with a class or a prompt, to pictures",
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_generative.methods.", tasks=(NAME,))
METHODS = (
    _method(
        "denoise", "denoise:Denoise", "a diffusion trained on pictures: teachers, and the baseline without one",
        uses=("x0",), labels=True, baseline=True, paper="arXiv:2006.11239", recipe="digits-diffusion",
    ),
    _method(
        "boot", "boot:Boot", "a diffusion to one call, from noise alone, by bootstrapping along its own trajectories",
        needs=("image",), uses=("x0",), live=True, paper="arXiv:2306.05544", recipe="boot",
    ),
    _method(
        "rollout", "rollout:Rollout", "a diffusion to one call, by regression of pictures that it drew in many steps",
        needs=("image",), uses=("x0",), paper="arXiv:2101.02388", recipe="rollout",
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(
        name="denoiser-mlp", target=f"{HERE}.networks:DenoiserMlp",
        summary="residual perceptron over all pixels of a small picture, for diffusions",
    ),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}.", tasks=(NAME,))
STUDENTS = (
    _student(
        "denoiser", "students:Denoiser", "a fresh diffusion, a perceptron over all pixels of small pictures",
        argument="width=N,blocks=N",
    ),
    _student(
        "unet", "pipelines:Unet", "a fresh diffusion, a U-Net of the diffusers library",
        argument="width=N,levels=N,layers=N",
    ),
    _student("signal", "students:Signal", "the teacher's network as a one-call model", from_teacher=True),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="noise", target=f"{HERE}.data:noise", argument="N", example="16", tasks=(NAME,),
        splits=("train", "validation", "test"),
        summary="seeds, with classes or prompts in turn; real pictures beside them for metrics alone",
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(NAME,))
METRICS = (
    _metric("frechet", "frechet", "Fréchet distance to real pictures, of pixels unless a feature is named", **LOWER),
    _metric("kernel-distance", "kernel", "kernel distance to real pictures, likewise", **LOWER),
    _metric("precision", "precision", "share of drawn pictures that lie among real ones"),
    _metric("recall", "recall", "share of real pictures that lie among drawn ones: diversity"),
    _metric("nearest-real", "nearest", "mean distance to the nearest real picture; 0 for copies"),
    _metric(
        "paired-error", "paired_error", "mean squared difference from the teacher's picture of the same seed in 100 "
        "steps", fidelity=True, **LOWER,
    ),
    _metric(
        "paired-share", "paired_share", "the paired error as a share of that of the teacher in one call",
        fidelity=True, **LOWER,
    ),
    _metric(
        "frechet-share", "frechet_share", "the Fréchet distance as a share of that of the teacher in one call",
        fidelity=True, **LOWER,
    ),
    _metric("own-error", "own_error", "the same from the model's own picture in 100 steps", **LOWER),
)  # fmt: skip
