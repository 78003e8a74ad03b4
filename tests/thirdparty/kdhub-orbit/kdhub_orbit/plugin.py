"""What kdhub-orbit provides."""

from kdhub import MethodSpec, MetricSpec, TeacherSpec, hookimpl

TASK = ("text-embedding",)


@hookimpl
def kdhub_methods():
    yield MethodSpec(
        name="orbit",
        target="kdhub_orbit.orbit:Orbit",
        tasks=TASK,
        needs=("embedding",),
        paper="arXiv:1904.05068",
        summary="distances between texts as the teacher has them",
    )


@hookimpl
def kdhub_teachers():
    yield TeacherSpec(
        name="letters",
        target="kdhub_orbit.letters:Letters",
        tasks=TASK,
        gives=("embedding",),
        argument="WIDTH",
        example="26",
        summary="counts of letters, as unit vectors",
    )


@hookimpl
def kdhub_metrics():
    yield MetricSpec(
        name="cosine-gap",
        target="kdhub_orbit.gap:cosine_gap",
        tasks=TASK,
        form="sts",
        higher_is_better=False,
        summary="mean difference of cosine and gold score",
    )
