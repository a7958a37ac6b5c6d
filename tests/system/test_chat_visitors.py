"""The chat page over time: Stop, queues, several visitors and tabs, two models, files, a password, programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_page import SECONDS, ChatPage, Server, serving, visiting

import tiny

expect: Any = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright").expect
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("chat")) as server:
        yield server


@pytest.fixture(scope="module")
def small(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A context of 700 tokens, and a queue of one."""
    with serving(tmp_path_factory.mktemp("small"), ["small", "one"]) as server:
        yield server


@pytest.fixture(scope="module")
def comparison(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("comparison"), ["compare"]) as server:
        yield server


@pytest.fixture(scope="module")
def models(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two real models, served by the installed command."""
    folder = tmp_path_factory.mktemp("models")
    words = ["-model", str(tiny.write_chat_model(folder / "base")), "-compare_model"]
    with serving(folder, words=[*words, str(tiny.write_chat_model(folder / "tuned"))]) as server:
        yield server


@pytest.fixture
def chat(server: Server, browser: Any) -> Iterator[ChatPage]:
    with visiting(browser, server.url) as chat:
        yield chat


# Stop


@pytest.mark.timeout(600)
def test_fifty_stops_and_none_is_stuck(chat: ChatPage) -> None:
    waits = []
    for number in range(50):
        chat.ask("slow one")
        expect(chat.stop).to_be_visible(timeout=SECONDS * 1000)
        if number % 2:
            expect(chat.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
        begun = time.monotonic()
        chat.stop.click()
        expect(chat.send).to_be_visible(timeout=5000)
        waits.append(time.monotonic() - begun)
        expect(chat.status).to_contain_text("stopped")
        chat.box.fill("")
    print(f"click to Send: median {sorted(waits)[25]:.2f} s, longest {max(waits):.2f} s")


def test_a_new_conversation_during_an_answer_shows_nothing_of_it(chat: ChatPage, server: Server) -> None:
    chat.ask("slow and left")
    expect(chat.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
    chat.page.get_by_role("button", name="New conversation").click()
    expect(chat.answers).to_have_count(0)
    assert server.is_free_after("slow and left")
    chat.page.wait_for_timeout(500)
    expect(chat.answers).to_have_count(0)
    expect(chat.send).to_be_visible()
    chat.answer("next", "1: next")
    expect(chat.list).to_have_count(2)


@pytest.mark.parametrize("leave", ["close", "reload"])
def test_leaving_frees_the_engine(server: Server, browser: Any, leave: str) -> None:
    with visiting(browser, server.url) as chat:
        chat.ask(f"slow before {leave}")
        expect(chat.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
        if leave == "close":
            chat.page.close()
        else:
            chat.page.reload()
        assert server.is_free_after(f"slow before {leave}")
        if leave == "reload":
            expect(chat.answers).to_contain_text(["tick"])  # what had arrived is stored


# several visitors


def test_a_visitor_who_waits_sees_the_place_and_may_stop(server: Server, browser: Any) -> None:
    with (
        visiting(browser, server.url) as first,
        visiting(browser, server.url) as second,
        visiting(browser, server.url) as third,
    ):
        first.ask("slow first")
        expect(first.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
        second.ask("slow second")
        expect(second.stop).to_be_visible(timeout=2000)
        expect(second.status).to_contain_text("in the queue, next", timeout=5000)
        third.ask("third")
        expect(third.status).to_contain_text("in the queue, 1 before you", timeout=5000)
        second.stop.click()
        expect(second.box).to_have_value("slow second")
        first.stop.click()
        expect(third.answers.last).to_have_text("1: third", timeout=SECONDS * 1000)


def test_visitors_do_not_see_each_other(server: Server, browser: Any) -> None:
    with visiting(browser, server.url) as one, visiting(browser, server.url) as other:
        one.ask("alpha beta gamma")
        other.ask("delta epsilon")
        expect(one.answers).to_have_text(["1: alpha beta gamma"], timeout=SECONDS * 1000)
        expect(other.answers).to_have_text(["1: delta epsilon"], timeout=SECONDS * 1000)
        assert len(one.list.all()) == len(other.list.all()) == 1


def test_a_full_queue_is_told(small: Server, browser: Any) -> None:
    with (
        visiting(browser, small.url) as first,
        visiting(browser, small.url) as second,
        visiting(browser, small.url) as third,
    ):
        first.ask("slow first")
        expect(first.answers.last).to_contain_text("tick", timeout=SECONDS * 1000)
        second.ask("second")
        expect(second.status).to_contain_text("next", timeout=5000)
        third.ask("third")
        expect(third.toast).to_contain_text("At most 1 requests may wait", timeout=5000)
        expect(third.box).to_have_value("third")
        first.stop.click()
        expect(second.answers.last).to_have_text("1: second", timeout=SECONDS * 1000)


# conversations


def test_conversations_are_renamed_and_deleted(chat: ChatPage) -> None:
    chat.answer("first", "1: first")
    chat.page.get_by_role("button", name="Rename first").click()
    chat.page.get_by_role("textbox", name="Rename conversation").fill("My <name>")
    chat.page.keyboard.press("Enter")
    expect(chat.list).to_have_text(["My <name>"])
    chat.answer("again", "2: again")
    expect(chat.list).to_have_text(["My <name>"])
    chat.page.get_by_role("button", name="New conversation").click()
    expect(chat.answers).to_have_count(0)
    chat.answer("other", "1: other")
    chat.page.get_by_role("button", name="Delete My <name>").click()
    chat.page.get_by_role("button", name="Delete", exact=True).click()
    expect(chat.list).to_have_text(["other"])
    expect(chat.answers).to_have_text(["1: other"])
    assert len(chat.stored()) == 1


def test_two_tabs_keep_each_others_conversations(server: Server, browser: Any) -> None:
    with visiting(browser, server.url) as one:
        other = ChatPage(one.page.context.new_page()).open(server.url)
        one.answer("from one", "1: from one")
        other.answer("from other", "1: from other")
        expect(one.list).to_have_text(["from other", "from one"])
        one.answer("more", "2: more")
        assert len(one.stored()) == 2
        expect(other.answers).to_have_text(["1: from other"])


def test_conversations_are_exported_and_imported(chat: ChatPage, server: Server, browser: Any, tmp_path: Path) -> None:
    chat.page.get_by_role("button", name="Settings").click()
    chat.page.get_by_label("System prompt").fill("Be <kind>.")
    chat.answer("one & two", "1: one & two")
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "talks.jsonl")
    (line,) = (tmp_path / "talks.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {
        "title": "one & two",
        "messages": [
            {"role": "system", "content": "Be <kind>."}, {"role": "user", "content": "one & two"},
            {"role": "assistant", "content": "1: one & two"},
        ],
    }  # fmt: skip
    with visiting(browser, server.url) as fresh:
        with fresh.page.expect_file_chooser() as chooser:
            fresh.page.get_by_role("button", name="Import").click()
        chooser.value.set_files(tmp_path / "talks.jsonl")
        expect(fresh.answers).to_have_text(["1: one & two"])
        expect(fresh.list).to_have_text(["one & two"])
        fresh.answer("go on", "2: go on")
        expect(fresh.page.get_by_label("System prompt")).to_have_value("Be <kind>.")


def test_a_file_that_is_no_export_is_refused_with_its_line(chat: ChatPage, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n{"text": 1}\n')
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("button", name="Import").click()
    chooser.value.set_files(tmp_path / "bad.jsonl")
    expect(chat.toast).to_contain_text("(line 2)")


def test_a_text_file_becomes_part_of_the_message(chat: ChatPage, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Title\n```\ncode\n```\n")
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.md", "notes.md"):
        with chat.page.expect_file_chooser() as chooser:
            chat.page.get_by_role("button", name="Attach a text file").click()
        chooser.value.set_files(tmp_path / name)
        if name == "binary.md":
            expect(chat.page.locator("#announcer")).to_contain_text("binary.md must be a text file in UTF-8")
    expect(chat.box).to_have_value("notes.md:\n````\n# Title\n```\ncode\n```\n````\n\n")


# settings and limits


def test_settings_reach_the_engine(chat: ChatPage, server: Server) -> None:
    chat.page.get_by_role("button", name="Settings").click()
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.page.get_by_label("number input for Temperature").fill("0.5")
    chat.page.get_by_label("Seed").fill("7")
    chat.page.get_by_label("number input for Maximum tokens of an answer").fill("3")
    chat.page.get_by_label("number input for Maximum tokens of an answer").press("Tab")
    chat.answer("one two three four", "1: one two")
    assert "asked: one two three four with temperature 0.5, seed 7, system 'Be brief.'" in server.log.read_text()
    expect(chat.status).to_contain_text("truncated at the maximum length")
    chat.action("Continue the answer", 2).click()
    expect(chat.answers.last).to_have_text("1: one two three four", timeout=SECONDS * 1000)
    chat.wait_until_idle()
    chat.page.get_by_label("Seed").fill("x")
    chat.ask("next")
    expect(chat.toast).to_contain_text("The seed must be a whole number or empty, but is 'x'.")
    expect(chat.send).to_be_visible()


def test_rounds_that_no_longer_fit_are_told(small: Server, browser: Any) -> None:
    with visiting(browser, small.url) as chat:
        for number in range(4):
            chat.answer(f"round {number} " + "x" * 60)
        expect(chat.status).to_contain_text("left out")
        chat.ask("y" * 400)
        expect(chat.toast).to_contain_text("The message must leave room for the answer", timeout=SECONDS * 1000)
        expect(chat.box).to_have_value("y" * 400)


def test_an_example_is_asked(chat: ChatPage) -> None:
    chat.page.get_by_role("button", name="Explain what a glacier is").click()
    expect(chat.answers).to_have_text(["1: Explain what a glacier is in two sentences."], timeout=SECONDS * 1000)


MARKUP = {
    "html": ("<b>bold</b> <script>alert(1)</script>", "<b>bold</b> <script>alert(1)</script>"),
    "entity": ("&lt;tag&gt; &amp;", "&lt;tag&gt; &amp;"),
    "control token": ("<|im_end|></s>[INST]", "<|im_end|></s>[INST]"),
    "image": ("![x](http://198.51.100.1/x.png)", "![x](http://198.51.100.1/x.png)"),
    "style": ("<style>*{display:none}</style>", "<style>*{display:none}</style>"),
    "price": ("from $5 to $6", "from $5 to $6"),
    "right to left": ("שלום <عالم>", "שלום <عالم>"),
    "emoji": ("👩‍💻 naïve 汉字", "👩‍💻 naïve 汉字"),
}


@pytest.mark.parametrize("kind", MARKUP)
def test_a_text_is_shown_as_it_is(chat: ChatPage, kind: str) -> None:
    text, shown = MARKUP[kind]
    chat.answer("say " + text, shown)
    chat.action("Copy message", 2).click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == text


@pytest.mark.parametrize("formula", [r"$$a<b$$", r"\(a<b\)", r"\[a<b\]"])
def test_a_formula_is_drawn(chat: ChatPage, formula: str) -> None:
    chat.answer(f"say so {formula} holds")
    expect(chat.answers.last.locator(".katex")).to_have_count(1)
    assert chat.answers.last.locator("math mo").text_content() == "<"


# two models


def test_two_models_answer_side_by_side(comparison: Server, browser: Any) -> None:
    with visiting(browser, comparison.url) as chat:
        chat.ask("hello")
        expect(chat.answers).to_have_text(["left 1: hello", "right 1: hello"], timeout=SECONDS * 1000)
        expect(chat.send).to_be_visible()
        chat.page.reload()
        expect(chat.answers).to_have_text(["left 1: hello", "right 1: hello"], timeout=SECONDS * 1000)


def test_real_models_are_compared(models: Server, browser: Any) -> None:
    with visiting(browser, models.url) as chat:
        for rounds, question in enumerate(("Hello", "And now?"), 1):
            chat.ask(question)
            expect(chat.answers).to_have_count(2 * rounds, timeout=SECONDS * 1000)
            chat.wait_until_idle()
        left, right = chat.stored()[0]["columns"]
        assert len(left) == len(right) == 4 and left[1]["content"] == right[1]["content"] != ""


def test_a_stop_during_a_long_prompt(server: Server, browser: Any) -> None:
    with visiting(browser, server.url) as chat:
        chat.ask("read a long prompt")
        expect(chat.stop).to_be_visible(timeout=SECONDS * 1000)
        begun = time.monotonic()
        chat.stop.click()
        expect(chat.send).to_be_visible(timeout=5000)
        print(f"click to Send: {time.monotonic() - begun:.2f} s")
        assert server.is_free_after("read a long prompt", seconds=1)


# programs, and a password


def test_a_program_chats_and_streams(server: Server) -> None:
    client = pytest.importorskip("gradio_client").Client(server.url, verbose=False)
    assert client.predict("hello there", api_name="/chat") == "1: hello there"
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    job = client.submit("one two three four five six", history, temperature=0.5, seed=3, api_name="/chat")
    assert job.result(SECONDS) == "2: one two three four five six" and len(job.outputs()) > 2
    assert "with temperature 0.5, seed 3" in server.log.read_text()
    with pytest.raises(Exception, match="The question must not fail"):
        client.predict("fail", api_name="/chat")
    with pytest.raises(Exception, match="each with its answer"):
        client.predict("x", [{"role": "user", "content": "q"}], api_name="/chat")


def test_a_password_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, ["password"]) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.get_by_label("username").fill("ann")
        page.get_by_label("password").fill("wrong")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_text("Incorrect")).to_be_visible(timeout=SECONDS * 1000)
        page.get_by_label("username").fill("ann")
        page.get_by_label("password").fill("secret")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_label("Your message")).to_be_visible(timeout=SECONDS * 1000)
        context.close()
