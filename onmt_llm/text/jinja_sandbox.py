"""Running a foreign Jinja template: no way out of it, and limits on what it may use up.

jinja2's immutable sandbox keeps a template away from Python. It lets a short template allocate gigabytes or loop for
hours all the same, so repetition, padding and loops are limited here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from onmt_llm.errors import DataError, UnsupportedError

MAX_SOURCE = 200_000
"""Characters that a template may have."""
MAX_OUTPUT = 20_000_000
"""Characters that a template may write, and that one repetition may give."""
MAX_STEPS = 1_000_000
"""Steps that the `range` loops of one rendering may take together."""

_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_SAFE_JINJA = (3, 1, 6)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the settings, names and filters that chat templates expect."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        extensions = [Generation, jinja2.ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self._steps = 0
        for name in ("center", "format"):
            del self.filters[name]
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "range": self._range}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in _PADDING
        return not padding and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "*" and not numbers:
            length = len(left) * right if isinstance(right, int) else left * len(right)
            if length > MAX_OUTPUT:
                raise SecurityError(f"a repetition would be {length} long")
        elif not numbers or (operator == "**" and abs(right) > 64):
            raise SecurityError(f"the operator {operator} is not allowed here")
        return super().call_binop(context, operator, left, right)

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The text that a template writes.

        Raises:
            jinja2.TemplateError: It failed, refused the messages, or went beyond a limit.
        """
        self._steps = 0
        chunks: list[str] = []
        size = 0
        for chunk in template.generate(variables):
            size += len(chunk)
            if size > MAX_OUTPUT:
                raise SecurityError(f"it writes more than {MAX_OUTPUT} characters")
            chunks.append(chunk)
        return "".join(chunks)

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._steps += len(steps)
        if self._steps > MAX_STEPS:
            raise SecurityError(f"its loops take more than {MAX_STEPS} steps")
        return steps


class Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks are written like any text; answers are found in another way."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, name: str) -> tuple[Sandbox, jinja2.Template]:
    """A sandbox and the template in it.

    Raises:
        DataError: The source is no template, or too long.
        UnsupportedError: jinja2 is too old: there are known ways out of its sandbox.
    """
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _SAFE_JINJA:
        raise UnsupportedError(
            f"A chat template file needs jinja2 >= 3.1.6, but {jinja2.__version__} is installed.",
            hint="pip install -U jinja2",
        )
    if len(source) > MAX_SOURCE:
        raise DataError(f"A chat template may have {MAX_SOURCE} characters at most, but {name} has {len(source)}.")
    sandbox = Sandbox()
    try:
        return sandbox, sandbox.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", "?")
        raise DataError(f"{name} must be a Jinja template, but line {line} is wrong: {error}.") from error


def _to_json(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    # jinja2's own filter escapes for HTML, which no chat template wants.
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)
