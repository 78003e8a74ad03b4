"""`kdhub cache`: the signal stores of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from kdhub.cli import _output
from kdhub.cli.distill import Json
from kdhub.files import size_text

app = typer.Typer(help="Stored teacher outputs: list, verify, prune.", no_args_is_help=True)
Store = Annotated[str | None, typer.Argument(help="A store, by the beginning of its name; all when left out.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """Every store with its teacher, rows and size."""
    from kdhub.verbs import cache

    found = cache.list_stores()
    if json:
        _output.emit(found)
        return
    rows = [
        [
            s["name"][:12],
            s["teacher"],
            s["signal"],
            ",".join(s["dtypes"]),
            s["rows"],
            size_text(s["bytes"]),
            s["bytes_per_row"],
        ]
        + [s["last_used"][:16].replace("T", " "), s["problem"] or ""]
        for s in found["stores"]
    ]
    headers = ["STORE", "TEACHER", "SIGNAL", "TYPE", "ROWS", "SIZE", "BYTES/ROW", "LAST USED", ""]
    _output.table(headers, rows, "no signals are stored")
    if rows:
        print(f"\n{size_text(found['bytes'])} in {found['root']}")


@app.command("verify")
def verify(
    store: Store = None,
    run: Annotated[str | None, typer.Option("--run", help="Also recompute some rows with this run's teacher.")] = None,
    every: Annotated[int, typer.Option(min=1, help="With --run: recompute one row in N.")] = 100,
    tolerance: Annotated[float | None, typer.Option(help="With --run: difference allowed, relative.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete damaged groups; they are recomputed.")] = False,
    json: Json = False,
) -> None:
    """Check every stored byte against its digest; with --run also some rows against the live teacher."""
    from kdhub.verbs import cache, replay

    found = (
        replay.verify_run(run, every=every, tolerance=tolerance, remove=remove)
        if run
        else cache.verify(store, remove=remove)
    )
    if json:
        _output.emit(found)
    else:
        for s in found["stores"]:
            print(f"{s['name'][:12]}  {s['rows']} rows  {verdict(s)}")
        if not found["stores"]:
            print("no signals are stored")
    if not found["ok"]:
        raise typer.Exit(1)


@app.command("prune")
def prune(
    store: Store = None,
    older_than: Annotated[float | None, typer.Option(help="Only stores unused for this many days.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only stores of this teacher; * is allowed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every store.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted.")] = False,
    json: Json = False,
) -> None:
    """Delete stores, and what killed jobs left behind."""
    from kdhub.verbs import cache

    found = cache.prune(store, older_than_days=older_than, teacher=teacher, everything=everything, dry_run=dry_run)
    if json:
        _output.emit(found)
        return
    word = "would remove" if dry_run else "removed"
    print(f"{word} {len(found['removed'])} stores and {found['leftovers']} leftovers, {size_text(found['bytes'])}")
    for name in found["in_use"]:
        print(f"{name[:12]} is in use and was kept")


def verdict(store: dict) -> str:
    if store["problem"]:
        return store["problem"]
    if store["damaged"]:
        return f"{len(store['damaged'])} damaged groups: {', '.join(store['damaged'][:3])}"
    replayed = store["replay"]
    if not replayed:
        return "whole"
    if replayed.get("status"):
        return f"whole; the teacher is {replayed['status']}"
    if replayed["different"]:
        worst = max(d["difference"] for d in replayed["different"])
        return (
            f"whole, but the teacher gives other vectors now: {len(replayed['different'])} of "
            f"{replayed['checked']} rows differ, by {worst:.2g} at most (is it deterministic? the same version?)"
        )
    return f"whole; {replayed['checked']} rows asked again agree (largest difference {replayed['largest']:.1e})"
