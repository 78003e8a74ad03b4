"""What the embedded hub shows in a browser: lists, one repository with its card, one pull request.

Everything that comes from a repository is escaped; a card's own HTML is shown as text. Nothing is scripted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from kdhub.files import size_text
from kdhub.hub.server.store import Commit, Repo
from kdhub.hub.trust import front_and_body

SHOWN = 50
"""Repositories on one page."""
FILES_SHOWN = 200

POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
"""Content-Security-Policy: no scripts, and no picture of another place that would tell who reads."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: light-dark(#0b57d0, #8ab4f8) }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 0 1rem 4rem }
header { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: baseline; padding: 1rem 0 }
header { border-bottom: 1px solid var(--line); margin-bottom: 1.5rem }
header b { font-size: 1.15rem }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere }
ul.repos { list-style: none; padding: 0 } ul.repos li { padding: .75rem 0; border-bottom: 1px solid var(--line) }
.repos a { font-weight: 600; overflow-wrap: anywhere }
.tag { display: inline-block; background: var(--soft); border-radius: 1rem; padding: 0 .6rem; margin: .15rem .2rem 0 0 }
.tag, .note { font-size: .85rem } .note { opacity: .75 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0 }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; white-space: nowrap }
td.size { text-align: right; font-variant-numeric: tabular-nums }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto }
code { font: .875em/1.45 ui-monospace, monospace } img { max-width: 100%; background: #fff }
article { border-top: 1px solid var(--line); margin-top: 1.5rem }
input { font: inherit; padding: .25rem .5rem; border: 1px solid var(--line); border-radius: .3rem; min-width: 0 }
"""


def listing(
    kind: str, found: Sequence[Repo], tags: Mapping[int, Sequence[str]], search: str = "", user: str = ""
) -> str:
    """Repositories of one kind.

    Args:
        found: one more than is shown when there is another page.
        tags: of each, by its id.
    """
    rows = "".join(
        f'<li><a href="/{_path(repo.place)}">{escape(repo.name)}</a> {_private(repo)}'
        f'<div class="note">changed {escape(repo.updated[:10])}</div>{_tags(tags[repo.id])}</li>'
        for repo in found[:SHOWN]
    )
    field = (
        f'<form><input name="search" value="{escape(search)}" placeholder="Part of a name" aria-label="Search"></form>'
    )
    if not rows:
        rows = f"<li>No {kind}s {'of that name' if search else 'yet'}.</li>"
    more = ""
    if len(found) > SHOWN:
        last = found[SHOWN - 1]
        query = urlencode({"search": search, "cursor": f"{last.updated}~{last.id}"})
        more = f'<p><a href="?{escape(query)}">Older ones</a></p>'
    title = f"{kind.capitalize()}s"
    return _whole(title, f"<h1>{title}</h1><form>{field}</form><ul class=repos>{rows}</ul>{more}", user)


def repository(
    repo: Repo, tags: Iterable[str], revision: str, commit: Commit, card: str, base: str, user: str = ""
) -> str:
    """One repository at one commit: its tags, its files, its card."""
    place, at = repo.place, "" if revision == "main" else f" at {revision}"
    resolve = f"/{_path(place)}/resolve/{_path(revision, '')}"
    rows = "".join(
        f'<tr><td><a href="{resolve}/{_path(path)}">{escape(path)}</a></td>'
        f'<td class="size">{size_text(file.size)}</td></tr>'
        for path, file in list(commit.files.items())[:FILES_SHOWN]
    )
    left = len(commit.files) - FILES_SHOWN
    rows += f"<tr><td>and {left} more</td><td></td></tr>" if left > 0 else ""
    body = f"""<h1>{escape(repo.name)}{escape(at)}</h1>
<p>{_private(repo)}{_tags(tags)}</p>
<p class="note">commit <code>{commit.oid}</code>, {escape(commit.date[:16].replace("T", " "))} UTC,
by {escape(commit.author)}: {escape(commit.title)}</p>
<pre><code>{escape(_how_to_get(repo, base))}</code></pre>
<details><summary>{len(commit.files)} files, {size_text(sum(f.size for f in commit.files.values()))}</summary>
<table>{rows}</table></details>
<article>{_card(card, resolve)}</article>"""
    return _whole(repo.name, body, user)


def pull_request(repo: Repo, pull: Mapping[str, Any], user: str = "") -> str:
    """One pull request: what it changes, and what was said of it."""
    said = "".join(f"<li>{escape(_event(each))}</li>" for each in pull["events"])
    conflicts = ", ".join(pull["filesWithConflicts"])
    body = f"""<h1>{escape(pull["title"])}</h1>
<p class="note">pull request {pull["num"]} to <a href="/{_path(repo.place)}">{escape(repo.name)}</a>,
{escape(pull["status"])}, by {escape(pull["author"]["name"])}, {escape(pull["createdAt"][:10])}</p>
{f"<p>main changed too: {escape(conflicts)}</p>" if conflicts else ""}
<pre>{escape(pull["diff"]) or "changes nothing"}</pre><ul>{said}</ul>"""
    return _whole(pull["title"], body, user)


def _how_to_get(repo: Repo, base: str) -> str:
    if repo.kind == "model" and "kdhub" in repo.card:
        return f"HF_ENDPOINT={base} kdhub pull {repo.name}"
    kind = "" if repo.kind == "model" else " --repo-type dataset"
    return f"HF_ENDPOINT={base} hf download {repo.name}{kind}"


def _card(card: str, resolve: str) -> str:
    if not card:
        return "<p>There is no card.</p>"
    card = front_and_body(card)[1]
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(card)
    _point(tokens, resolve)
    return reader.renderer.render(tokens, reader.options, {})


def _point(tokens: Iterable[Token], resolve: str) -> None:
    """Let links to files beside the card lead to them."""
    for token in tokens:
        _point(token.children or (), resolve)
        for key in ("src", "href"):
            value = token.attrGet(key)
            if isinstance(value, str) and value and value[0] not in "/#":
                if not (urlsplit(value).scheme or urlsplit(value).netloc):
                    token.attrSet(key, f"{resolve}/{value.removeprefix('./')}")


def _event(each: Mapping[str, Any]) -> str:
    who, data = each["author"]["name"], each["data"]
    match each["type"]:
        case "comment":
            return f"{who}: {data['latest']['raw']}"
        case "status-change":
            return f"{who} set it {data['status']}"
        case "commit":
            return f"{who} added the commit {data['oid'][:12]}: {data['subject']}"
        case _:
            return f"{who}: {each['type']}"


def _private(repo: Repo) -> str:
    return '<span class="tag">private</span>' if repo.private else ""


def _tags(tags: Iterable[str]) -> str:
    return "".join(f'<span class="tag">{escape(tag)}</span>' for tag in list(tags)[:30])


def _path(path: str, safe: str = "/") -> str:
    return escape(quote(path, safe=safe))


def _whole(title: str, body: str, user: str) -> str:
    who = f"<span>{escape(user)}</span>" if user else '<a href="/login">Log in</a>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><header><b>kdhub</b><a href="/models">Models</a><a href="/datasets">Datasets</a>{who}</header>
<main>{body}</main></body></html>
"""
