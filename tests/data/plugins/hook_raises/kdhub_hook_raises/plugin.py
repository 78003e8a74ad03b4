from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="half-done", target="kdhub_hook_raises.method:HalfDone")
    raise ValueError("the second\nis not to be had")
