"""The chat page in a real browser: its server, and what a visitor sees and does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SECONDS = 60
HARMLESS = re.compile(
    "Autofocus processing was blocked|AbortError: (signal is|BodyStreamBuffer was) aborted|Unexpected error Co"
)
"""What Chromium says about a page that focuses its box itself, and Gradio where a page with an open stream is left."""

SIZES = {"desktop": (1280, 800), "phone": (390, 844), "landscape": (844, 390)}


def sized(size: str, scheme: str = "light") -> dict[str, Any]:
    """Options of a browser's context, for one of `SIZES`."""
    width, height = SIZES[size]
    phone = size != "desktop"
    return {
        "viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": phone, "is_mobile": phone,
    }  # fmt: skip


def violations(page: Any) -> list[str]:
    """What axe finds on a page; its script is in the package `axe-playwright-python`."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe is not installed (pip install axe-playwright-python)")
    page.wait_for_timeout(500)  # Gradio draws the last state of an answer twice
    page.evaluate(Path(found.origin).with_name("axe.min.js").read_text("utf-8"))
    results = page.evaluate("axe.run()")["violations"]
    return [f"{each['id']}: {node['html'][:150]}" for each in results for node in each["nodes"]]


class Server:
    """The page in a process of its own: over a scripted engine with flags, or over models with words of the command."""

    def __init__(self, directory: Path, flags: Sequence[str] = (), *, words: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = directory / "server.log"
        path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "GRADIO_TEMP_DIR": str(directory)}
        script = [str(TESTS / "system" / "chat_server.py"), str(self.port), str(directory), *flags]
        command = ["-m", "onmt_llm.cli.chat", *words, "-server_port", str(self.port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(command if words else script)],
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

    def is_free_after(self, question: str, seconds: float = 10) -> bool:
        """Whether the engine stops working on this question within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if f"engine free after: {question}\n" in self.log.read_text():
                return True
            time.sleep(0.05)
        return False


@contextmanager
def serving(directory: Path, flags: Sequence[str] = (), *, words: Sequence[str] = ()) -> Iterator[Server]:
    """A server that is up; its log must not have a traceback at the end."""
    server = Server(directory, flags, words=words)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()[-3000:]


class ChatPage:
    """What a visitor sees and does; the only place that knows the page's selectors."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.get_by_label("Your message")
        self.send = page.get_by_role("button", name="Send", exact=True)
        self.stop = page.get_by_role("button", name="Stop", exact=True)
        self.questions = page.get_by_test_id("user")
        self.answers = page.get_by_test_id("bot")
        self.status = page.locator(".status").last
        self.toast = page.locator(".toast-body")
        self.list = page.locator("#conversations li .title")

    def open(self, url: str) -> ChatPage:
        self.page.goto(url)
        self.box.wait_for(timeout=SECONDS * 1000)
        self.page.wait_for_function("document.querySelector('#history .toggle-button[aria-expanded]')")
        return self

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def answer(self, text: str, answer: str | None = None) -> None:
        """Ask, and wait until the answer is complete."""
        from playwright.sync_api import expect

        before = self.answers.count()
        self.ask(text)
        expect(self.answers).to_have_count(before + 1, timeout=SECONDS * 1000)
        if answer is not None:
            expect(self.answers.last).to_have_text(answer, timeout=SECONDS * 1000)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        from playwright.sync_api import expect

        expect(self.send).to_be_visible(timeout=SECONDS * 1000)
        expect(self.page.locator(".message-row .actions")).to_have_count(self.page.locator(".message-row").count())

    def action(self, name: str, message: int) -> Any:
        """A button beside a message, counted from 1."""
        return self.page.get_by_role("group", name=f"Message {message}", exact=True).first.get_by_role(
            "button", name=name
        )

    def stored(self) -> Any:
        """The conversations in the browser's store."""
        entries = self.page.evaluate("Object.entries(localStorage)")
        return [json.loads(value) for key, value in entries if key.startswith("onmt_llm.conversation.")]


@contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[ChatPage]:
    """A visitor in a fresh context, who must see no console error and whose page asks no other machine."""
    complaints: list[str] = []
    elsewhere: list[str] = []
    context = browser.new_context(**{"permissions": ["clipboard-read", "clipboard-write"], **options})

    def watch(page: Any) -> None:
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a dialog opened"))
        page.on("request", lambda request: elsewhere.append(request.url))

    context.on("page", watch)
    try:
        yield ChatPage(context.new_page()).open(url)
    finally:
        context.close()
    found = [text for text in complaints if not HARMLESS.search(text)]
    assert not found, found
    assert [each for each in elsewhere if not each.startswith((url, "data:", "blob:"))] == []
