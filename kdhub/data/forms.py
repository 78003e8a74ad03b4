"""Forms of rows: which columns a table has, and so what it can be used for.

    texts       text [, role (document | query)] [, source]
    retrieval   split `corpus` {id, text}, split `queries` {id, text}, and judgement splits
                (`test`, `validation`, ...) {query_id, corpus_id, score}; a `title` is joined in front of the text
    rows        anything else

Tasks declare the others (`TaskSpec.forms`): pairs with a score, prompts and responses, conversations, ...
"""

from __future__ import annotations

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Any

from kdhub.plugins.discovery import get_plugins
from kdhub.specs import RowForm

ROLES = ("document", "query")
TEXTS = RowForm(name="texts", columns=(("text", "text"),), texts=("text",))
PARTS = {
    "corpus": RowForm(name="corpus", columns=(("id", "any"), ("text", "text"))),
    "queries": RowForm(name="queries", columns=(("id", "any"), ("text", "text"))),
    "judgements": RowForm(name="judgements", columns=(("query_id", "any"), ("corpus_id", "any"), ("score", "number"))),
}
"""Parts of a data set for retrieval, which say so themselves."""
ROWS = RowForm(name="rows", columns=())


def forms() -> dict[str, RowForm]:
    """Name -> form, the one that is looked for first at the top."""
    declared = [form for spec in get_plugins().specs("task") for form in spec.forms]
    early, late = ([form for form in declared if form.early == first] for first in (True, False))
    return {form.name: form for form in (*early, TEXTS, *late, ROWS)}


def names() -> list[str]:
    """What `format` may be."""
    return [*forms(), "retrieval"]


def of(name: str) -> RowForm:
    """A form or a part of a retrieval set by its name; one that no plugin here declares has no columns to check."""
    return PARTS.get(name) or forms().get(name) or RowForm(name=name, columns=())


def needed(name: str) -> tuple[str, ...]:
    """The columns of a form."""
    return tuple(column for column, _ in of(name).columns)


def form_of(columns: Iterable[str]) -> str:
    """The form of a table with these columns."""
    have = set(columns)
    return next(name for name, form in forms().items() if have.issuperset(column for column, _ in form.columns))


def check_of(form: RowForm) -> Any:
    """The further check of a form's rows, None where it has none."""
    return resolve_name(form.check) if form.check else None
