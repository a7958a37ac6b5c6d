"""The page of `onmt_llm_eval compare` in a browser: axe's rules, phones, the switch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_page import SIZES, sized, violations

from onmt_llm.eval.compare import ModelAnswers, TimedAnswer, comparison_page

pytestmark = pytest.mark.slow
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 8
PROMPTS = ["Where does the lobster live?", "مرحبا، كيف حالك؟", "", f"Translate: {LONG}"]
ANSWERS = (
    ["In the Atlantic.", "بخير", "", LONG],
    ["In the eastern Atlantic.", "بخير", "", f"def f():\n\treturn {LONG}"],
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A page with long names, long words, an empty prompt and a script that is written from right to left."""
    models = [
        ModelAnswers(
            f"/data/experiments/{'long_name_' * 6}/model_step_{step}",
            [TimedAnswer(text, 3, -0.5, 0.2) for text in texts],
        )
        for step, texts in zip((1000, 2000), ANSWERS, strict=True)
    ]
    path = tmp_path / "page.html"
    path.write_text(comparison_page(models[0], models[1], PROMPTS, PROMPTS, []), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(file: Path, browser: Any, size: str, scheme: str) -> None:
    context = browser.new_context(**sized(size, scheme))
    try:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(file.as_uri())
        assert page.get_by_role("heading", level=1).inner_text() == "model_step_1000 beside model_step_2000"
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        prompts = page.get_by_role("region", name="Prompt")
        assert prompts.count() == 4
        page.get_by_role("checkbox").check()
        assert prompts.count() == 2, "only those whose answers differ"
        assert said == []
    finally:
        context.close()
