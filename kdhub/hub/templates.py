"""Jinja templates that others wrote, in a sandbox with an end.

The sandboxes of Jinja and of the transformers library keep a template from Python's inside. They do not keep it from a
loop in a loop, or from a text of gigabytes. Here each turn of a loop, each call and all that is made of texts and lists
is paid from a budget; what may cost more than it shows is not there. What templates of chats use is, and gives the same
text as in the transformers library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from itertools import chain
from typing import Any

BUDGET = 2**22
"""Characters and entries that one rendering may make, besides `EACH` of what it is given."""
EACH = 64
STEP = 16
"""What a turn of a loop, or a call, costs."""
LONGEST = 2**20
"""Characters of a template."""

_left: ContextVar[list[int]] = ContextVar("left")

FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string title "
    "tojson trim truncate unique upper urlencode wordcount"
).split()
_FREE = {
    "attr",
    "count",
    "d",
    "default",
    "first",
    "last",
    "length",
    "map",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
}
"""Filters that make nothing of what they are given."""
METHODS = frozenset(
    (
        "capitalize casefold copy count endswith find format get index isalnum isalpha isdigit islower isnumeric "
        "isspace isupper items join keys lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values"
    ).split()
)
"""Methods of texts, lists and mappings."""
_CHEAP = {"endswith", "get", "items", "keys", "startswith", "values"}
_COMPARED = {
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    "in",
}


def render(template: str, variables: Mapping[str, Any], *, trim: bool = True) -> str:
    """What a template writes.

    Args:
        trim: as the templates of chats have it, a line that holds a tag alone leaves nothing.

    Raises:
        jinja2.TemplateError: it is none, refuses what it is given, or asks for what it may not have, or for too much.
    """
    import jinja2

    given = [BUDGET]
    token = _left.set(given)
    try:
        given[0] += EACH * size(dict(variables), 10**9)
        return "".join(compiled(template, trim).generate(variables))
    except (RecursionError, MemoryError, OverflowError, SyntaxError) as error:
        raise jinja2.TemplateError(f"the template goes too deep, or too far: {error}") from error
    finally:
        _left.reset(token)


@lru_cache(maxsize=64)
def compiled(template: str, trim: bool = True) -> Any:
    """
    Raises:
        jinja2.TemplateError: it is no template, or asks for what it may not have.
    """
    import jinja2

    if len(template) > LONGEST:
        raise jinja2.TemplateError(f"a template of {len(template):,} characters, more than {LONGEST:,}")
    try:
        return _environment(trim).from_string(template)
    except (RecursionError, MemoryError, OverflowError, SyntaxError) as error:
        raise jinja2.TemplateError(f"the template goes too deep: {error}") from error


def size(value: Any, most: int) -> int:
    """Characters and entries of a value at all depths, counted up to `most`."""
    total, inside = 0, [iter((value,))]
    while inside and total <= most:
        one = next(inside[-1], inside)
        if one is inside:
            inside.pop()
        elif isinstance(one, str):
            total += len(one) + 1
        elif isinstance(one, int):
            total += 1 + one.bit_length() // 8
        elif isinstance(one, Mapping):
            total += 1
            inside.append(chain.from_iterable(one.items()))
        elif isinstance(one, (list, tuple)):
            total += 1
            inside.append(iter(one))
        else:
            total += 1
    return total


def _pay(*values: Any, plus: int = STEP) -> None:
    left = _left.get()
    left[0] -= plus + sum(size(value, left[0]) for value in values if value is not None)
    if left[0] < 0:
        import jinja2

        raise jinja2.TemplateError("the template makes too much, or takes too many steps")


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that pays for what it is given and for what it gives."""
    passes = int(hasattr(function, "jinja_pass_arg"))  # the context, before the value

    @wraps(function)
    def paid(*args: Any, **more: Any) -> Any:
        _pay(*(() if name in _FREE else (*args[passes:], *more.values())))
        made = function(*args, **more)
        if name not in _FREE and isinstance(made, (str, list, tuple, dict)):
            _pay(made)
        return made

    return paid


