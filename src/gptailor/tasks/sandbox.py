"""A base's chat template, run so that it can neither reach out nor run away.

A template comes with a base from anywhere, and Jinja is a programming language. Jinja's own sandbox keeps it
from Python's insides; here every loop is counted, every text measured before it is made, and every filter and
call checked, so that a hostile template ends with an error instead of hours or gigabytes. It runs in this
process: the limits bound its work, they are no wall against a fault in Jinja itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gptailor.errors import ModelError
from gptailor.tasks.limits import (
    ITEM,
    MAX_BITS,
    MAX_CHARACTERS,
    LimitError,
    charge,
    charge_made,
    check_call,
    check_size,
    consumable,
    limited,
    meter,
    meters,
    new_meter,
    numeric,
    size_of,
    weigh,
    weighed,
)

MAX_SOURCE = 200_000  # characters of a template; the longest known ones have a tenth of it
UNNEEDED = ("lipsum",)  # globals that no chat template has a use for
FILTERS = (  # what chat templates use; each one more would have to be bounded, too
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "tojson", "trim", "unique", "upper",
)  # fmt: skip
DEEP_TESTS = (  # which look through the values they're given
    "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge",
    ">=", "in", "lower", "upper",
)  # fmt: skip
REMAINDERS = ("odd", "even", "divisibleby")
REFUSED_METHODS = ("encode", "expandtabs", "striptags", "translate")
MOST_IN_STRFTIME = 256  # characters of memory for one of the form


class TemplateRefusal(Exception):
    """A template can't write this conversation; the message says why."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a template wrote, and the (start, end) of each `{% generation %}` block in it."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


