"""Templates that try to take more time or memory than there is, and a way to run them without harm.

Run as a script it renders each as `limited.py` does, and prints as JSON what that took.
"""

from __future__ import annotations

import json
from functools import partial

DOUBLE = "{% set ns = namespace(s=START) %}{% for i in range(64) %}{% set ns.s = MORE %}{% endfor %}"


def doubled(start: str, more: str, use: str = "") -> str:
    return DOUBLE.replace("START", start).replace("MORE", more) + use


# Ends at the largest text that the budget allows; what comes behind works on it.
LONG = (
    "{% set ns = namespace(s='START') %}{% for i in range(19) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    "{% set x = ns.s %}"
)


def long(start: str, use: str) -> str:
    return LONG.replace("START", start) + use


NEST = "{% set ns = namespace(x=INNER) %}{% for i in range(N) %}{% set ns.x = OUTER %}{% endfor %}"


def nested(inner: str, outer: str, use: str, n: int = 60) -> str:
    return NEST.replace("INNER", inner).replace("N)", f"{n})").replace("OUTER", outer) + use


TWICE = "[ns.x, ns.x]"

HOSTILE: dict[str, str] = {
    # texts and lists that double
    "double with ~": doubled("'aaaaaaaa'", "ns.s ~ ns.s"),
    "double with +": doubled("'aaaaaaaa'", "ns.s + ns.s"),
    "double wide characters": doubled("'😀'", "ns.s + ns.s + ns.s + ns.s"),
    "double lists": doubled("[1]", "ns.s + ns.s"),
    "double tuples": doubled("(1,)", "ns.s + ns.s"),
    "double with *": doubled("'aaaaaaaa'", "ns.s * 8"),
    "double lists with *": doubled("[1]", "ns.s * 8"),
    "double with replace": doubled("'a'", "ns.s | replace('a', 'aa')"),
    "double with a method": doubled("'a'", "ns.s.replace('a', 'aaaa')"),
    "double with join": doubled("'aa'", "[ns.s, ns.s] | join(ns.s)"),
    "double with join as a method": doubled("'aa'", "ns.s.join([ns.s, ns.s])"),
    "double with a set block": (
        "{% set x = 'aaaa' %}{% set ns = namespace(s='a') %}{% for i in range(60) %}"
        "{% set y %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = y %}{% endfor %}"
    ),
    "double with a macro": (
        "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='a') %}"
        "{% for i in range(60) %}{% set ns.s = f(ns.s) %}{% endfor %}"
    ),
    "double with a filter block": (
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set t %}{% filter upper %}{{ ns.s }}{{ ns.s }}"
        "{% endfilter %}{% endset %}{% set ns.s = t %}{% endfor %}"
    ),
    "many summands": (
        long("x" * 8, "{% for i in range(50) %}{% set ns.s = " + " + ".join(["x"] * 200) + " %}{% endfor %}")
    ),
    "many concatenated": long("😀" * 8, "{% set y = " + " ~ ".join(["x"] * 2000) + " %}"),
    "many in a macro": "{% macro f(x) %}" + "{{ x }}" * 2000 + "{% endmacro %}" + long("x" * 8, "{% set y = f(x) %}"),
    "constant text in a macro": (
        "{% macro f() %}{% for i in range(100000) %}" + "x" * 20000 + "{% endfor %}{% endmacro %}{% set y = f() %}"
    ),
    "constant text": "{% for i in range(100000) %}" + "x" * 20000 + "{% endfor %}",
    # texts that one operation makes long
    "repeat": "{{ 'a' * 20000000 }}",
    "repeat from the right": "{{ 10 ** 9 * 'a' }}",
    "join long texts": "{% set x = 'a' * 2000000 %}{{ ([x] * 100) | join(x) | length }}",
    "indent lines": "{{ ('a\n' * 500000) | indent(1000) | length }}",
    "indent widely": "{{ 'a\nb' | indent(1000000000) }}",
    "indent with a text": long("a" * 8, "{{ 'a\nb\nc' | indent(x) }}"),
    "json widely": "{{ {'a': 1} | tojson(indent=1000000000) | length }}",
    "json with separators": "{{ (range(100000) | list) | tojson(separators=('x' * 10000, ':')) | length }}",
    "json of nested lists": nested("[]", TWICE, "{{ ns.x | tojson }}"),
    "json of deep lists": nested("[]", "[ns.x]", "{{ ns.x | tojson(indent=16) }}", 5000),
    "json escapes": long(
        "\\x00😀", "{% for i in range(100) %}{{ x | tojson(ensure_ascii=true) | length }}{% endfor %}"
    ),
    "format": "{{ '%999999999d' % 1 }}",
    "format as a filter": "{{ '%999999999d' | format(1) }}",
    "format as a method": "{{ '{:>1000000000}'.format(1) }}",
    "format with a map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format with a star": "{{ '%*d' % (1000000000, 1) }}",
    "odd formats": "{{ '%1000000000d' is odd }}",
    "divisible formats": "{{ '%1000000000d' is divisibleby 2 }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center as a filter": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) | length }}",
    "zfill": "{{ '1'.zfill(1000000000) | length }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) | length }}",
    "replace empty": "{% set x = 'a' * 1000000 %}{{ x.replace('', x) | length }}",
    "upper": long("ΐ" * 8, "{% for i in range(1000) %}{% set y = x.upper() %}{% endfor %}"),
    "escape": long("&" * 8, "{{ x | escape | escape | escape }}"),
    "urlencode": long("😀" * 2, "{{ x | urlencode | urlencode }}"),
    "xmlattr": "{{ {'a': '&' * 1000000} | xmlattr }}",
    "dates": "{{ strftime_now('%c' * 100000) }}",
    "wide dates": "{{ strftime_now('%2000000000d') }}",
    # loops
    "loops over texts": ("{% set x = 'a' * 2000000 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}"),
    "loops over range": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop with a condition": "{% for i in range(1000000) if false %}{% endfor %}" * 20,
    "loop that ends at once": "{% for i in range(10 ** 12) %}{% break %}{% endfor %}",
    "loops in a macro": (
        "{% macro f() %}{% for i in range(3000) %}{{ g() }}{% endfor %}{% endmacro %}"
        "{% macro g() %}{% for i in range(3000) %}{{ i }}{% endfor %}{% endmacro %}{{ f() }}"
    ),
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro with a default": "{% macro f(n, x=f(n-1) ~ f(n-1) if n else '') %}{{ x }}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [[[]]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "call block": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}",
    "loop over a loop": "{% for a in range(1000) %}{% for b in loop %}{{ loop.length }}{% endfor %}{% endfor %}",
    "text in a loop": "{% for i in range(3000) %}{{ 'x' * 10000 }}{% endfor %}",
    "map with an operation": "{{ [1] | map('charge') | list }}{{ [-1000000000000] | map('charge') | list }}",
    "map long": long("a" * 8, "{{ x | map('upper') | list | length }}"),
    "map of map": "{{ [range(100000)] * 1000 | map('list') | map('length') | list }}",
    "select": long("a" * 8, "{{ x | select('in', x) | list | length }}"),
    "batch": "{{ range(1000000) | batch(1) | list | length }}",
    "slice": "{{ range(10) | slice(1000000000) | list | length }}",
    "lipsum": "{{ lipsum(n=100000, max=100000) }}",
    "cycler": "{% set c = cycler(1) %}{% for i in range(100000000) %}{{ c.next() }}{% endfor %}",
    "wordwrap": long("a b " * 2, "{{ x | wordwrap(1) }}"),
    "striptags": "{{ ('<' * 200000) | striptags }}",
    "urlize": "{{ ('http://' * 200000) | urlize }}",
    "pprint": nested("[]", TWICE, "{{ ns.x | pprint }}"),
    "groupby": long("a" * 8, "{{ x | groupby(0) }}"),
    "constant that is written": "{{ 'x' * 9000000 }}" * 500,
    "constants in a loop": "{% for i in range(100000) %}{{ 'x' * 9000000 }}{% endfor %}",
    "nearly control tokens": "{{ '<|' * 99000 }}",
    "control tokens": "{{ '<|reserved_special_token_1|>' * 6900 }}",
    # work that is not seen
    "compare through loops": (
        nested("[]", TWICE, "{% set a = ns.x %}")
        + nested("[]", TWICE, "{% for i in [a, 1] %}{% set k = loop %}{% for j in [ns.x, 1] %}{% if loop.last %}")
        + "{{ [k, loop] | sort(attribute='previtem') }}{% endif %}{% endfor %}{% endfor %}"
    ),
    "compare through namespaces": (
        nested("[]", TWICE, "{% set a = namespace(y=ns.x) %}")
        + nested("[]", TWICE, "{{ [a, namespace(y=ns.x)] | max(attribute='y') }}")
    ),
    "hash through namespaces": nested("()", "(ns.x, ns.x)", "{{ [ns] | unique(attribute='x') }}"),
    "compare methods": nested("{}", "{1: ns.x, 2: ns.x}", "{% set a = ns.x.get %}")
    + nested("{}", "{1: ns.x, 2: ns.x}", "{{ ns.x.get == a }}"),
    "hash in keys": nested("()", "(ns.x, ns.x)", "{{ ns.x in {}.keys() }}"),
    "names of attributes": long("a.b." * 2, "{{ [1] | map(attribute=x) | list }}"),
    "name of a filter": nested("()", "(ns.x, ns.x)", "{{ [1] | map(ns.x) | list }}"),
    "name of a test": nested("()", "(ns.x, ns.x)", "{{ [1] | select(ns.x) | list }}"),
    "name of an attribute": nested("[]", TWICE, "{{ [1] | sort(attribute=ns.x) }}"),
    "name of a method": nested("()", "(ns.x, ns.x)", "{{ 1 | round(1, ns.x) }}"),
    "name in a complaint": nested("()", "(ns.x, ns.x)", "{{ [1][ns.x].y }}"),
    "one hash": (
        "{% set ns = namespace(x=[()]) %}{% for i in range(13) %}{% set ns.y = [] %}{% for t in ns.x %}"
        "{% set ns.y = ns.y + [t + (-1,), t + (-2,)] %}{% endfor %}{% set ns.x = ns.y %}{{ ns.x | unique | length }}"
        "{% endfor %}"
    ),
    "many attributes": long("a" * 8, "{{ x[:100000] | sort(attribute='a,b,c,d,e,f,g,h,i,j,k,l') | length }}"),
    "long affix": long("a" * 8, "{% for i in range(99) %}{{ x.startswith(x) }}{% endfor %}"),
    "compare": long("a" * 8, "{% set y = x ~ '' %}{% for i in range(100000) %}{{ x == y }}{% endfor %}"),
    "compare a chain": long("a" * 8, "{% set y = x ~ 'b' %}{% for i in range(100000) %}{{ x < y < y }}{% endfor %}"),
    "compare nested": nested("[]", TWICE, "{% set a = ns.x %}") + nested("[]", TWICE, "{% set b = ns.x %}{{ a == b }}"),
    "compare tuples": nested("()", "(ns.x, ns.x)", "{{ ns.x < (ns.x, 1) }}"),
    "hash": nested("()", "(ns.x, ns.x)", "{% set d = {ns.x: 1} %}"),
    "hash as an index": nested("()", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    "hash in get": nested("()", "(ns.x, ns.x)", "{{ {}.get(ns.x) }}"),
    "hash in in": nested("()", "(ns.x, ns.x)", "{{ ns.x in {} }}"),
    "hash in unique": nested("()", "(ns.x, ns.x)", "{{ [ns.x, ns.x] | unique | list | length }}"),
    "hash in dict": nested("()", "(ns.x, ns.x)", "{{ dict([(ns.x, 1)]) | length }}"),
    "text of nested": nested("[]", TWICE, "{{ ns.x }}"),
    "text of nested with ~": nested("{}", "{1: ns.x, 2: ns.x}", "{{ '' ~ ns.x }}"),
    "text of views": nested("{}", "{1: ns.x, 2: ns.x}", "{{ ns.x.items() }}"),
    "nested in a namespace": "{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns.x }}{{ ns.x == [ns] }}",
    "changed": nested("[]", TWICE, "{% for i in range(9) %}{{ loop.changed(ns.x) }}{% endfor %}"),
    "find": long("a" * 8, "{% set y = 'a' * 1000 ~ 'b' %}{% for i in range(9999) %}{{ x.find(y) }}{% endfor %}"),
    "find backwards": long("a" * 8, "{% set y = 'b' ~ 'a' * 1000000 %}{{ x.rfind(y) }}"),
    "in": long("a" * 8, "{% set y = 'a' * 100000 ~ 'b' ~ 'a' * 100000 %}{{ y in x }}"),
    "strip": long("ab" * 4, "{% for i in range(99999) %}{{ x.strip('xyz' * 30) | length }}{% endfor %}"),
    "split": long("a,b " * 2, "{% for i in range(999) %}{% set y = x.split(',') %}{% endfor %}"),
    "split wide": long("😀 " * 4, "{{ x.split(' ') | length }}{{ x.split() | length }}{{ x.splitlines() | length }}"),
    "list of a text": long("😀" * 8, "{{ x | list | length }}"),
    "list of range": "{{ range(100000000) | list | length }}",
    "in range": "{{ 'a' in range(10000000000) }}",
    "sort": long("ba" * 4, "{{ x | list | sort | length }}"),
    "sort alike": long("a" * 8, "{{ ([x ~ 'b', x ~ 'a'] * 100000) | sort | length }}"),
    "sum": "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
    "sum of texts": long("a" * 8, "{{ ([x] * 100000) | sum(start='') | length }}"),
    "slices": long("a" * 8, "{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}"),
    "reverse": long("a" * 8, "{% for i in range(99999) %}{% set y = x | reverse %}{% endfor %}"),
    "truth of texts": long("a" * 8, "{% for i in range(99999) %}{{ x | title | length }}{{ x | trim }}{% endfor %}"),
    "tests of texts": long("a" * 8, "{% for i in range(99999) %}{{ x is upper }}{{ x.isalpha() }}{% endfor %}"),
    "star": long(
        "a" * 8, "{% macro f() %}{{ varargs }}{% endmacro %}{% for i in range(9999) %}{{ f(*x) }}{% endfor %}"
    ),
    "deep undefined": long("a" * 8, "{{ {}[x].y }}"),
    "long complaint": long("a b" * 2, "{{ raise_exception(x) }}"),
    # numbers
    "square": "{% set ns = namespace(n=10) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "add": "{% set ns = namespace(n=10) %}{% for i in range(5000) %}{% set ns.n = ns.n + ns.n %}{% endfor %}",
    "power": "{{ 10 ** 1000000000 }}",
    "power of power": "{{ 9 ** 9 ** 9 }}",
    "round": "{{ 1 | round(1000000000, 'ceil') }}",
    "round back": "{{ 1.5 | round(-1000000000) }}",
    "int": "{{ ('f' * 1000000) | int(base=16) }}",
    "int of float": "{{ 1e308 | int * 1e308 | int }}",
    "literal": "{{ 0x" + "f" * 90_000 + " }}",
    "decimal literal": "{{ " + "9" * 90_000 + " }}",
    # objects that stay
    "chain of namespaces": (
        "{% set ns = namespace(x=1) %}{% for i in range(10000000) %}{% set ns.x = namespace(y=ns.x) %}{% endfor %}"
    ),
    "chain of short namespaces": (
        "{% set ns = namespace(x=1) %}{% for i in range(60000) %}{% set ns.x = namespace(y=ns.x) %}{% endfor %}"
    ),
    "chain of macros": (
        "{% set ns = namespace(x=1) %}{% for i in range(20000) %}{% set y = ns.x %}"
        "{% macro f(z=y) %}{{ y }}{% endmacro %}"
        "{% set ns.x = [f, y] %}{% endfor %}"
    ),
    "chain of loops": (
        "{% set ns = namespace(x=1) %}{% for i in range(20000) %}{% for j in [ns.x] %}{% set ns.x = (loop, j) %}"
        "{% endfor %}{% endfor %}"
    ),
    "chain of lists": nested("[]", "[ns.x]", "{{ ns.x == [ns.x] }}", 100_000),
    "chain of tuples": nested("()", "(ns.x,)", "{{ {}[ns.x] }}", 50_000),
    "dictionaries": "{% set ns = namespace(x=1) %}{% for i in range(500000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
    "undefined": "{% set ns = namespace(x=1) %}{% for i in range(200000) %}{% set ns.x = [ns.x, ns.y] %}{% endfor %}",
    # sources
    "many expressions": "{{ a }}" * 14_000,
    "many branches": "".join(f"{{% if a %}}{{% set b{i} = 1 %}}{{% endif %}}" for i in range(2500)),
    "many macros": "".join(f"{{% macro f{i}(a) %}}{{{{ a }}}}{{% endmacro %}}" for i in range(1800)),
    "many loops": "".join(f"{{% for a{i} in b %}}{{{{ loop.first }}}}{{% endfor %}}" for i in range(1800)),
    "deep branches": "{% if a %}" * 2000 + "{% endif %}" * 2000,
    "deep loops": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "deep brackets": "{{ " + "(" * 40_000 + " }}",
    "deep lists": "{{ " + "[" * 400 + "]" * 400 + " }}",
    "deep not": "{{ " + "not " * 20_000 + "a }}",
    "deep minus": "{{ " + "-" * 90_000 + "1 }}",
    "long attributes": "{{ a" + ".b" * 40_000 + " }}",
    "long filters": "{{ a" + "|trim" * 10_000 + " }}",
    "long sum": "{{ 1" + "+1" * 40_000 + " }}",
    "long elif": "{% if a %}" + "{% elif a %}" * 6000 + "{% endif %}",
    "constant sum": "{{ 'a'" + " + 'a'" * 9000 + " }}",
    "constant expression": "{{ ('a' * 9999999) | replace('a', 'bbbbbbbb') | upper | title | list }}" * 100,
    "long comment": "{#" * 45_000,
    "long raw": "{% raw %}" * 10_000,
    "open quotes": "{{ " + "'" * 90_001 + " }}",
    "spaces": "{{ a" + " " * 90_000 + "-}}" + "\n" * 9_000,
    "many lines": "\n" * 90_000 + "{{",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "autoescape": "{% autoescape true %}{{ '<' * 1000000 }}{% endautoescape %}",
}


def outcome(source: str) -> str:
    from onmt_llm.config.checkpoint import SpecialTokens
    from onmt_llm.errors import DataError
    from onmt_llm.text.templates.jinja.template import JinjaTemplate
    from onmt_llm.text.templates.message import Message

    control = [f"<|reserved_special_token_{i}|>" for i in range(256)]
    try:
        template = JinjaTemplate(source, specials=SpecialTokens(), control_tokens=control)
        template.render([Message("user", "a")], generation_prompt=True)
    except DataError as error:
        return error.message[:1000]
    return ""


if __name__ == "__main__":
    from limited import measured

    outcome("{{ messages[0].content }}")  # loads everything
    print(json.dumps({name: measured(partial(outcome, source)) for name, source in HOSTILE.items()}))
