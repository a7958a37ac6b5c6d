"""Running a foreign Jinja template: no way out of it, and a bound on the time and memory that it takes.

The bound is a number of units for each rendering, more for longer conversations, and the same on every machine:
`jinja_operations.py` says what costs how many, `jinja_syntax.py` makes a template pay, `jinja_names.py` has the
functions, filters and tests that there are. jinja2's own sandbox stands behind it.
"""

from __future__ import annotations

import threading
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.text.templates.jinja import names as jinja_names
from onmt_llm.text.templates.jinja import syntax as jinja_syntax
from onmt_llm.text.templates.jinja.operations import Operations

MAX_SOURCE = 100_000
"""Characters that a template may have."""
BUDGET = 10_000_000
"""Units that a rendering has, whatever the conversation."""
UNITS_PER_CHARACTER = 20
"""Units that it has for each character of the conversation."""
UNITS_PER_MESSAGE = 40_000
"""Units that it has for each message."""
MAX_OUTPUT = 200_000
"""Characters that a template may write, beyond those of the conversation."""
OUTPUT_PER_CHARACTER = 10
"""Characters that it may write for each of the conversation."""

_SAFE_JINJA = (3, 1, 6)
_MAX_MESSAGE = 300


class Sandbox:
    """A template that renders conversations, one at a time.

    Args:
        source: The template.

    Raises:
        jinja2.TemplateError: The source is no template. So do SyntaxError, ValueError, RecursionError and MemoryError.
        DataError: It has syntax that is not for chat templates; the message begins with its line.
    """

    def __init__(self, source: str) -> None:
        extensions = [Generation, jinja2.ext.loopcontrols]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False
        )
        self._do = do = Operations(environment.undefined)
        tests = jinja_names.tests(do)
        filters = {**jinja_names.filters(do, tests), **jinja_syntax.operations(do)}
        environment.tests, environment.filters = dict(tests), dict(filters)
        environment.globals = dict(jinja_names.functions(do))
        # Constant expressions must be counted like others. jinja2 still tries those that are written: it shall fail.
        do.left = -1
        tree = environment.parse(source)
        self._outer_units = jinja_syntax.counted(tree)
        tree.set_environment(environment)
        self._template = environment.from_string(tree)
        self._lock = threading.Lock()

    def render(self, variables: dict[str, Any], *, characters: int, messages: int) -> str:
        """The text that the template writes.

        Args:
            variables: By name: text, numbers, lists and dictionaries.
            characters: How long the conversation in them is.
            messages: And how many messages it has.

        Raises:
            jinja2.TemplateError: It failed, refused the messages, or went beyond its budget. So do other exceptions.
        """
        do, template = self._do, self._template
        with self._lock:  # the budget is one rendering's; threads would wait for each other anyway
            do.left = BUDGET + UNITS_PER_CHARACTER * characters + UNITS_PER_MESSAGE * messages
            do.charge(self._outer_units)
            text = "".join(template.root_render_func(template.new_context(variables)))
        if len(text) > MAX_OUTPUT + OUTPUT_PER_CHARACTER * characters:
            raise SecurityError(f"it writes {len(text)} characters, more than a chat template may")
        return text


class Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks are written like any text; answers are found in another way."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, name: str) -> Sandbox:
    """A template, compiled.

    Raises:
        DataError: The source is no template, too long, or has syntax that is not for chat templates.
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
    try:
        return Sandbox(source)
    except DataError as error:
        raise DataError(f"{name} cannot be used as a chat template: {error.message}.") from error
    except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", "?")
        raise DataError(f"{name} must be a Jinja template, but line {line} is wrong: {brief(error)}.") from error


def brief(error: BaseException) -> str:
    """What an error says, on one line that fits into a message, without a full stop at its end."""
    words = " ".join(str(error)[: 4 * _MAX_MESSAGE].split()) or type(error).__name__
    return (words if len(words) <= _MAX_MESSAGE else words[:_MAX_MESSAGE] + "…").removesuffix(".")
