from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="bad-tasks", target="kdhub_bad_tasks.method:Bad", tasks=("text-embedding"))
