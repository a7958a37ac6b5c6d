"""Functions, filters, tests and operations of chat templates give what jinja2 gives."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from onmt_llm.text.templates.jinja.sandbox import Sandbox

VARIABLES: dict[str, Any] = {
    "text": "  Hello, wörld  ",
    "words": ["pear", "Apple", "fig", "apple"],
    "numbers": [3, 1, 2],
    "table": {"b": 2, "a": 1, "C": 3},
    "rows": [{"n": 2, "who": {"name": "Bo"}}, {"n": 1, "who": {"name": "al"}}, {"n": 2, "who": {"name": "Cy"}}],
    "empty": [],
}
FILTERS = [
    "text | trim", "text | upper", "text | lower", "text | trim | capitalize", "text | trim | title",
    "text | replace('l', 'L')", "text | replace('l', 'L', 1)", "'xxhixx' | trim('x')", "'a\nb' | indent(2)",
    "'a\n\nb' | indent(2, first=true)", "'a\n\nb' | indent(2, blank=true)", "3 | string", "text | length",
    "words | join(', ')", "numbers | join", "rows | join('+', attribute='n')", "numbers | sum",
    "rows | sum(attribute='n')", "numbers | sum(start=10)", "words | first", "words | last", "table | length",
    "numbers | list", "'abc' | list", "numbers | reverse | list", "'abc' | reverse", "table | items | list",
    "table | dictsort", "table | dictsort(true)", "table | dictsort(by='value')", "table | dictsort(reverse=true)",
    "words | sort", "words | sort(case_sensitive=true)", "numbers | sort(reverse=true)",
    "rows | sort(attribute='n,who.name') | map(attribute='who.name') | list", "words | unique | list",
    "words | unique(case_sensitive=true) | list", "rows | unique(attribute='n') | list | length", "numbers | min",
    "numbers | max", "words | min", "words | max(case_sensitive=true)", "rows | max(attribute='n')",
    "rows | map(attribute='who.name') | list", "rows | map(attribute='none', default='?') | list",
    "words | map('upper') | list", "numbers | select('odd') | list", "numbers | reject('odd') | list",
    "[0, 1, '', 'a'] | select | list", "numbers | select('gt', 1) | list",
    "rows | selectattr('n', 'equalto', 2) | list | length",
    "rows | rejectattr('who.name', 'in', ['Bo']) | list | length", "rows | selectattr('n') | list | length",
    "none_such | default('d')", "'' | default('d')", "'' | default('d', true)", "'42' | int", "'x' | int",
    "'x' | int(7)", "'2.5' | float", "'x' | float", "3 | float", "-3 | abs", "2.567 | round(1)", "2.5 | round",
    "2.1 | round(method='ceil')", "2.9 | round(0, 'floor')", "(text | safe)", "empty | first is undefined",
    "empty | last is undefined", "empty | sum",
]  # fmt: skip
TESTS = [
    "none_such is defined", "text is defined", "text is string", "3 is number", "3 is integer", "3.0 is float",
    "table is mapping", "words is sequence", "words is iterable", "none is none", "true is true", "false is false",
    "3 is odd", "4 is even", "9 is divisibleby(3)", "3 is eq(3)", "3 is ne(3)", "3 is lt(4)", "3 is ge(4)",
    "'a' is in('abc')", "'abc' is lower", "'ABC' is upper", "true is boolean", "text is not none",
    "words is sameas(words)",
]  # fmt: skip
OPERATIONS = [
    "1 + 2 * 3 - 4 / 8", "7 // 2", "-7 % 3", "2 ** 10", "'a' + 'b' + text", "'a' ~ 1 ~ none ~ true", "'ab' * 3",
    "[1] + [2, 3]", "[0] * 3", "1 < 2 < 3", "1 < 3 < 2", "'a' in 'cab'", "'z' not in words", "'a' in table",
    "2 in numbers", "words[0]", "words[-1]", "words[9] is undefined", "table.a", "table['b']", "table.zzz is undefined",
    "words[1:]", "words[::-1]", "text[2:7]", "text[::2]", "(1, 2)[0]", "rows[0].who.name", "text.strip()",
    "text.split()", "text.split(',')", "'a,b,c'.split(',', 1)", "text.startswith('  H')", "'abc'.endswith('c')",
    "text.upper().lower()", "'a-b'.replace('-', '+')", "table.items() | list", "table.keys() | list",
    "table.values() | list", "table.get('a')", "table.get('q', 5)", "not text", "text and 1", "'' or 'x'",
    "1 if text else 2", "(2 if false) is undefined", "{'k': 1, 2: 'v'}", "dict(a=1)", "range(5) | list",
    "range(1, 9, 3) | list", "range(3)[1]", "'%s' == '%s'", "[1, 'é', none, true, 1.5, {'a': (1, 2)}]", "1 == 1.0",
    "[1, 2] < [1, 3]", "'é' > 'e'", "+3", "-(3)", "not not 3",
]  # fmt: skip
STATEMENTS = [
    "{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ w }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for w in empty %}x{% else %}none{% endfor %}",
    "{% for n in numbers if n > 1 %}{{ loop.index0 }}{{ n }}{{ loop.revindex }}{% endfor %}",
    "{% for n in numbers %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}",
    "{% for n in numbers %}{{ n }}{% if n == 1 %}{% break %}{% endif %}{% endfor %}",
    "{% for k, v in table.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for w in words %}{{ loop.previtem }}<{{ w }}>{{ loop.nextitem }}{% endfor %}",
    "{% for r in rows %}{{ loop.changed(r.n) }}{% endfor %}",
    "{% for n in numbers %}{{ loop.first }}{{ loop.cycle('a', 'b') if false else '' }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for n in numbers %}{% set ns.n = ns.n + n %}{% endfor %}{{ ns.n }}",
    "{% set x %}block {{ text }}{% endset %}{{ x | trim }}",
    "{% macro f(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=3) }}{{ f(b=4, a=0) }}",
    "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(4) }}",
    "{% filter upper %}shout {{ text }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{% if text is string and words %}yes{% elif numbers %}no{% else %}never{% endif %}",
    "{%- if true -%}\n  trimmed  \n{%- endif -%}",
    "{% set a, b = 1, 2 %}{{ b }}{{ a }}",
]


def plain(source: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    return environment.from_string(source).render(VARIABLES)


def ours(source: str) -> str:
    return Sandbox(source).render(dict(VARIABLES), characters=100, messages=1)


@pytest.mark.parametrize("expression", [*FILTERS, *TESTS, *OPERATIONS])
def test_expressions(expression: str) -> None:
    source = f"{{{{ {expression} }}}}"
    assert ours(source) == plain(source)


@pytest.mark.parametrize("source", STATEMENTS)
def test_statements(source: str) -> None:
    assert ours(source) == plain(source)


@pytest.mark.parametrize(
    "expression",
    [
        "none_such.x", "1 + 'a'", "words + 1", "'a' < 1", "1 / 0", "none_such()", "[1] | join(1, 2, 3)", "1 in 2",
        "table | sum", "range(0, 5, 0)", "3 | first", "none | length", "'a' | nonsense", "'a' is nonsense",
    ],
)  # fmt: skip
def test_what_fails_in_jinja2_fails_here(expression: str) -> None:
    source = f"{{{{ {expression} }}}}"
    for render in (plain, ours):
        with pytest.raises(Exception) as error:
            render(source)
        assert isinstance(error.value, (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, SyntaxError))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", {}),
        ("(ensure_ascii=false)", {}),
        ("(ensure_ascii=true)", {"ensure_ascii": True}),
        ("(indent=2)", {"indent": 2}),
        ("(separators=(',', ':'))", {"separators": (",", ":")}),
        ("(sort_keys=true)", {"sort_keys": True}),
    ],
)
def test_json_is_that_of_transformers(arguments: str, options: dict[str, Any]) -> None:
    value = {"b": ["é", 1.5, None, True], "a": {"<": "'&"}}
    text = Sandbox(f"{{{{ value | tojson{arguments} }}}}").render({"value": value}, characters=0, messages=0)
    assert text == json.dumps(value, **{"ensure_ascii": False, **options})
