"""Yields one method and raises before the second."""

from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield MethodSpec(name="cracked", target="kdhub_cracked.method:Cracked", summary="never to be seen")
    raise RuntimeError("the second half is missing")
