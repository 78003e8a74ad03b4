from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="from-tomorrow", target="kdhub_too_new.method:Tomorrow", api_version=99)
