"""The translator page in a real browser, over a tiny model of many languages that `onmt_llm_chat` opens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chat_page
import pytest

import tiny
from onmt_llm.config.checkpoint import LanguageTokens, SequenceTokens

pytestmark = pytest.mark.slow
SECONDS = chat_page.SECONDS * 1000
VOCAB = [*tiny.tokens(20), "__de__", "__en__", "<b>x</b>", "w99"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[chat_page.Server]:
    folder = tmp_path_factory.mktemp("translator")
    tiny.write_checkpoint(
        folder / "tiny-many", tiny.seq2seq(), VOCAB, scale=0.5,
        sequences=SequenceTokens(src_prefix=["{src_lang}"], decoder_start=["{tgt_lang}"]),
        languages=LanguageTokens(tokens={"de": "__de__", "en": "__en__"}),
    )  # fmt: skip
    (folder / "options.yaml").write_text("model: tiny-many\nmax_length: 8\nmin_length: 4\ndevice: cpu\nthreads: 1\n")
    with chat_page.serving(folder, words=["-inference_config_file", "options.yaml"]) as server:
        yield server


class TranslatorPage:
    """What a visitor sees and does; the only place that knows the page's selectors."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.locator("#texts textarea").first
        self.target = page.locator("#texts textarea").last
        self.translate = page.get_by_role("button", name="Translate", exact=True)
        self.words = page.locator("#alignment button")
        self.lit = page.locator("#alignment span.lit")
        self.status = page.locator("#translated")
        self.alternatives = page.locator("#alternatives li")

    def ask(self, text: str) -> str:
        """The translation of a text."""
        from playwright.sync_api import expect

        before = self.target.input_value()
        self.box.fill(text)
        self.translate.click()
        if before:
            expect(self.target).not_to_have_value(before, timeout=SECONDS)
        expect(self.words.first).to_be_visible(timeout=SECONDS)
        expect(self.translate).to_be_visible(timeout=SECONDS)
        return str(self.target.input_value())


@contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[TranslatorPage]:
    """A visitor in a fresh context, who must see no console error and whose page asks no other machine."""
    complaints: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((url, "data:", "blob:")) or complaints.append(request.url)
    )
    try:
        page.goto(url)
        shown = TranslatorPage(page)
        shown.translate.wait_for(timeout=SECONDS)
        yield shown
    finally:
        context.close()
    assert [text for text in complaints if not chat_page.HARMLESS.search(text)] == []


@pytest.fixture
def translator(server: chat_page.Server, browser: Any) -> Iterator[TranslatorPage]:
    with visiting(browser, server.url) as page:
        yield page


def test_a_text_is_translated(translator: TranslatorPage) -> None:
    lines = translator.ask("w1 w2\n\nw3").split("\n")
    assert len(lines) == 3 and lines[0] and not lines[1] and lines[2]
    assert translator.page.title() == "Translate with tiny-many"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", chat_page.SIZES)
def test_axe_finds_nothing(server: chat_page.Server, browser: Any, size: str, scheme: str) -> None:
    with visiting(browser, server.url, **chat_page.sized(size, scheme)) as translator:
        assert chat_page.violations(translator.page) == []
        translator.ask("w1 w2 w3")
        translator.words.first.focus()
        assert chat_page.violations(translator.page) == []


def test_the_languages_can_be_swapped(translator: TranslatorPage) -> None:
    from playwright.sync_api import expect

    one, other = (translator.page.get_by_role("combobox", name=name) for name in ("From", "Into"))
    expect(one).to_have_value("de")
    there = translator.ask("w1 w2")
    translator.page.get_by_role("button", name="Swap").click()
    expect(one).to_have_value("en", timeout=SECONDS)
    expect(other).to_have_value("de")
    assert translator.ask("w1 w2") != there


def test_alternatives_are_listed_best_first(translator: TranslatorPage) -> None:
    from playwright.sync_api import expect

    translator.page.get_by_role("spinbutton").fill("3")
    best = translator.ask("w1 w2")
    expect(translator.alternatives).to_have_count(3, timeout=SECONDS)
    assert translator.alternatives.first.inner_text() == best


def test_pointing_at_a_word_lights_its_source(translator: TranslatorPage) -> None:
    from playwright.sync_api import expect

    translator.ask("w1 w2 w3")
    expect(translator.lit).to_have_count(0)
    word = translator.words.first
    numbers = word.get_attribute("data-sources").split()
    word.hover()
    expect(translator.lit).to_have_count(len(numbers))
    translator.page.mouse.move(0, 0)
    expect(translator.lit).to_have_count(0)


def test_the_keyboard_does_the_same(translator: TranslatorPage) -> None:
    from playwright.sync_api import expect

    translator.box.fill("w1 w2 w3")
    translator.box.press("Shift+Enter")
    expect(translator.words.first).to_be_visible(timeout=SECONDS)
    translator.words.first.focus()
    expect(translator.lit.first).to_be_visible()
    assert ", from w" in translator.words.first.get_attribute("aria-label")
    translator.page.keyboard.press("Tab")
    assert translator.page.evaluate("document.activeElement.matches('#alignment button')")


def test_markup_is_text(translator: TranslatorPage) -> None:
    translator.ask("<b>x</b> <script>alert(1)</script>")
    assert translator.page.locator("#alignment b, #alignment script").count() == 0


def test_no_text_is_one_sentence(translator: TranslatorPage) -> None:
    from playwright.sync_api import expect

    translator.translate.click()
    expect(translator.status).to_have_text("Type or paste a text first.", timeout=SECONDS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(
    server: chat_page.Server, browser: Any, scheme: str, tmp_path: Path
) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    with visiting(browser, server.url, **options) as phone:
        phone.ask("w1 w2 w3 " * 12)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert phone.box.bounding_box()["width"] >= 280 and phone.target.bounding_box()["width"] >= 280
        phone.page.screenshot(path=os.environ.get(f"TRANSLATOR_{scheme.upper()}", tmp_path / "phone.png"))


def test_every_control_has_a_name(translator: TranslatorPage) -> None:
    translator.ask("w1 w2")
    nameless = translator.page.evaluate(
        """[...document.querySelectorAll('button, input, textarea')].filter((each) => each.offsetParent && !(
        each.innerText?.trim() || each.ariaLabel || each.title || each.labels?.length)).map((each) => each.outerHTML)"""
    )
    assert nameless == []


def test_a_program_translates(server: chat_page.Server) -> None:
    client = pytest.importorskip("gradio_client").Client(server.url, verbose=False)
    found = client.predict("w1 w2\nw3", "de", "en", 2, api_name="/translate")
    assert len(found) == 2 and all(text.count("\n") == 1 for text in found)
    with pytest.raises(Exception, match="tgt_lang must be one of the 2 languages"):
        client.predict("w1", "de", "xx", api_name="/translate")
