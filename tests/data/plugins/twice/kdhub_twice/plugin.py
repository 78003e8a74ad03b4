from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="twin", target="kdhub_twice.method:One")
    yield MethodSpec(name="twin", target="kdhub_twice.method:Two", tasks=("text-embedding",))
