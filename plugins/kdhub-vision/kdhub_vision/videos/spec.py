"""Videos: the task, and what is provided for it."""

from kdhub import DatasetSpec, NetworkSpec, StudentSpec, TaskSpec

NAME = "video-classification"
HERE = "kdhub_vision.videos."

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}task:VideoClassification", reads=(("clip",),), signals=("logits", "features"),
        traits=("classes", "labels", "named-classes", "apart", "single-label", "arrays"),
        summary="clips of videos to one class of a list, and videos by the mean of their clips",
    ),
)  # fmt: skip

NETWORKS = (NetworkSpec(name="resnet3d", target=f"{HERE}networks:Resnet3d", summary="small ResNet of 3D convolutions"),)

STUDENTS = (
    StudentSpec(
        name="resnet3d", target=f"{HERE}students:resnet3d", tasks=(NAME,), exposes=("logits", "features", "tokens"),
        summary="a fresh small ResNet of 3D convolutions", argument="width=N,stage1=N,stage2=N,stage3=N",
        example="width=4,stage1=1,stage2=1,stage3=1",
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="videos", target=f"{HERE}data:videos", argument="FOLDER",
        summary="videos in a folder, cut into clips: one folder a class, or all without classes",
    ),
)  # fmt: skip
