"""The browser of the chat tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chat_page
import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for each module: while it is open, playwright's event loop runs in this thread, and no other can."""
    pytest.importorskip("gradio", reason="the chat page needs gradio")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if chat_page.CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chat_page.CHROMIUM, args=chat_page.FLAGS)
        yield browser
        browser.close()
