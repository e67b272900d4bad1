"""Templates in recipes' texts: Jinja, in its sandbox, with no files and bounded in size and work.

The sandbox of the library keeps a template from what is outside; what is added here keeps it from growing without end:
loops draw on one budget, and nothing that is put together grows beyond what a recipe's text may have.

A brace pair that is no template (`{{two words}}`) is left as it is, as goose does.
"""

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from itertools import islice
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

BUILT_IN = frozenset({"recipe_dir", "steps"})
"""Names that need no declaration."""

MAX_RENDERED_BYTES = 512 * 1024
_MAX_ITERATIONS = 100_000
_MAX_BITS = 4096
_MAX_RANGE = 10_000
_PAIR = re.compile(r"\{\{(.*?)\}\}")
_NAME = re.compile(r"\s*[A-Za-z_][A-Za-z0-9_]*\s*")
_BLOCK = re.compile(r"\{[{%#]")
_FILES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
_FILTERS = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int",
        "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "reverse", "round", "safe", "select", "selectattr",
        "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper",
        "urlencode", "wordcount",
    }
)  # fmt: skip
_TEXT_METHODS = frozenset(
    {
        "capitalize", "count", "endswith", "find", "isalnum", "isalpha", "isdigit", "islower", "isupper", "lower",
        "lstrip", "removeprefix", "removesuffix", "rstrip", "split", "splitlines", "startswith", "strip",
        "title", "upper",
    }
)  # fmt: skip
_RUN_TIME_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_left: ContextVar[int] = ContextVar("iterations_left", default=_MAX_ITERATIONS)


class TemplateFaultError(Exception):
    """A text that is no template, or could not be rendered; line and column count from 1 within the text."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        """`message` is for the recipe's author."""
        super().__init__(message)
        self.line = line
        self.column = column


class _Sandbox(ImmutableSandboxedEnvironment):
    """No way out, no endless work."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function of a template; methods of text alone that give no more than they are given."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and function.__name__ not in _TEXT_METHODS:
            raise TemplateError(f"the method {function.__name__} is not allowed here")
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, where the result stays small."""
        if operator == "+":
            _bounded(_size(left) + _size(right))
        elif operator == "*":
            _bounded(max(_size(left) * _count(right), _size(right) * _count(left), _bits(left) + _bits(right)))
        elif operator == "%" and isinstance(left, str):
            raise TemplateError("formatting by % is not allowed here")
        elif operator == "**":
            _bounded(_bits(left) * _count(right))
        return super().call_binop(context, operator, left, right)


class _Bounding(NodeTransformer):
    """Sends loops and concatenations through functions that count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by the library
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not allowed here", node.lineno)
        node.iter = nodes.Filter(node.iter, "_each", [], [], None, None, lineno=node.lineno)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return self.generic_visit(nodes.Filter(pieces, "_together", [], [], None, None, lineno=node.lineno))

    def refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError("macros are not allowed here", node.lineno)

    visit_Macro = visit_CallBlock = refuse  # noqa: N815


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _bits(value: Any) -> int:
    """Weigh a number so that what has more than 4,096 bits is too large."""
    return value.bit_length() * (MAX_RENDERED_BYTES // _MAX_BITS) if isinstance(value, int) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _bounded(size: int) -> None:
    if size > MAX_RENDERED_BYTES:
        raise TemplateError("too large a result")


def _each(values: Iterable[Any]) -> list[Any]:
    left = _left.get()
    taken = list(islice(values, left + 1))
    if len(taken) > left:
        raise TemplateError(f"more than {_MAX_ITERATIONS} turns of its loops")
    _left.set(left - len(taken))
    return taken


def _together(pieces: list[Any]) -> str:
    texts = [str(piece) for piece in pieces]
    _bounded(sum(map(len, texts)))
    return "".join(texts)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:  # noqa: FBT001, FBT002 - as templates call it
    margin = width if isinstance(width, str) else " " * min(int(width), 200)
    lines = str(text).split("\n")
    _bounded(sum(map(len, lines)) + len(lines) * (len(margin) + 1))
    rest = [margin + line if line.strip() or blank else line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *rest])


def _replace(text: str, old: str, new: str) -> str:
    text, old, new = str(text), str(old), str(new)
    _bounded(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _range(*arguments: int) -> range:
    made = range(*arguments)
    if len(made) > _MAX_RANGE:
        raise TemplateError(f"a range of more than {_MAX_RANGE}")
    return made


def _environment() -> _Sandbox:
    sandbox = _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    sandbox.filters = {name: one for name, one in sandbox.filters.items() if name in _FILTERS}
    sandbox.filters |= {"indent": _indent, "replace": _replace, "_each": _each, "_together": _together}
    sandbox.globals = {"range": _range}
    return sandbox


_SANDBOX = _environment()


def variables(text: str) -> set[str]:
    """Give the names that a text needs from outside, the built-in ones left out. Raises TemplateFaultError."""
    return set(meta.find_undeclared_variables(_parse(text))) - BUILT_IN - set(_SANDBOX.globals)


def render(text: str, values: Mapping[str, Any]) -> str:
    """Fill a text in. Raises TemplateFaultError: not a template, a name without value, too large."""
    if not _BLOCK.search(text):
        return text
    tree = _parse(text)
    token = _left.set(_MAX_ITERATIONS)
    try:
        code = _SANDBOX.compile(_Bounding().visit(tree))
        template = Template.from_code(_SANDBOX, code, dict(_SANDBOX.globals))
        size, pieces = 0, []
        for piece in template.generate(**values):
            size += len(piece.encode())
            _bounded(size)
            pieces.append(piece)
    except TemplateSyntaxError as error:
        raise _fault(text, error) from None
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TemplateFaultError(f"can't be filled in: {error}") from None
    finally:
        _left.reset(token)
    return "".join(pieces)


def _parse(text: str) -> nodes.Template:
    try:
        tree = _SANDBOX.parse(_shielded(text))
        # Refuses what is not allowed; the tree itself is still needed as it was.
        _Bounding().visit(_SANDBOX.parse(_shielded(text)))
        _SANDBOX.compile(tree)
        tree = _SANDBOX.parse(_shielded(text))
    except TemplateSyntaxError as error:
        raise _fault(text, error) from None
    except RecursionError:
        raise TemplateFaultError("nested too deeply") from None
    for node in tree.find_all(_FILES):
        what = "can't bring in other files; put their text into the recipe"
        raise TemplateFaultError(what, node.lineno, _column(text, node.lineno))
    return tree


def _fault(text: str, error: TemplateSyntaxError) -> TemplateFaultError:
    return TemplateFaultError(error.message or "is no template", error.lineno, _column(text, error.lineno))


def _column(text: str, line: int) -> int:
    lines = text.split("\n")
    found = _BLOCK.search(lines[line - 1]) if 0 < line <= len(lines) else None
    return found.start() + 1 if found else 1


def _shielded(text: str) -> str:
    """Mark brace pairs that hold no expression as plain text."""

    def shield(found: re.Match[str]) -> str:
        inner = found[1]
        if _NAME.fullmatch(inner) or inner.lstrip()[:1] in {"'", '"'}:
            return found[0]
        try:
            _SANDBOX.parse(found[0])
        except TemplateSyntaxError:
            return "{% raw %}" + found[0] + "{% endraw %}"
        return found[0]

    return _PAIR.sub(shield, text)
