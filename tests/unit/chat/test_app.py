"""The chat page: its handlers and its texts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from onmt_llm.chat import app
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.session import Reply

gr = pytest.importorskip("gradio", reason="the chat page needs gradio")
SHOWN, HISTORY, BOX, STATUS = range(4)


class Scripted:
    max_context_length = 100

    def __init__(self, pieces: list[Delta | Exception]) -> None:
        self.pieces = pieces
        self.should_stop: Any = None

    def respond(self, messages: Any, *, should_stop: Any) -> Reply:
        self.should_stop = should_stop
        return Reply(7, 0, self._deltas())

    def _deltas(self) -> Iterator[Delta]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def test_updates_come_at_most_twenty_times_a_second_and_the_last_one_is_whole() -> None:
    responder = Scripted([Delta("word ", 1) for _ in range(1000)] + [Delta("end", 1, "stop")])
    pages = list(app._answer(gr, responder, "go", []))
    assert len(pages) < 20
    assert pages[-1][HISTORY][-1]["content"] == "word " * 1000 + "end"
    assert "Context: 1008 of 100 tokens" in pages[-1][STATUS] and "1001 tokens in" in pages[-1][STATUS]


def test_an_answer_that_was_cut_says_so() -> None:
    pages = list(app._answer(gr, Scripted([Delta("a", 1, "length")]), "go", []))
    assert pages[-1][STATUS].endswith("truncated at max_length")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DataError("Too long.", hint="shorten it"), r"^'?Too long. \(shorten it\)"),
        (RuntimeError("boom\nat line 3"), "The answer failed: RuntimeError: boom'?$"),
    ],
)
def test_an_error_midway_gives_back_the_text_and_the_history(error: Exception, sentence: str) -> None:
    past = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pages: list[Any] = []
    with pytest.raises(gr.Error, match=sentence):
        for page in app._answer(gr, Scripted([Delta("half", 1), error]), "go", past):
            pages.append(page)
    assert pages[-1][HISTORY] == past and pages[-1][BOX] == "go"


def test_a_closed_page_frees_the_engine() -> None:
    responder = Scripted([Delta("word ", 1) for _ in range(10)])
    pages = app._answer(gr, responder, "go", [])
    next(pages)
    pages.close()
    assert responder.should_stop()


def test_stop_before_the_first_word_takes_the_question_back() -> None:
    past = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
    page = app._after_stop(gr, past)
    assert page[HISTORY] == [] and page[BOX] == "q"


def test_an_empty_message_is_not_sent() -> None:
    (page,) = app._answer(gr, Scripted([]), "  \n", [])
    assert page[HISTORY] == []


def test_indentation_survives() -> None:
    page = app._page(gr, [{"role": "assistant", "content": "    a\n      b"}])
    assert page[SHOWN][0]["content"] == [{"type": "text", "text": "    a\n      b"}]


def test_a_taken_port_is_refused_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}, but cannot"):
            app.check_server("127.0.0.1", port)


def test_vibe_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_VIBE_MODE", "1")
    with pytest.raises(ConfigError, match="GRADIO_VIBE_MODE"):
        app.check_server("127.0.0.1", 6006)
