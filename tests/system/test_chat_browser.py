"""The chat page in a real browser, over a scripted responder (`scripted_chat.py`)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the chat page needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SECONDS = 60


class Server:
    """The app in a process of its own."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = directory / "server.log"
        path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "GRADIO_TEMP_DIR": str(directory)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "scripted_chat.py"), str(self.port)],
                cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + 2 * SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        pytest.fail(f"the chat page did not come up:\n{self.log.read_text()}")

    def is_free_after(self, question: str) -> bool:
        """Whether the engine has stopped working on this question."""
        return f"engine free after: {question}\n" in self.log.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("chat"))
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class ChatPage:
    """What a visitor sees and does; the only place that knows the page's selectors."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.get_by_label("Your message")
        self.send = page.get_by_role("button", name="Send")
        self.stop = page.get_by_role("button", name="Stop")
        self.clear = page.get_by_role("button", name="Clear").last
        self.questions = page.get_by_test_id("user")
        self.answers = page.get_by_test_id("bot")
        self.status = page.locator("#status")

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def wait_until_idle(self) -> None:
        sync_api.expect(self.send).to_be_visible(timeout=SECONDS * 1000)


@pytest.fixture
def chat(server: Server, browser: Any) -> Iterator[ChatPage]:
    """A visitor in a fresh context, who must see no console error and whose page asks no other machine."""
    complaints: list[str] = []
    elsewhere: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("a dialog opened"))
    page.on("request", lambda request: elsewhere.append(request.url))
    page.goto(server.url)
    chat = ChatPage(page)
    sync_api.expect(chat.box).to_be_visible(timeout=SECONDS * 1000)
    yield chat
    context.close()
    assert complaints == []
    assert [url for url in elsewhere if not url.startswith((server.url, "data:", "blob:"))] == []


def test_a_typed_question_is_answered_piece_by_piece(chat: ChatPage) -> None:
    assert chat.page.get_by_role("heading", level=1).inner_text() == "Chat with a script"
    chat.ask("one two three four five six seven eight nine ten")
    lengths = set()
    while not chat.send.is_visible() or not lengths:
        if chat.answers.count():
            lengths.add(len(chat.answers.last.inner_text()))
    assert len(lengths) >= 3
    sync_api.expect(chat.answers.last).to_have_text("1: one two three four five six seven eight nine ten")
    sync_api.expect(chat.status).to_contain_text("Context: 21 of 4096 tokens · 11 tokens in")
    sync_api.expect(chat.box).to_have_value("")


def test_the_conversation_reaches_the_model_until_it_is_cleared(chat: ChatPage) -> None:
    for question, answer in (("first", "1: first"), ("second", "3: second")):
        chat.ask(question)
        sync_api.expect(chat.answers.last).to_have_text(answer)
        chat.wait_until_idle()
    chat.clear.click()
    sync_api.expect(chat.answers).to_have_count(0)
    chat.ask("third")
    sync_api.expect(chat.answers.last).to_have_text("1: third")


def test_stop_keeps_what_is_there_and_frees_the_engine(chat: ChatPage, server: Server) -> None:
    chat.ask("slow please")
    sync_api.expect(chat.answers.last).to_contain_text("tick tick")
    chat.stop.click()
    sync_api.expect(chat.send).to_be_visible(timeout=5000)
    deadline = time.monotonic() + 10
    while not server.is_free_after("slow please") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.is_free_after("slow please")
    ticks = len(re.findall("tick", chat.answers.last.inner_text()))
    assert 2 <= ticks < 300
    chat.ask("next")
    sync_api.expect(chat.answers.last).to_have_text("3: next")


def test_an_error_is_one_sentence_and_the_text_stays_in_the_box(chat: ChatPage) -> None:
    chat.ask("fail now")
    toast = chat.page.get_by_text("The message must leave room for the answer. (shorten the message)")
    sync_api.expect(toast).to_be_visible(timeout=SECONDS * 1000)
    sync_api.expect(chat.box).to_have_value("fail now")
    sync_api.expect(chat.questions).to_have_count(0)
    chat.ask("better")
    sync_api.expect(chat.answers.last).to_have_text("1: better")


def test_rounds_that_were_left_out_are_told(chat: ChatPage) -> None:
    chat.ask("forget it")
    sync_api.expect(chat.status).to_contain_text("the oldest 2 rounds were left out")


def test_markup_is_shown_letter_for_letter(chat: ChatPage) -> None:
    text = (
        "vector<int> v; </s> &lt; <img src=x onerror=alert(1)> "
        "![x](http://198.51.100.1/x.png) <div style='position:fixed;inset:0'>"
    )
    chat.ask(text)
    sync_api.expect(chat.answers.last).to_have_text(f"1: {text}")
    assert chat.questions.last.inner_text().strip() == text
    chat.wait_until_idle()
