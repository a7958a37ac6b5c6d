"""Texts in segments: whatever a text is, only its segments change."""

from __future__ import annotations

import time
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from onmt_llm.serve.markup import of_html, of_lines


@given(st.text())
def test_lines_and_their_ends(text: str) -> None:
    document = of_lines(text)
    assert document.filled(document.segments) == text
    assert all(segment.strip() and "\n" not in segment for segment in document.segments)


@given(st.lists(st.sampled_from(["<p>", "</p>", "<b x='>'>", "<br>", "a", " ", "&amp;", "<", "<!-- c -->", "<pre>"])))
def test_html_keeps_what_is_not_translated(pieces: list[str]) -> None:
    text = "".join(pieces)
    document = of_html(text)
    marked = document.filled(["X" for _ in document.segments])
    assert [marked.count(tag) for tag in ("<p>", "</p>", "<br>", "<pre>")] == [
        text.count(tag) for tag in ("<p>", "</p>", "<br>", "<pre>")
    ]
    assert unescape(document.filled(document.segments)) == unescape(text)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("no tags", ["no tags"]),
        ("a <b>bold</b> word", ["a ", "bold", " word"]),
        ("fish &amp; chips &lt;3", ["fish & chips <3"]),
        ("1 &gt; 0 <i>2</i>", []),
        ("x < y and a<b>c", ["x < y and a", "c"]),
        ("<p>a<br>b<img alt='>'>c</p>", ["a", "b", "c"]),
        ("<script>var a = '<b>';</script>after", ["after"]),
        ("<STYLE>p {}</STYLE>after<pre>kept <b>too</b></pre>", ["after"]),
        ("<p translate='no'>Name <b>kept</b></p> text", [" text"]),
        ("<pre>unclosed <b>x</b>", []),
        ("stray</b> end <unclosed", ["stray", " end <unclosed"]),
    ],
)
def test_segments_of_html(text: str, segments: list[str]) -> None:
    assert of_html(text).segments == segments


@pytest.mark.parametrize("piece", ["<", '<a "', "<a></b>", "<!--", "</a", "<script>", "<p>"])
def test_hostile_html_takes_linear_time(piece: str) -> None:
    begun = time.process_time()
    of_html(piece * 20_000 + "</x>" * 20_000 + "</p>" * 20_000)
    assert time.process_time() - begun < 3
