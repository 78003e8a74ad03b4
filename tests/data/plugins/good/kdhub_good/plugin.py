"""A plugin as it should be, with one life-cycle hook that fails."""

from pathlib import Path

from kdhub import MethodSpec, hookimpl

print("a plugin that prints while it is imported")


@hookimpl
def kdhub_methods():
    yield MethodSpec(
        name="good", target="kdhub_good.method:Good", tasks=("text-embedding",), aliases=("fine",), summary="Works."
    )
    yield MethodSpec(name="gone", target="kdhub_good.method:Gone", summary="Names what is not there.")
    yield MethodSpec(name="needy", target="kdhub_good.needy:Needy", summary="Needs what is not installed.")


@hookimpl
def kdhub_teachers():
    return None


@hookimpl
def kdhub_catalogs():
    yield Path(__file__).parent


@hookimpl
def kdhub_run_started(run):
    raise RuntimeError(f"no tracker for {run}")
