from kdhub import MethodSpec, TeacherSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="disputed", target="kdhub_clash_a.method:Disputed", summary="of a")


@hookimpl
def kdhub_teachers():  # the same name for different tasks: no clash
    yield TeacherSpec(name="shared", target="kdhub_clash_a.teacher:Shared", tasks=("text-embedding",))