def _steps(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _pay()
        yield value


def _join(values: Iterable[Any], between: Any = "", attribute: str | int | None = None) -> str:
    parts = [str(one if attribute is None else one[attribute]) for one in _worth(values)]
    _pay(plus=sum(map(len, parts)) + len(str(between)) * len(parts))
    return str(between).join(parts)


def _worth(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _pay(value)
        yield value


def _replace(text: Any, old: Any, new: Any, count: int | None = -1) -> str:
    _pay(text, old, new)
    text, old, new = str(text), str(old), str(new)
    _pay(plus=len(new) * (text.count(old) if old else len(text) + 1))
    return text.replace(old, new, -1 if count is None else count)


def _formatted(text: str, mark: str, values: Any) -> None:
    """Pay for what a format may make: no widths of more than three digits, or that are given."""
    import jinja2

    if re.search(r"\d{4}|\*|\{[^{}]*\{[^{}]", text):
        raise jinja2.TemplateError(f"the template formats by {text[:60]!r}, with a width that may be any")
    _pay(text, plus=(size(values, _left.get()[0]) + 1000) * text.count(mark))


def _format(text: Any, *args: Any, **more: Any) -> str:
    values = more or args
    _formatted(str(text), "%", values)
    return str(text) % values


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    before = " " * min(width, 100) if isinstance(width, int) else str(width)
    _pay(text, plus=len(before) * (str(text).count("\n") + 1))
    lines = str(text).split("\n")
    return "\n".join(before + line if (n or first) and (line or blank) else line for n, line in enumerate(lines))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    indent = min(indent, 16) if isinstance(indent, int) else indent
    cost = size(value, _left.get()[0])
    _pay(plus=(12 if indent is None else 512) * cost)  # a character may become six, an entry be indented
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    import jinja2

    raise jinja2.TemplateError(str(message)[:1000])


@lru_cache(maxsize=2)
def _environment(trim: bool) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """What the assistant says, marked; here it is what it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Paying(NodeTransformer):
        """Each loop, list, comparison and joint goes through a filter that no template can name."""

        def _through(self, name: str, node: Any) -> Any:
            return nodes.Filter(node, f"{name}!", [], [], None, None, lineno=node.lineno)

        def visit_For(self, node: Any) -> Any:
            if node.recursive:
                raise jinja2.TemplateSyntaxError("the template loops within its own loop", node.lineno)
            self.generic_visit(node)
            node.iter = self._through("steps", node.iter)
            return node

        def visit_List(self, node: Any) -> Any:
            return self._through("made", self.generic_visit(node))

        visit_Dict = visit_List

        def visit_Tuple(self, node: Any) -> Any:
            return self._through("made", self.generic_visit(node)) if node.ctx == "load" else node

        def visit_Concat(self, node: Any) -> Any:
            parts = self.generic_visit(node).nodes
            return self._through("join", nodes.List(parts, lineno=node.lineno))

        def visit_NSRef(self, node: Any) -> Any:
            if node.attr.startswith("_"):
                raise jinja2.TemplateSyntaxError(f"the template sets {node.attr!r}", node.lineno)
            return node

        def visit_Getitem(self, node: Any) -> Any:
            self.generic_visit(node)
            return self._through("made", node) if isinstance(node.arg, nodes.Slice) else node

        def visit_Compare(self, node: Any) -> Any:
            self.generic_visit(node)
            node.expr = self._through("made", node.expr)
            for operand in node.ops:
                operand.expr = self._through("made", operand.expr)
            return node

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "%", "**"))

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            return Paying().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                return _format(left, *right) if isinstance(right, tuple) else _format(left, right)
            many = [one for one in (left, right) if isinstance(one, (str, list, tuple))]
            if operator == "*" and many:
                times = right if many[0] is left else left
                _pay(plus=size(many[0], _left.get()[0]) * max(0, times if isinstance(times, int) else 0))
            elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
                if bits > 4096:
                    raise jinja2.TemplateError("the template computes a number of more than 4,096 bits")
            else:
                _pay(*many)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **more: Any) -> Any:
            owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            given = {key: value for key, value in more.items() if key not in ("_loop_vars", "_block_vars")}
            if isinstance(owner, (str, list, tuple, dict)):
                if name not in METHODS:
                    raise jinja2.TemplateError(f"the template calls {type(owner).__name__}.{name}")
                if isinstance(owner, str) and name in ("join", "replace"):
                    return _join(*args, owner) if name == "join" else _replace(owner, *args, **given)
                _pay(*(() if name in _CHEAP else (owner,)), *args, *given.values())
            elif name in ("format", "format_map"):  # as the sandbox wraps them
                text = getattr(getattr(function, "__wrapped__", None), "__self__", "")
                _formatted(str(text), "{", [*args, *given.values()])
            made = super().call(context, function, *args, **more)
            _pay(made if isinstance(made, (str, list, tuple, dict)) else None)
            return made

        def getitem(self, obj: Any, argument: Any) -> Any:
            found = super().getitem(obj, argument)
            _pay(plus=1)
            return found

    @jinja2.pass_context  # so that nothing is written while it is compiled
    def finalize(context: Any, value: Any) -> Any:
        _pay(value)
        return value

    def namespace(*args: Any, **more: Any) -> Any:
        made = dict(*args, **more)
        if hidden := [name for name in made if str(name).startswith("_")]:
            raise jinja2.TemplateError(f"the template sets {hidden[0]!r}")
        return jinja2.utils.Namespace(made)

    own = Bounded(
        trim_blocks=trim, lstrip_blocks=trim, optimized=False, finalize=finalize, extensions=[Generation, loopcontrols]
    )
    named = {
        "join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson, "format": _format,
    }  # fmt: skip
    own.filters = {name: _paid(name, own.filters[name]) for name in FILTERS if name not in named} | named
    own.filters |= {"steps!": _steps, "made!": lambda value: _pay(value) or value, "join!": _join}
    own.tests = {name: _paid(name, test) if name in _COMPARED else test for name, test in own.tests.items()}
    own.globals = {
        "range": own.globals["range"],
        "dict": lambda *args, **more: dict(*args, **more),
        "namespace": namespace,
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(str(form)[:100]),
    }
    return own
