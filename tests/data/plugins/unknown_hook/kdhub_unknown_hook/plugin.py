from kdhub import MethodSpec, hookimpl


@hookimpl
def kdhub_datasets():
    print("kdhub_datasets ran")


@hookimpl
def kdhub_method():
    yield MethodSpec(name="misspelt", target="kdhub_unknown_hook.method:Misspelt")
