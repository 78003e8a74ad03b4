"""The application: its commands, and the one place that turns errors into messages and exit codes."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from kdhub.cli import (
    _output,
    cache,
    compare,
    distill,
    doctor,
    evaluate,
    export,
    hub,
    label,
    listing,
    new,
    plugins,
    publish,
    pull,
    render,
    search,
    verify,
)
from kdhub.cli._light import LightCommand, LightGroup
from kdhub.errors import ExitCode, KdhubError
from kdhub.ranks import leave

app = typer.Typer(
    name="kdhub",
    cls=LightGroup,
    help="Make a model small, measure what it kept, and share it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        import kdhub

        print(f"kdhub {kdhub.__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Load no plugins but kdhub's own.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr, only warnings.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also log what libraries say.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    if no_plugins:
        from kdhub.plugins.discovery import discover, set_plugins

        set_plugins(discover(third_party=False))
        os.environ["KDHUB_PLUGINS"] = ""  # for processes started from here: workers, measurements of cost
    _output.set_up(quiet=quiet, verbose=verbose, traceback=traceback)


# What Typer raises for a command line it cannot read; Typer has it from Click, or carries its own.
_UsageFault = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app.command("distill")(distill.distill)
app.command("label")(label.label)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("compare")(compare.compare)
app.command("publish")(publish.publish)
app.command("pull")(pull.pull)
app.command("verify")(verify.verify)
app.command("render")(render.render)
app.command("search")(search.search)
app.command("list", cls=LightCommand)(listing.list_)
app.command("show", cls=LightCommand)(listing.show)
app.command("doctor")(doctor.doctor)
app.add_typer(plugins.app, name="plugins")
app.add_typer(new.app, name="new")
app.add_typer(cache.app, name="cache")
app.add_typer(hub.app, name="hub")


def _asked(words: Sequence[str]) -> typer.Typer:
    """The application with no more than a command line needs: Typer reads the signatures of all commands, which takes
    as long as to import it. Of the one that is named its own; of none, where only their list is shown."""
    name = next((word for word in words if not word.startswith("-")), None)
    commands = [copy.copy(info) for info in app.registered_commands if name in (None, info.name)]
    groups = [copy.copy(info) for info in app.registered_groups if name in (None, info.name)]
    if not (commands or groups):
        return app
    small = copy.copy(app)
    small.registered_commands, small.registered_groups = commands, groups
    if name is None:
        for info in commands:
            info.callback = _described(info.callback)
        for info in groups:
            info.typer_instance = copy.copy(info.typer_instance)
            info.typer_instance.registered_commands = []
    return small


def _described(command: Callable[..., Any]) -> Callable[[], None]:
    def nothing() -> None: ...

    nothing.__doc__ = command.__doc__
    return nothing


def run() -> None:
    """Run the command line and exit with its code."""
    with _output.redacted():
        _run()


def _run() -> None:
    from kdhub.plugins.discovery import get_plugins

    as_json = "--json" in sys.argv
    try:
        if "--no-plugins" not in sys.argv:
            get_plugins().call("kdhub_commands", app=app)
        code = _asked(sys.argv[1:])(standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that went away is noticed
        sys.exit(code)
    except _UsageFault as error:
        error.show()
        if as_json:
            _output.emit({"error": "UsageError", "message": error.format_message(), "hint": None})
        sys.exit(error.exit_code)
    except KdhubError as error:
        _output.error(error, as_json=as_json)
        sys.exit(int(error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        print("kdhub: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitCode.FAILED))
    finally:
        leave()
