from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="Bad_Name", target="kdhub_bad_name.method:Bad")
