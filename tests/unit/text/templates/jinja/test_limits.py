"""No chat template takes more than 2 s or 300 MiB, and each refusal is one sentence."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.templates.jinja.sandbox import compile_template
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.templates.message import Message

SCRIPT = Path(__file__).parents[4] / "data" / "hostile_templates.py"
HOSTILE: dict[str, str] = runpy.run_path(str(SCRIPT))["HOSTILE"]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, timeout=300, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes, and /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_and_small(name: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured[name]
    assert "problem" not in found
    assert found["s"] < 2 and found["mib"] < 300
    message = found["result"]
    assert message == "" or (message.endswith(".") and not message.endswith("..") and len(message.splitlines()) == 1)
    assert len(message) < 500


@pytest.mark.parametrize(
    "name", ["double with ~", "join long texts", "loops over texts", "recursive macro", "square", "indent lines"]
)
def test_what_goes_beyond_the_budget_is_refused(name: str) -> None:
    template = JinjaTemplate(HOSTILE[name], specials=SpecialTokens())
    with pytest.raises(DataError, match=r"exceed what a chat template may use|smaller than 2|be indented"):
        template.render([Message("user", "a")], generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' | wordwrap }}", "filter 'wordwrap' is not available"),
        ("{{ 'a' is escaped }}", "test 'escaped' is not available"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list'"),
        ("{{ messages.sort() }}", "attribute 'sort' of 'list'"),
        ("{{ ''.__class__.x }}", "attribute '__class__' of 'str'"),
        ("{{ ''['__class__'].x }}", "attribute '__class__' of 'str'"),
        ("{{ [''] | map(attribute='__class__.x') }}", "attribute '__class__' of 'str'"),
        ("{{ namespace()['_Namespace__attrs'].x }}", "unsafe|no attribute"),
        ("{{ range.run.x }}", "attribute 'run' of 'Function'"),
        ("{{ range }}", "a Function cannot be written"),
        ("{{ '{:999999999d}'.format(1) }}", "a field of 'format' must be"),
        ("{{ '{0.__class__}'.format(1) }}", "a field of 'format' must be"),
        ("{{ '{0[x]}{!r}'.format(1) }}", "a field of 'format' must be"),
        ("{{ '{1}'.format(1) }}", "out of range"),
        ("{{ cycler(1) }}", "'cycler' is undefined"),
        ("{{ self.x() }}", "no attribute 'x'"),
        ("{{ 'a'() }}", "a str cannot be called"),
        ("{{ [1] | map('charge') | list }}", "there is no filter"),
    ],
)
def test_only_what_is_listed_is_there(source: str, message: str) -> None:
    template = JinjaTemplate(source, specials=SpecialTokens())
    with pytest.raises(DataError, match=message):
        template.render([Message("user", "a")], generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'a' %}",
        "{% import 'a' as a %}",
        "{% block a %}{% endblock %}",
        "{% for a in b recursive %}{% endfor %}",
        "{{ f(*a) }}",
        "{{ a | join(**b) }}",
        "{{ 9999999999999999999999 }}",
    ],
)
def test_syntax_that_is_not_for_chat_templates(source: str) -> None:
    with pytest.raises(DataError, match=r"^t cannot be used as a chat template: line 2 has "):
        compile_template("\n" + source, "t")


def test_the_budget_grows_with_the_conversation() -> None:
    source = "{% for m in messages %}{{ m.content | replace('a', 'bb') | upper | trim }}{% endfor %}"
    text = "a" * 1_000_000
    template = JinjaTemplate(source, specials=SpecialTokens())
    (segment,) = template.render([Message("user", text)] * 2, generation_prompt=True)
    assert segment.text == "B" * 4_000_000


def test_threads_have_a_budget_each() -> None:
    source = "{% for i in range(20000) %}{% set x = 'a' ~ i %}{% endfor %}{{ messages[0].content }}"
    template = JinjaTemplate(source, specials=SpecialTokens())
    texts: list[str | None] = []

    def render(word: str) -> None:
        texts.append(template.render([Message("user", word)], generation_prompt=True)[0].text)

    threads = [threading.Thread(target=render, args=(f"w{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, texts)) == sorted(f"w{i}" for i in range(16))
