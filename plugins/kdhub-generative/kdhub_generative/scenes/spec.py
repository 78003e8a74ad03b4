"""Scenes: the tasks, and what is provided for them."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, NetworkSpec, StudentSpec, TaskSpec, TeacherSpec

FIELD = "radiance-field"
HERE = "kdhub_generative.scenes"
LOWER = {"higher_is_better": False}

TASKS = (
    TaskSpec(
        name=FIELD, target=f"{HERE}.task:RadianceField", signals=("features", "logits"),
        reads=(("image", "viewmat", "K"),), formats=(FolderFormat(keys=("network", "settings")),),
        summary="photographs with cameras to a scene that carries what a 2D model sees in them",
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_generative.methods.", tasks=(FIELD,))
METHODS = (
    _method(
        "segment", "segment:Segment", "a 2D model that names each place of a picture, by labels: teachers of scenes",
        uses=("logits",), labels=True, baseline=True, paper="arXiv:1411.4038", recipe="shell-segmenter",
        tags=("algorithm:supervised",),
    ),
    _method(
        "feature-3dgs", "feature_3dgs:Feature3dgs", "a 2D model's dense features in a scene of 3D Gaussians",
        needs=("features",), uses=(), paper="arXiv:2312.03203", recipe="feature-3dgs", tags=("algorithm:feature",),
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(name="gaussians", target=f"{HERE}.gaussians:Gaussians", summary="scene of 3D Gaussians with features"),
    NetworkSpec(name="voxels", target=f"{HERE}.fields:Voxels", summary="radiance field in a grid"),
    NetworkSpec(name="hashgrid", target=f"{HERE}.fields:HashGrid", summary="radiance field in hashed grids"),
)

_student = StudentSpec.shorthand(f"{HERE}.", tasks=(FIELD,))
STUDENTS = (
    _student(
        "gaussians", "students:gaussians", "3D Gaussians at the points that come with the views, or at N random ones",
        argument="N", example="90", exposes=(),
    ),
    _student(
        "segmenter", "dense:segmenter", "a fresh 2D model of three convolutions", argument="channels=N,width=N",
        example="channels=4,width=4", exposes=("features", "logits"),
    ),
)  # fmt: skip

TEACHERS = (
    TeacherSpec(
        name="dense", target=f"{HERE}.dense:DenseTeacher", gives=("features",), argument="FOLDER or org/name",
        tasks=(FIELD,), live=True, summary="dense states of any vision model of the transformers library",
    ),
)  # fmt: skip

_data = DatasetSpec.shorthand(f"{HERE}.data:", tasks=(FIELD,))
DATASETS = (
    _data(
        "shells", "shells", "views of three generated shells of Gaussians, with labels", splits=("train", "test"),
    ),
    _data("posed", "posed", "photographs with transforms.json or a COLMAP model", argument="FOLDER"),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}.metrics:", tasks=(FIELD,))
METRICS = (
    _metric("psnr", "psnr", "likeness of rendered views to the photographs", unit="dB"),
    _metric("ssim", "structure", "structural similarity of rendered views to the photographs"),
    _metric("miou", "miou", "mean intersection over union with true labels, background included"),
    _metric("miou-of-cells", "miou_of_cells", "the same where the 2D teacher's map has its cells"),
    _metric(
        "teacher-agreement-miou", "teacher_agreement_miou", "the same with the teacher's labels: agreement, not truth",
        fidelity=True,
    ),
    _metric("feature-l1", "feature_l1", "mean absolute difference from the teacher's map", fidelity=True, **LOWER),
    _metric("feature-cosine", "feature_cosine", "mean cosine with the teacher's map", fidelity=True),
)  # fmt: skip
