"""The chat page in a real browser, over a scripted engine (`chat_server.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from chat_page import SECONDS, ChatPage, Server, serving, visiting

pytestmark = pytest.mark.slow

expect: Any = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright").expect


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("chat")) as server:
        yield server


@pytest.fixture
def chat(server: Server, browser: Any) -> Iterator[ChatPage]:
    with visiting(browser, server.url) as chat:
        yield chat


def test_a_typed_question_is_answered_piece_by_piece(chat: ChatPage) -> None:
    assert chat.page.get_by_role("heading", level=1).inner_text() == "Chat with a script"
    chat.ask("one two three four five six seven eight nine ten")
    expect(chat.stop).to_be_visible()
    for begin in ("1:", "1: one two", "1: one two three four five"):
        expect(chat.answers.last).to_have_text(re.compile(begin), timeout=SECONDS * 1000)
    expect(chat.answers.last).to_have_text("1: one two three four five six seven eight nine ten")
    expect(chat.status).to_contain_text(re.compile(r"11 tokens · [\d.]+ tokens/s"))
    expect(chat.status).to_contain_text("of 4,096 tokens")
    expect(chat.box).to_have_value("")


def test_the_conversation_reaches_the_model_until_a_new_one_begins(chat: ChatPage) -> None:
    chat.answer("first", "1: first")
    chat.answer("second", "2: second")
    chat.page.get_by_role("button", name="New conversation").click()
    expect(chat.answers).to_have_count(0)
    chat.answer("third", "1: third")
    expect(chat.list).to_have_text(["third", "first"])


def test_stop_keeps_what_is_there_and_frees_the_engine(chat: ChatPage, server: Server) -> None:
    chat.ask("slow please")
    expect(chat.answers.last).to_contain_text("tick tick")
    chat.stop.click()
    expect(chat.send).to_be_visible(timeout=2000)
    expect(chat.status).to_contain_text("stopped")
    assert server.is_free_after("slow please")
    assert 2 <= len(re.findall("tick", chat.answers.last.inner_text())) < 300
    chat.answer("next", "2: next")


def test_an_error_is_one_sentence_and_the_text_stays_in_the_box(chat: ChatPage) -> None:
    chat.ask("fail now")
    expect(chat.toast).to_contain_text("The question must not fail. (ask another)", timeout=SECONDS * 1000)
    expect(chat.box).to_have_value("fail now")
    expect(chat.questions).to_have_count(0)
    expect(chat.list).to_have_count(0)
    chat.answer("better", "1: better")


def test_markup_is_shown_letter_for_letter(chat: ChatPage) -> None:
    text = (
        "vector<int> v; </s> &lt; <img src=x onerror=alert(1)> "
        "![x](http://198.51.100.1/x.png) <div style='position:fixed;inset:0'>"
    )
    chat.answer(text, f"1: {text}")
    assert chat.questions.last.inner_text().strip() == text


def test_conversations_survive_a_reload(chat: ChatPage) -> None:
    chat.answer("remember <this>", "1: remember <this>")
    chat.page.reload()
    expect(chat.answers).to_have_text(["1: remember <this>"], timeout=SECONDS * 1000)
    chat.answer("and go on", "2: and go on")


def test_actions_beside_messages(chat: ChatPage) -> None:
    chat.answer("one", "1: one")
    chat.answer("`a<b>` two", "2: a<b> two")
    chat.action("Copy message", 3).click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "`a<b>` two"
    chat.action("Edit message", 1).click()
    dialog = chat.page.get_by_role("dialog")
    dialog.get_by_label("Edit message").fill("changed")
    dialog.get_by_role("button", name="Send").click()
    expect(chat.answers).to_have_text(["1: changed"], timeout=SECONDS * 1000)
    chat.wait_until_idle()
    chat.action("Answer again", 2).click()
    expect(chat.answers).to_have_text(["1: changed"], timeout=SECONDS * 1000)
    chat.wait_until_idle()
    chat.action("Delete question", 1).click()
    expect(chat.answers).to_have_count(0)
    assert chat.stored() == []
