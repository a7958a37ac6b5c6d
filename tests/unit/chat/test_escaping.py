"""Escaping of what models write, for the chat page."""

from __future__ import annotations

import pytest

from onmt_llm.chat.escaping import escape_markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b && c > d", "a &lt; b &amp;&amp; c &gt; d"),
        ("vector<int> v; </s> end", "vector&lt;int&gt; v; &lt;/s&gt; end"),
        ("already &lt;", "already &amp;lt;"),
        ("in `x < y` and <b>", "in `x < y` and &lt;b&gt;"),
        ("``a ` <b> `` <i>", "``a ` <b> `` &lt;i&gt;"),
        ("open ` <b>", "open ` &lt;b&gt;"),
        ("no span over\n\na paragraph: `\n\n<b> `", "no span over\n\na paragraph: `\n\n&lt;b&gt; `"),
        ("- one `\n- <b> `", "- one `\n- &lt;b&gt; `"),
        (r"escaped \` <b> `", r"escaped \` &lt;b&gt; `"),
        ("![x](http://host/?q=secret)", "!&#91;x](http://host/?q=secret)"),
        ("if $$a<b & c>d$$ then <b>", r"if $$a\lt b & c\gt d$$ then &lt;b&gt;"),
        (r"\(x<1\) or \[y>2\]", r"\(x\lt 1\) or \[y\gt 2\]"),
        ("unfinished $$a<b", "unfinished $$a&lt;b"),
        ("$$<img src=http://host>$$", r"$$\lt img src=http://host\gt $$"),
        ("`$$<b>` is code $$", "`$$<b>` is code $$"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_only_prose_is_escaped(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_fences_are_kept_also_while_they_are_unfinished() -> None:
    code = "```cpp\nstd::vector<int> v;\n\nv << 1;\n"
    assert escape_markdown("<a>\n" + code) == "&lt;a&gt;\n" + code
    assert escape_markdown(code + "```\n<a>") == code + "```\n&lt;a&gt;"


def test_a_fence_is_closed_by_its_own_kind_only() -> None:
    text = "~~~\n```\n<a>\n~~~~\n<b>"
    assert escape_markdown(text) == "~~~\n```\n<a>\n~~~~\n&lt;b&gt;"


def test_a_fence_in_a_list_item_is_a_fence() -> None:
    assert escape_markdown("- ```\n    <a>\n\n    ```\n<b>") == "- ```\n    <a>\n\n    ```\n&lt;b&gt;"