def run_template(source: str, variables: Mapping[str, Any], *, now: datetime) -> Written:
    """Renders a chat template as transformers does.

    Args:
        source: The template.
        variables: What it sees: messages, add_generation_prompt, bos_token, ...
        now: What `strftime_now` tells.

    Raises:
        TemplateRefusal: it raised, or failed on these messages.
        ModelError: it can't be compiled, or goes beyond the limits.
    """
    template = _compiled(source)
    used = meters.current = new_meter(now)
    pieces: list[str] = []
    try:
        for piece in template.generate(**variables):
            pieces.append(piece)
            used.written += len(piece)
            charge(characters=len(piece))
    except (LimitError, SecurityError) as error:
        raise _refused(str(error)) from None
    except (MemoryError, RecursionError) as error:
        raise _refused(f"{type(error).__name__} while it ran") from None
    except Exception as error:  # whatever the template's own code can raise
        raise TemplateRefusal(str(error) or type(error).__name__) from None
    finally:
        meters.current = None
    text = "".join(pieces)
    spans = [(start, start + len(block)) for start, block in used.blocks]
    # A block inside a macro or a captured text isn't where it seemed to be; then none is told.
    told = all(text.startswith(block, start) for start, block in used.blocks)
    return Written(text, tuple(spans) if told else ())


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise _refused(f"it has {len(source):,} characters")
    environment = _Environment()
    try:
        tree = _Counted().visit(environment.parse(source))
        tree.set_environment(environment)
        code = environment.compile(tree)
    except (jinja2.TemplateError, RecursionError, MemoryError, ValueError, SyntaxError) as error:
        raise ModelError(
            f"the chat template can't be read: {str(error) or type(error).__name__}",
            fix="Mend the base's chat_template, or take it away so that Gptailor's own is used.",
        ) from None
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def _refused(why: str) -> ModelError:
    return ModelError(
        f"the chat template does what no chat template needs: {why}.",
        fix="Don't trust this base; or take its chat_template away so that Gptailor's own is used.",
    )


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with transformers' conventions, and with limits."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Limits, "jinja2.ext.loopcontrols"],
            optimized=False,  # or texts made of constants would grow while it is compiled
            finalize=_finalize,
        )
        made: dict[str, Any] = {**self.filters, "tojson": _to_json}
        self.filters = {name: limited(name, made[name]) for name in FILTERS}
        tests: dict[str, Any] = self.tests
        self.tests = {
            **tests,
            **{name: weighed(tests[name]) for name in DEEP_TESTS},
            **{name: numeric(tests[name]) for name in REMAINDERS},
        }
        for name in UNNEEDED:
            self.globals.pop(name, None)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace

    def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        wrapped = getattr(__function, "__wrapped__", __function)
        name, owner = str(getattr(wrapped, "__name__", "")), getattr(wrapped, "__self__", None)
        args = consumable(name, args)
        check_call(name, owner, args, kwargs)
        if isinstance(owner, _Limits):
            return super().call(__context, __function, *args, **kwargs)
        if not isinstance(__function, Macro) and __function is not _Namespace:  # they look at nothing
            weigh([owner, *args, *kwargs.values()])
        result = super().call(__context, __function, *args, **kwargs)
        charge_made(result)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        charge(steps=1)
        if isinstance(argument, tuple):
            weigh(argument)  # it is hashed
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sizes = [max(1, size_of(value)) for value in (left, right)]
            numbers = [value for value in (left, right) if isinstance(value, int)]
            if len(numbers) == 1 and max(sizes) * max(0, numbers[0]) > MAX_CHARACTERS:
                raise LimitError(f"a text or list repeated {str(numbers[0])[:20]} times")
            if sum(number.bit_length() for number in numbers) > MAX_BITS:
                raise LimitError("a number without end")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_BITS:
                raise LimitError("a number without end")
        elif operator == "+":
            check_size(size_of(left) + size_of(right))
        elif operator == "%" and isinstance(left, str):
            check_call("format", left, right if isinstance(right, tuple) else (right,), {})
        result = super().call_binop(context, operator, left, right)
        charge_made(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in REFUSED_METHODS and super().is_safe_attribute(obj, attr, value)


class _Limits(Extension):
    """Counts the steps of a template, joins texts, and finds what `{% generation %}` encloses."""

    tags = frozenset(["generation"])  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """Notes where a `{% generation %}` block stands, counted in what has left the template."""
        text, used = caller(), meter()
        charge_made(text)
        used.blocks.append((used.written, text))
        return text

    def tick(self, characters: int) -> None:
        """One turn of a loop, whose body writes that many characters of its own; the call is the step."""
        charge(characters=characters)

    def concat(self, *parts: Any) -> str:
        """`a ~ b`"""
        check_size(sum(map(weigh, parts)))
        text = "".join([str(part) for part in parts])
        charge_made(text)
        return text

    def light(self, value: Any) -> Any:
        """A value that is about to be compared or hashed, if that takes no more than looking through it."""
        weigh(value)
        return value

    def made(self, value: Any) -> Any:
        """A slice, counted."""
        charge_made(value)
        return value


class _Counted(NodeTransformer):
    """Puts a count into every body that can run more than once and every slice, and a check into every `~`,
    comparison and key.
    """

    def _with_tick(self, node: Any) -> Any:
        self.generic_visit(node)
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        tick = _call("tick", [nodes.Const(own)])
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _with_tick  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concat", node.nodes).set_lineno(node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        holders: list[Any] = [node, *node.ops]
        unknown = [holder for holder in holders if not isinstance(holder.expr, nodes.Const)]
        for holder in unknown if len(unknown) > 1 else ():  # a constant is found unequal at once
            holder.expr = _call("light", [holder.expr])
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call("light", [node.key])
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("made", [node]) if isinstance(node.arg, nodes.Slice) else node


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.ExtensionAttribute(_Limits.identifier, method), arguments, [], None, None)


@jinja2.pass_eval_context  # or what is made of constants would be written out while it is compiled
def _finalize(_: Any, value: Any) -> Any:
    charge(characters=len(value) if isinstance(value, str) else weigh(value))
    return value


# --- what transformers gives a template ------------------------------------------------------------


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the attribute {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # what it holds may be far too long


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    check_size(MOST_IN_STRFTIME * size_of(form))
    return meter().now.strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and (not isinstance(indent, int) or indent > 16):
        raise LimitError("tojson() with a wide indent")
    weigh(value, per_item=ITEM + sum(map(len, separators or ())), per_level=indent or 0)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
