"""The chat page for everyone: axe's rules, phones, the keyboard alone, names for screen readers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from chat_page import SECONDS, SIZES, Server, serving, sized, violations, visiting

expect: Any = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright").expect
pytestmark = pytest.mark.slow
RICH = (
    "say Some **bold** text, [a link](https://example.org), `code`, and $$x^2 < y$$\n\n"
    "```python\ndef f(x: int) -> str:  # a comment\n    return 'text' if x >= 1 else None\n```\n\n"
    "| a | |\n|---|---|\n| 1 | 2 |\n\n- one\n- two"
)


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("chat")) as server:
        yield server


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(server: Server, browser: Any, size: str, scheme: str) -> None:
    with visiting(browser, server.url, **sized(size, scheme)) as chat:
        assert violations(chat.page) == []
        chat.answer(RICH)
        assert violations(chat.page) == []
        chat.page.get_by_role("button", name="Settings").click()
        expect(chat.page.get_by_label("Seed")).to_be_visible()
        assert violations(chat.page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_dialog_or_while_an_answer_grows(server: Server, browser: Any, scheme: str) -> None:
    with visiting(browser, server.url, **sized("desktop", scheme)) as chat:
        chat.answer("one")
        chat.action("Edit message", 1).click()
        expect(chat.page.get_by_role("dialog")).to_be_visible()
        assert violations(chat.page) == []
        chat.page.keyboard.press("Escape")
        chat.ask("slow one")
        expect(chat.stop).to_be_visible()
        assert violations(chat.page) == []
        chat.stop.click()
        chat.wait_until_idle()


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_in_sight_and_nothing_scrolls_sideways(server: Server, browser: Any, size: str) -> None:
    width, height = SIZES[size]
    with visiting(browser, server.url, **sized(size)) as chat:
        for text in (None, RICH, "long " * 300):
            if text:
                chat.answer(text)
            assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
            assert chat.page.evaluate("document.documentElement.scrollHeight") <= height + 1
            for part in (chat.box, chat.send, chat.page.get_by_role("heading", level=1)):
                box = part.bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
                assert box["y"] >= 0 and box["y"] + box["height"] <= height
        for message in chat.page.locator(".message-row").all():
            box = message.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_the_box_takes_the_width_of_a_phone(server: Server, browser: Any) -> None:
    with visiting(browser, server.url, **sized("phone")) as chat:
        assert chat.page.locator("#entry").bounding_box()["width"] >= 0.9 * 390
        assert chat.box.bounding_box()["width"] >= 0.9 * 390


@pytest.mark.parametrize(("size", "expanded"), [("phone", "false"), ("desktop", "true")])
def test_the_list_stands_beside_a_page_and_never_covers_it(
    server: Server, browser: Any, size: str, expanded: str
) -> None:
    def delay_sidebar(route: Any) -> None:
        response = route.fetch()
        if "sidebar-content" in response.text():
            time.sleep(2)  # a slow connection; the page's own script is there earlier
        route.fulfill(response=response)

    with visiting(browser, server.url, **sized(size)) as chat:
        chat.page.route("**/assets/Index*.js", delay_sidebar)
        chat.page.reload()
        toggle = chat.page.get_by_role("button", name="List of conversations")
        expect(toggle).to_have_attribute("aria-expanded", expanded, timeout=SECONDS * 1000)
        chat.page.wait_for_timeout(500)
        expect(toggle).to_have_attribute("aria-expanded", expanded)
        assert ("open" in chat.page.locator("#history").get_attribute("class").split()) == (expanded == "true")


def test_conversations_open_on_a_phone(server: Server, browser: Any) -> None:
    with visiting(browser, server.url, **sized("phone")) as chat:
        chat.answer("first")
        chat.page.get_by_role("button", name="New", exact=True).click()
        expect(chat.answers).to_have_count(0)
        chat.page.get_by_role("button", name="List of conversations").click()
        chat.list.first.click()
        expect(chat.answers).to_have_text(["1: first"])
        expect(chat.page.get_by_role("button", name="List of conversations")).to_have_attribute(
            "aria-expanded", "false"
        )


def test_the_keyboard_is_enough(server: Server, browser: Any) -> None:
    with visiting(browser, server.url) as chat:
        keyboard = chat.page.keyboard
        expect(chat.box).to_be_focused()
        keyboard.type("one")
        keyboard.press("Shift+Enter")
        keyboard.type("two")
        keyboard.press("Enter")
        expect(chat.answers).to_have_count(1, timeout=SECONDS * 1000)
        chat.wait_until_idle()
        assert chat.stored()[0]["columns"][0][0]["content"] == "one\ntwo"
        expect(chat.box).to_be_focused()
        keyboard.type("slow")
        keyboard.press("Tab")
        keyboard.press("Enter")  # Send
        expect(chat.stop).to_be_visible()
        chat.stop.focus()
        keyboard.press("Enter")
        chat.wait_until_idle()
        for _ in range(20):  # back to the buttons beside the messages
            keyboard.press("Shift+Tab")
            focused = chat.page.evaluate("document.activeElement.getAttribute('aria-label')")
            if focused == "Delete question and answer":
                break
        keyboard.press("Enter")
        expect(chat.answers).to_have_count(1)
        chat.wait_until_idle()
        chat.page.wait_for_timeout(500)  # the rows are drawn again
        chat.action("Edit message", 1).focus()
        keyboard.press("Enter")
        expect(chat.page.get_by_role("textbox", name="Edit message")).to_be_focused()
        keyboard.press("Escape")
        expect(chat.page.get_by_role("dialog")).to_have_count(0)
        expect(chat.action("Edit message", 1)).to_be_focused()


def test_what_a_screen_reader_gets(server: Server, browser: Any) -> None:
    with visiting(browser, server.url) as chat:
        chat.answer("hello")
        log = chat.page.get_by_role("log")
        expect(log).to_have_attribute("aria-live", "polite")
        expect(log).to_have_attribute("aria-busy", "false")
        chat.ask("slow")
        expect(log).to_have_attribute("aria-busy", "true")
        expect(chat.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
        chat.stop.click()
        chat.wait_until_idle()
        snapshot = chat.page.locator("body").aria_snapshot()
        for line in (
            'heading "Chat with a script" [level=1]', 'navigation "Conversations"', 'button "New conversation"',
            'textbox "Your message"', 'button "Attach a text file"', 'group "Message 1"', 'meter "Context used"',
            'button "Settings"', 'button "Rename hello"',
        ):  # fmt: skip
            assert line in snapshot
        unnamed = chat.page.evaluate(
            "[...document.querySelectorAll('button')].filter(b => b.checkVisibility()"
            " && !(b.innerText.trim() || b.getAttribute('aria-label'))).map(b => b.outerHTML)"
        )
        assert unnamed == []


def test_code_and_tables_that_scroll_can_be_focused(server: Server, browser: Any) -> None:
    with visiting(browser, server.url, **sized("phone")) as chat:
        chat.answer("say ```\n" + "x" * 300 + "\n```\n\n| a | |\n|---|---|\n| 1 | 2 |")
        for kind in ("pre", "table"):
            assert chat.answers.last.locator(kind).get_attribute("tabindex") == "0"
        assert chat.answers.last.locator("th:empty").count() == 0
