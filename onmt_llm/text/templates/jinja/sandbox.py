"""A sandbox for untrusted Jinja templates, with a bound on time and memory.

Each rendering has a budget of units: more for longer conversations, and the same on every machine. `operations.py`
charges the budget, `syntax.py` rewrites a template so that it uses these operations only, and `library.py` has the
functions, filters and tests that a template can use. jinja2's own sandbox is a second line of defence.
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
from onmt_llm.text.templates.jinja import library
from onmt_llm.text.templates.jinja import syntax as jinja_syntax
from onmt_llm.text.templates.jinja.operations import Operations

MAX_SOURCE = 100_000
"""Maximum number of characters of a template."""
BUDGET = 10_000_000
"""Units of every rendering."""
UNITS_PER_CHARACTER = 20
"""Additional units for each character of the conversation."""
UNITS_PER_MESSAGE = 40_000
"""Additional units for each message."""
MAX_OUTPUT = 200_000
"""Maximum number of characters that a template may write for an empty conversation."""
OUTPUT_PER_CHARACTER = 10
"""Additional characters that it may write for each character of the conversation."""

_SAFE_JINJA = (3, 1, 6)
_MAX_MESSAGE = 300


class Sandbox:
    """A compiled template that renders one conversation at a time.

    Args:
        source: The template.

    Attributes:
        inputs: Names of the variables that it takes from outside.

    Raises:
        jinja2.TemplateError: The source is not a template. SyntaxError, ValueError, RecursionError and MemoryError
            mean the same.
        DataError: It has syntax that chat templates may not use; the message starts with its line.
    """

    def __init__(self, source: str) -> None:
        extensions = [Generation, jinja2.ext.loopcontrols]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False
        )
        self._do = do = Operations(environment.undefined)
        tests = library.tests(do)
        filters = {**library.filters(do, tests), **jinja_syntax.operations(do)}
        environment.tests, environment.filters = dict(tests), dict(filters)
        environment.globals = dict(library.functions(do))
        # jinja2 evaluates constant expressions while compiling; without a budget this fails, so they are charged later
        do.left = -1
        tree = environment.parse(source)
        self.inputs = _inputs(tree).difference(environment.globals)
        self._outer_units = jinja_syntax.counted(tree)
        tree.set_environment(environment)
        self._template = environment.from_string(tree)
        self._lock = threading.Lock()

    def render(self, variables: dict[str, Any], *, characters: int, messages: int) -> str:
        """The text that the template writes.

        Args:
            variables: By name: text, numbers, lists and dictionaries.
            characters: Length of the conversation.
            messages: Number of its messages.

        Raises:
            jinja2.TemplateError: The template failed, refused the messages, or exceeded its budget. It may also raise
                any other exception.
        """
        do, template = self._do, self._template
        with self._lock:  # a budget belongs to one rendering
            do.left = BUDGET + UNITS_PER_CHARACTER * characters + UNITS_PER_MESSAGE * messages
            do.charge(self._outer_units)
            text = "".join(template.root_render_func(template.new_context(variables)))
        if len(text) > MAX_OUTPUT + OUTPUT_PER_CHARACTER * characters:
            raise SecurityError(f"it writes {len(text)} characters, more than a chat template may")
        return text


class Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks are rendered like any text; answers are found in another way."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _inputs(tree: jinja2.nodes.Template) -> frozenset[str]:
    """The variables that a template takes from outside: those that it never sets, and those that it may find set."""
    names = list(tree.find_all(jinja2.nodes.Name))
    read, own = ({name.name for name in names if (name.ctx == "load") is is_read} for is_read in (True, False))
    asked = {
        node.node.name
        for node in tree.find_all((jinja2.nodes.Test, jinja2.nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, jinja2.nodes.Name)
    }
    return frozenset(read & (read - own | asked | {"tools", "documents"}))


def compile_template(source: str, name: str) -> Sandbox:
    """Compile a template.

    Raises:
        DataError: The source is not a template, is too long, or has syntax that chat templates may not use.
        UnsupportedError: jinja2 is too old: its sandbox has known escapes.
    """
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _SAFE_JINJA:
        raise UnsupportedError(
            f"A chat template file needs jinja2 >= 3.1.6, but {jinja2.__version__} is installed.",
            hint="pip install -U jinja2",
        )
    if len(source) > MAX_SOURCE:
        raise DataError(f"A chat template may have at most {MAX_SOURCE} characters, but {name} has {len(source)}.")
    try:
        return Sandbox(source)
    except DataError as error:
        raise DataError(f"{name} cannot be used as a chat template: {error.message}.") from error
    except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", "?")
        raise DataError(f"{name} must be a Jinja template, but line {line} is wrong: {brief(error)}.") from error


def brief(error: BaseException) -> str:
    """The text of an error, shortened to one line, without a final full stop."""
    words = " ".join(str(error)[: 4 * _MAX_MESSAGE].split()) or type(error).__name__
    return (words if len(words) <= _MAX_MESSAGE else words[:_MAX_MESSAGE] + "…").removesuffix(".")
